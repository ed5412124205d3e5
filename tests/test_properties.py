"""For any settings, command line and answer: no traceback and no half-written state."""

import json
import random
import re
import socket
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import requests
import responses
import tomli_w
from conftest import ShiftingClock, asset
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from machine import Machine

from asset_sync import queue
from asset_sync.assetfile import edit
from asset_sync.cli import demo
from asset_sync.database import Connection, DatabaseError, errors_as_sentences, query, transaction
from asset_sync.model import AssetType, Feed, Lane, Level
from asset_sync.provider.access import Access
from asset_sync.provider.errors import ProviderError
from asset_sync.provider.polygon import endpoints
from asset_sync.provider.polygon.client import Polygon
from asset_sync.queue import Wanted
from asset_sync.secret import Secret
from asset_sync.settings import (
    LIBPQ_VARIABLES,
    VARIABLES,
    QueueSettings,
    Settings,
    SettingsError,
    load,
)
from asset_sync.store import market
from asset_sync.sync import loop
from asset_sync.sync.report import Report

KEY = "zq-the-key-zq"

Json: TypeAlias = Any


def examples(number: int) -> settings:
    """Try this many examples, the same in each run."""
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- the file and the environment ---------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            "free",
            "starter",
            "5",
            "-1",
            "1e9",
            "nan",
            "true",
            "forex",
            "C:EURUSD",
            "EURUSD",
            "'; drop table x; --",
            "%s%(x)s",
            "\\",
            '"',
            "É€😀",
            "\x1b[2J",
            "http://[",
            "x" * 10000,
        ]
    ),
    st.text(max_size=20),
)
VALUES = st.recursive(
    st.one_of(
        WORDS,
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.datetimes(),
        st.dates(),
        st.times(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        "plan",
        "base_url",
        "allow_insecure_http",
        "connect_timeout_seconds",
        "calls",
        "period_seconds",
        "max_size",
        "max_attempts",
        "retry_delay_seconds",
        "aging_seconds",
        "interval_minutes",
        "hold_for_priority",
        "symbol",
        "polygon_ticker",
        "asset_type",
        "name",
        "priority",
        "update_frequency_seconds",
        "api_key",
    ]
)
TABLES = st.dictionaries(KEYS | WORDS, VALUES, max_size=6)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "provider": TABLES | VALUES,
        "rate_limit": TABLES | VALUES,
        "queue": TABLES | VALUES,
        "batch": TABLES | VALUES,
        "priority_assets": st.lists(TABLES, max_size=3) | VALUES,
        "secondary_assets": st.lists(TABLES, max_size=3) | VALUES,
        "else": VALUES,
    },
)
LINES = st.lists(
    st.sampled_from(
        [
            "[provider]",
            "[[priority_assets]]",
            "[queue",
            "plan = ",
            'plan = "free"',
            "calls = 0x" + "f" * 5000,
            "symbol = 'A'",
            "a.b.c = 1",
            "a = [[[[",
            "x = " + "[" * 3000,
            "= 1",
            "\x00",
            "�",
            '"""',
        ]
    )
    | st.text(max_size=30),
    max_size=6,
)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from([*VARIABLES, *LIBPQ_VARIABLES, "HOME", "XDG_CONFIG_HOME"]), WORDS, max_size=5
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("property")


def read(directory: Path, content: bytes, environ: Mapping[str, str]) -> Settings | None:
    """Return the settings, or None for mistakes, and check that mistakes are sentences."""
    file = directory / "assets.toml"
    file.write_bytes(content)
    mistakes: tuple[str, ...]
    try:
        return load(file, environ, cwd=directory)
    except SettingsError as error:
        mistakes = error.mistakes
    assert mistakes
    for mistake in mistakes:
        assert mistake.isprintable()
        assert mistake.endswith(".")
        assert len(mistake) < 1000
    return None


@examples(250)
@given(document=DOCUMENTS, environ=ENVIRONMENTS)
def test_any_structure_and_environment_give_settings_or_sentences(
    directory: Path, document: dict[str, Json], environ: dict[str, str]
) -> None:
    try:
        content = tomli_w.dumps(document).encode()
    except (UnicodeEncodeError, TypeError, ValueError):  # what no TOML file can hold
        return
    read(directory, content, environ)


@examples(150)
@given(lines=LINES)
def test_any_text_gives_settings_or_sentences(directory: Path, lines: list[str]) -> None:
    read(directory, "\n".join(lines).encode("utf-8", "surrogatepass"), {})


@examples(50)
@given(content=st.binary(max_size=60))
def test_any_bytes_in_the_file_give_settings_or_sentences(directory: Path, content: bytes) -> None:
    read(directory, content, {})


# --- symbols that mean mischief -----------------------------------------------------------------

MISCHIEF = [
    "EUR'USD",
    'EUR"USD',
    "'; drop table asset_sync.queue; --",
    "%s",
    "%(symbols)s %%",
    "a;b",
    "{EURUSD,NULL}",
    "\\x00",
    "ΕURUSD",  # noqa: RUF001  # its first letter is Greek
    "\u202eDSURUE",
    "💶",
    "EUR\nUSD",
    " ",
    "",
    "A" * 10_000,
]
NOISE = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=10_000))


def symbol_ids(symbol: str) -> str:
    return ascii(symbol[:20])


@pytest.mark.parametrize("symbol", [*MISCHIEF, NOISE], ids=symbol_ids)
@pytest.mark.parametrize("key", ["symbol", "polygon_ticker"])
def test_an_invalid_symbol_is_refused_in_a_sentence(directory: Path, symbol: str, key: str) -> None:
    row = {"symbol": "EURUSD", "polygon_ticker": "C:EURUSD", "asset_type": "forex"}
    row[key] = symbol if key == "symbol" else f"C:{symbol}"
    assert read(directory, tomli_w.dumps({"priority_assets": [row]}).encode(), {}) is None


def everything(db: Connection) -> list[tuple[object, ...]]:
    """Return how many rows each table has; a missing table is an error."""
    return query(
        db,
        """
        select (select count(*) from trading.symbols), (select count(*) from asset_sync.queue),
          (select count(*) from asset_sync.calls), (select count(*) from market_data.ohlcv_5m),
          (select count(*) from data_sources.data_sync_status)
        """,
    )


@pytest.mark.parametrize("symbol", MISCHIEF, ids=symbol_ids)
def test_a_hostile_symbol_that_passed_the_settings_is_stored_as_plain_text(
    db: Connection, symbol: str
) -> None:
    odd = replace(asset("EURUSD"), symbol=symbol, ticker=symbol, name=symbol)
    wanted = [Wanted(odd, Feed.BARS)]
    assert queue.enqueue(db, wanted, QueueSettings()).entered == 1
    [upcoming] = queue.line(db, [wanted[0].asset], 5)
    assert upcoming.symbol == symbol
    [item] = queue.claim(db, wanted, lease_seconds=30, most=1)
    assert (item.symbol, item.ticker, item.name) == (symbol,) * 3
    with transaction(db) as cursor:
        market.save_symbols(cursor, [market.Symbol(symbol, symbol, "forex")])
        market.save_status(cursor, [symbol])
        price = market.LastPrice(symbol, *(1.0,) * 7, timestamp=datetime(2026, 3, 2, tzinfo=UTC))
        assert len(market.save_prices(cursor, [price])) == 1
        queue.fail(cursor, item, symbol, QueueSettings())
    assert market.newest_bar(db, symbol)[0] is None
    assert everything(db) == [(1, 1, 0, 0, 1)]


def test_a_symbol_too_long_for_an_index_gives_a_sentence_and_nothing_is_stored(
    db: Connection,
) -> None:
    odd = replace(asset("EURUSD"), symbol=NOISE)
    with pytest.raises(DatabaseError), errors_as_sentences():
        queue.enqueue(
            db, [Wanted(asset("GBPUSD"), Feed.BARS), Wanted(odd, Feed.BARS)], QueueSettings()
        )
    with pytest.raises(DatabaseError), errors_as_sentences(), transaction(db) as cursor:
        market.save_symbols(cursor, [market.Symbol("GBPUSD", "", ""), market.Symbol(NOISE, "", "")])
    assert everything(db) == [(0, 0, 0, 0, 0)]


# --- assets by command ---------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(
        [
            "",
            " ",
            "# \u20ac",
            "provider.plan = 'free'",
            "[queue]",
            "max_size = 7 # seven",
            '[[secondary_assets]]\nsymbol="A"\nasset_type="forex"\npolygon_ticker="C:A"',
            '[[priority_assets]]\nsymbol="B"\nasset_type="forex"\npolygon_ticker="C:B"',
            'name = """\ntwo\\\n lines"""',
            "priority_assets = []",
            '[health]\n"latency_ms" = 1e3',
        ]
    ),
    max_size=6,
)
NAMES = st.text(max_size=8) | st.sampled_from(['"""', "\\", "'", "\x7f", "\ud800", "[[x]]", "= #"])


@examples(150)
@given(
    pieces=PIECES,
    line_end=st.sampled_from(["\n", "\r\n"]),
    edges=st.tuples(st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "\n", "\r\n", "\t"])),
    name=NAMES,
    level=st.sampled_from(Level),
)
def test_an_asset_is_added_to_any_valid_file_and_nothing_else_changes(
    directory: Path, pieces: list[str], line_end: str, edges: tuple[str, str], name: str,
    level: Level,
) -> None:  # fmt: skip
    path = directory / "mine.toml"
    before = (edges[0] + "\n".join(pieces).replace("\n", line_end) + edges[1]).encode()
    path.write_bytes(before)
    try:
        there = load(path, {})
    except SettingsError:
        return
    new = replace(asset("NEW", level), name=name)
    with suppress(edit.AssetFileError, SettingsError):
        edit.add(there, [new], {})
    if path.read_bytes() == before:
        assert "priority_assets = []" in pieces or not name.strip() or not name.isprintable()
        return
    assert path.read_bytes().startswith(before)
    after = load(path, {})
    assert {one.symbol: one.name for one in after.assets} == {
        **{one.symbol: one.name for one in there.assets},
        "NEW": name,
    }
    assert replace(after, assets=there.assets) == there
    if level is Level.CRITICAL:
        assert after.critical[-1].symbol == "NEW"


# --- the command line ---------------------------------------------------------------------------

ARGUMENTS = st.sampled_from(
    [
        "sync",
        "priority",
        "queue",
        "status",
        "assets",
        "list",
        "db",
        "init",
        "url",
        "serve",
        "demo",
        "--json",
        "--dry-run",
        "--limit",
        "--max-runtime",
        "--config",
        "-q",
        "-v",
        "--quiet",
        "--verbose",
        "--help",
        "-h",
        "--version",
        "--show-completion",
        "1",
        "0",
        "-1",
        "nan",
        "inf",
        "1e309",
        "99999999999999999999",
        "assets.toml",
        "nosuch.toml",
        ".",
        "--",
        "-",
        "=",
        "--port",
        "0",
        "--fault",
        "stall:x",
        "--plan",
        "gold",
        "--latency",
        "--json=1",
        "--config=",
        "--limit=2",
        "--max-runtime=0.5",
    ]
) | st.text(st.characters(exclude_characters="\0"), max_size=8)
COMMANDS = st.sampled_from(
    [
        ["sync", "priority"],
        ["sync", "queue"],
        ["sync", "queue", "--max-runtime", "0.5"],
        ["sync", "priority", "--dry-run", "--json"],
        ["queue", "status"],
        ["queue", "status", "--json"],
        ["assets", "list"],
        ["assets", "add", "EURCHF", "--type", "forex"],
        ["assets", "import", "--market", "fx", "--max-runtime", "0.5"],
        ["assets", "check", "--max-runtime", "0.5"],
        ["db", "status"],
        ["db", "init"],
        ["db", "url"],
        ["db", "serve"],
        ["demo"],
        ["demo", "serve"],
        [],
    ]
)
PLAIN = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
OVERRIDES = st.dictionaries(
    st.sampled_from(
        [name for name in VARIABLES if not name.startswith("DATABASE_URL")]
        + ["NO_COLOR", "TERM", "TZ", "PGTZ"]
    ),
    st.sampled_from(["5", "free", "-", "0", "http://127.0.0.1:1", "true"]) | PLAIN,
    max_size=3,
)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the demo, which takes six seconds, and its server, which never ends, by nothing."""
    event = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(demo, "threading", SimpleNamespace(Event=lambda: event))
    monkeypatch.setattr(demo, "_demo", lambda _: None)


@examples(130)
@given(
    command=COMMANDS,
    arguments=st.lists(ARGUMENTS, max_size=3),
    overrides=OVERRIDES,
    up=st.booleans(),
)
def test_any_command_line_ends_with_a_documented_code_and_no_traceback(
    directory: Path, url: str, nobody: None, command: list[str], arguments: list[str],
    overrides: dict[str, str], up: bool,  # noqa: FBT001  # hypothesis passes by name
) -> None:  # fmt: skip
    (directory / "assets.toml").write_text(
        "rate_limit.calls = 1000\n"
        + "".join(
            f'[[{table}_assets]]\nsymbol = "{symbol}"\npolygon_ticker = "C:{symbol}"\n'
            'asset_type = "forex"\n'
            for table in ("priority", "secondary")
            for symbol in (f"{table[0].upper()}{number}" for number in "123")
        )
    )
    machine = Machine(
        directory,
        url if up else "postgresql://me:zq-password@127.0.0.1:1/x",
        secrets=(KEY, "zq-password"),
        POLYGON_API_KEY=KEY,
        POLYGON_BASE_URL="http://127.0.0.1:1",
    )
    note(f"asset-sync {command + arguments} {overrides}")
    told = machine.tell(*command, *arguments, **overrides)
    assert told.code in {0, 1, 2, 3, 4}
    if told.code in {2, 3, 4}:
        assert told.err or told.out


# --- answers, byte by byte ----------------------------------------------------------------------


class RawServer:
    """Sends the given bytes to each request and closes the connection."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with line, suppress(OSError):
                line.recv(65536)
                line.sendall(self.answer)
                line.shutdown(socket.SHUT_WR)
                line.recv(1)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


LATIN = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "Content-Type",
                "Content-Length",
                "Transfer-Encoding",
                "Content-Encoding",
                "Retry-After",
                "Date",
                "Set-Cookie",
                "Location",
                "Connection",
                "Link",
                "WWW-Authenticate",
                "Trailer",
            ]
        ),
        st.sampled_from(
            [
                "application/json; charset",
                "text/html; charset=utf-16",
                "chunked",
                "gzip",
                "br",
                "0",
                "-1",
                "9" * 400,
                "5, 5",
                "http://[",
                "Mon, 99 Foo 99999 99:99:99 +9999",
                "a=b; expires=x; max-age=" + "9" * 30,
                "multipart/mixed; boundary=x",
                "x" * 70000,
            ]
        )
        | LATIN,
    ),
    max_size=4,
)
BODIES = st.binary(max_size=60) | st.sampled_from(
    [b"{}", b"null", b"5\r\nabc", b"zz\r\n", b"0\r\n\r\n", b"[" * 100_000, b"1" * 10_000, b"\xff"]
)
STATUSES = st.sampled_from(
    ["200 OK", "429 x", "401", "403 F", "404 N", "400", "502 B", "302 F"]
) | (st.integers(0, 1200).map(str))


def ask_everything(api: Polygon) -> None:
    """Make each call, and check that it gives an answer or a provider error."""
    start = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    calls: list[Callable[[], object]] = [
        lambda: api.bars("C:EURUSD", start, start + timedelta(hours=1)),
        lambda: api.snapshots(["C:EURUSD", "X:BTCUSD"]),
        lambda: api.ticker_exists("C:EURUSD"),
        lambda: api.tickers(endpoints.tickers(AssetType.FOREX)),
    ]
    for call in calls:
        try:
            call()
        except ProviderError as error:
            sentence = str(error)
            assert sentence.isprintable()
            assert sentence.endswith(".")
            assert KEY not in sentence


def polygon(base_url: str) -> Polygon:
    return Polygon(
        Access(
            base_url=base_url,
            key=Secret(KEY),
            connect_timeout_seconds=2,
            read_timeout_seconds=0.05,  # for a body that is announced and does not come
            call_timeout_seconds=2,
        )
    )


@examples(80)
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_any_status_headers_and_body_give_an_answer_or_a_provider_error(
    raw: RawServer, status: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    raw.answer = f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body
    with polygon(raw.base_url) as api:
        ask_everything(api)


@examples(40)
@given(answer=st.binary(max_size=100))
def test_any_bytes_from_the_api_give_an_answer_or_a_provider_error(
    raw: RawServer, answer: bytes
) -> None:
    raw.answer = answer
    with polygon(raw.base_url) as api:
        ask_everything(api)


JSON_VALUES = st.sampled_from(
    [None, "", "OK", "\x1b[2J", "\ud800", KEY, True, False, 0, -1, 1e308, [], {}, ["OK"], {"a": 1}]
)
LISTED = st.fixed_dictionaries(
    {"ticker": st.sampled_from(["C:EURUSD", "", "C:\ud800", "C:" + "A" * 99, None, 7])},
    optional={"name": JSON_VALUES, "active": JSON_VALUES},
)
NEXT_URLS = JSON_VALUES | st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "https://elsewhere.test", "http://[", "//x", "\ud800"]),
    st.sampled_from(["", "/v3/reference/tickers", "/v3/reference/tickers/../x", "\n"]),
    st.sampled_from(["", "?", "?cursor=x", f"?apiKey={KEY}&cursor=y", "?a b", "?" + "x" * 9000]),
)


@examples(80)
@given(
    rows=st.lists(LISTED | JSON_VALUES, max_size=3),
    url=NEXT_URLS,
    status=st.just("OK") | JSON_VALUES,
)
def test_any_page_of_the_list_gives_printable_tickers_or_a_provider_error(
    raw: RawServer, rows: list[object], url: object, status: object
) -> None:
    body = json.dumps({"status": status, "results": rows, "next_url": url}).encode()
    raw.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with polygon(raw.base_url) as api:
        try:
            answer = api.tickers(endpoints.tickers(AssetType.FOREX))
        except ProviderError:
            return
    for ticker, name in answer.tickers:
        assert (ticker + name).isprintable()
        assert ticker
        assert name
        assert len(ticker + name) < 300
    if answer.next_page is not None:
        assert answer.next_page.startswith("/v3/reference/tickers?")
        assert KEY not in answer.next_page


# --- answers of the right shape, but for something ----------------------------------------------

SCALARS: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            10**400,
            1.7e308,
            5e-324,
            -0.0,
            float("nan"),
            float("inf"),
            "",
            "1",
            "OK",
            "ERROR",
            "NOT_FOUND",
            "NOT_ENTITLED",
            "C:EURUSD",
            "\x00",
            "�",
            KEY,
            [],
            {},
        ]
    ),
    st.integers(0, 2**64),
    st.floats(),
    st.text(max_size=5),
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["results", "status", "t", "ticker", "error"]), inner)
    ),
    max_leaves=8,
)
PLACES = st.integers(0, 30)
CHANGES = st.lists(
    st.tuples(
        # Anywhere, a figure of a row, or a figure within a part of a row.
        st.lists(PLACES, max_size=3)
        | st.tuples(st.just(0), PLACES, PLACES).map(list)
        | st.tuples(st.just(0), PLACES, PLACES, PLACES).map(list),
        SCALARS | st.just("gone"),
    ),
    max_size=4,
)


def changed(document: Json, path: list[int], value: Json) -> Json:
    """Return the document with the value at the path replaced or removed."""
    if not path or not isinstance(document, list | dict) or not document:
        return value
    step, rest = path[0] % len(document), path[1:]
    if isinstance(document, list):
        inner = changed(document[step], rest, value)
        return [*document[:step], *([] if inner == "gone" else [inner]), *document[step + 1 :]]
    name = list(document)[step]
    inner = changed(document[name], rest, value)
    return {
        k: inner if k == name else v for k, v in document.items() if k != name or inner != "gone"
    }


def right_answer(path: str, query: str) -> Json:
    """Answer as the API does, with a few current bars or quotes."""
    found = re.fullmatch(r"/v2/aggs/ticker/([^/]+)/range/5/minute/(\d+)/(\d+)", path)
    if found:
        last = int(found[3]) // 300_000 * 300_000
        rows = [
            {
                "t": last - n * 300_000,
                "o": 1.1,
                "h": 1.3,
                "l": 1.0,
                "c": 1.2,
                "v": 5,
                "vw": 1.1,
                "n": 3,
            }
            for n in reversed(range(4))
        ]
        return {"results": rows, "ticker": found[1], "status": "OK", "resultsCount": 4}
    if path == "/v3/snapshot":
        at = int(datetime.now(UTC).timestamp()) * 10**9
        return {
            "results": [
                {
                    "ticker": ticker,
                    "session": {"open": 1.0, "high": 1.3, "low": 0.9, "close": 1.2},
                    "last_quote": {"bid": 1.1, "ask": 1.2, "last_updated": at},
                }
                for ticker in ("C:EURUSD", "C:GBPUSD")
            ],
            "status": "OK",
        }
    return {"status": "OK", "results": {"ticker": path.rsplit("/", 1)[-1]}}


_FORGET = """
delete from market_data.ohlcv_5m; delete from data_sources.data_sync_status;
delete from trading.symbols; delete from asset_sync.calls; delete from asset_sync.runs;
delete from asset_sync.queue; delete from asset_sync.slots; delete from asset_sync.entitlements;
update asset_sync.limiter set blocked_until = '-infinity', reserved_calls = 0
"""


def run_against(
    db: Connection, url: str, plan: str, answer: Callable[[str, str], bytes | str]
) -> tuple[Report, int]:
    """Run the queue on an empty database; return the report and the number of requests."""
    query(db, _FORGET)
    configured = load(
        None,
        {
            "POLYGON_API_KEY": KEY,
            "POLYGON_TIER": plan,
            "POLYGON_PARALLEL_CALLS": "1",
            "POLYGON_BASE_URL": "https://api.example.test",
            "DATABASE_URL": url,
        },
        cwd=Path("/nonexistent"),
    )
    configured = replace(configured, assets=(asset("EURUSD"), asset("GBPUSD")))

    def reply(request: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes | str]:
        path, _, rest = (request.path_url or "").partition("?")
        return 200, {}, answer(path, rest)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as server:
        server.add_callback(responses.GET, re.compile(".*"), callback=reply)
        report = loop.run(
            db, configured, Lane.QUEUE, max_runtime_seconds=1, clock=ShiftingClock(db)
        )
        return report, len(server.calls)


def assert_whole(db: Connection, report: Report, requests_made: int, plan: str) -> None:
    """Check that nothing is held, each call is reported, and all stored data is consistent."""
    [(leased, in_flight, calls, written, bars, bad)] = query(
        db,
        """
        select (select count(*) from asset_sync.queue
                where state = 'leased' or lease_token is not null),
          (select count(token) from asset_sync.slots),
          (select count(*) from asset_sync.calls),
          (select coalesce(sum(bars_written), 0) from asset_sync.calls),
          (select count(*) from market_data.ohlcv_5m),
          (select count(*) from market_data.ohlcv_5m where high < low or volume < 0
             or not (least(open, high, low, close) > 0
                     and greatest(open, high, low, close) < 'infinity'))
        """,
    )
    assert (leased, in_flight, bad) == (0, 0, 0)
    assert calls == requests_made == report.api_calls_used
    assert written == report.bars_written >= bars
    [(ended,)] = query(db, "select reason_ended from asset_sync.runs")
    assert ended == report.reason_ended.value != "broken"
    for symbol, states, status, told, update, close in query(
        db,
        """
        select q.symbol, array_agg(q.state), max(t.sync_status), max(t.error_message),
          (select s.metadata -> 'last_update' from trading.symbols s where s.symbol = q.symbol),
          (select bar.close from market_data.ohlcv_5m bar join trading.symbols s
             on s.id = bar.ticker_id where s.symbol = q.symbol order by bar.ts desc limit 1)
        from asset_sync.queue q left join trading.symbols s on s.symbol = q.symbol
        left join data_sources.data_sync_status t on t.ticker_id = s.id
        group by q.symbol
        """,
    ):
        assert set(states) <= {"idle", "waiting", "dead"}
        assert (status == "error") == (told is not None)
        if update is not None:
            figures = [value for value in update.values() if isinstance(value, float | int)]
            assert all(0 < figure < float("inf") for figure in figures)
            assert datetime.fromisoformat(update["timestamp"]) <= datetime.now(UTC) + timedelta(
                seconds=1
            )
        if plan == "free":
            # Of an answer with the running bar alone, the price is stored and no bar.
            assert close is None or update["last_price"] > 0
            assert status != "success" or symbol in report.updated
        assert symbol not in report.updated or states.count("idle") >= 1


@pytest.mark.parametrize("plan", ["free", "starter"])
@examples(60)
@given(changes=CHANGES, cut=st.none() | st.integers(0, 400))
@example(changes=[([0, 3, 4], float("inf"))], cut=None)  # the newest bar's close
@example(changes=[([0, 0, 2, 0], -1.0), ([0, 1, 2, 1], float("nan"))], cut=None)
@example(changes=[([0, 0, 2, 0], 1.7e308), ([0, 0, 2, 1], 1.7e308)], cut=None)  # their sum is none
def test_an_answer_with_one_wrong_part_is_stored_as_a_whole_or_not_at_all(
    db: Connection, url: str, plan: str, changes: list[tuple[list[int], Json]], cut: int | None
) -> None:
    def answer(path: str, rest: str) -> str:
        document = right_answer(path, rest)
        for where, what in changes:
            document = changed(document, where, what)
        return json.dumps(document)[:cut]

    report, made = run_against(db, url, plan, answer)
    note(f"{report}")
    assert_whole(db, report, made, plan)


@pytest.mark.parametrize("plan", ["free", "starter"])
@examples(40)
@given(document=ANY_JSON)
def test_any_json_from_the_api_leaves_a_consistent_state(
    db: Connection, url: str, plan: str, document: Json
) -> None:
    report, made = run_against(db, url, plan, lambda *_: json.dumps(document))
    note(f"{report}")
    assert_whole(db, report, made, plan)


# --- an answer of which a part cannot be stored -------------------------------------------------

PARTS = [
    "update on trading.symbols",
    "insert on data_sources.data_sync_status",
    "insert on asset_sync.calls",
]


@pytest.mark.parametrize("plan", ["free", "starter"])
@pytest.mark.parametrize("part", PARTS)
def test_if_a_part_of_an_answer_cannot_be_stored_nothing_of_it_is(
    db: Connection, url: str, plan: str, part: str
) -> None:
    query(
        db,
        f"""
        create function refuse() returns trigger language plpgsql as $$begin
          raise 'not today'; end$$;
        create trigger refusing before {part} execute function refuse()
        """,
    )
    with pytest.raises(DatabaseError, match="not today"), errors_as_sentences():
        run_against(db, url, plan, lambda *asked: json.dumps(right_answer(*asked)))
    assert query(
        db,
        """
        select (select count(*) from market_data.ohlcv_5m), (select count(*) from trading.symbols),
          (select count(*) from data_sources.data_sync_status),
          (select count(*) from asset_sync.calls),
          (select count(*) from asset_sync.queue where last_success_at is not null)
        """,
    ) == [(0, 0, 0, 0, 0)]
    # It is refused for everybody, so no asset pays for it.
    assert query(
        db, "select count(*) from asset_sync.queue where state = 'leased' or attempts > 0"
    ) == [(0,)]
