"""The stand-in API behaves as documented: all other tests depend on it."""

import errno
import gzip
import http.client
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET, create_connection
from struct import pack
from typing import TypeAlias, TypedDict

import pytest

from asset_sync.demo import replay
from asset_sync.demo.faults import FAULTS, OTHER_TICKER, FaultPlan
from asset_sync.demo.replay import BAR_MS, DAY_MS, HOUR_MS, INSTRUMENTS, Market
from asset_sync.demo.server import PLANS, StandIn
from asset_sync.demo.wire import StandInError

Row: TypeAlias = dict[str, float]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


WEDNESDAY = ms("2026-11-18T12:02:00")
SATURDAY = ms("2026-11-21T12:02:00")
TODAY, YESTERDAY = "2026-11-18", "2026-11-17"
EURO_BARS = f"/v2/aggs/ticker/C:EURUSD/range/5/minute/{YESTERDAY}/{TODAY}"
SNAPSHOT = "/v3/snapshot?ticker.any_of=C:EURUSD,X:BTCUSD,C:TYPO&limit=250"


@dataclass(slots=True)
class Clock:
    """A clock that moves only when the test moves it."""

    seconds: float

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def standin(
    plan: str = "starter", *faults: str, now_ms: int = WEDNESDAY, latency: float = 0.0
) -> Iterator[StandIn]:
    clock = Clock(now_ms / 1000)
    with StandIn(
        plan,
        calls=1_000 if plan == "starter" else None,
        latency=(latency, latency),
        faults=faults,
        clock=clock,
    ) as api:
        yield api


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as the client receives it."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found

    @property
    def rows(self) -> list[Row]:
        found: list[Row] = json.loads(self.body)["results"]
        return found

    def names(self, key: str) -> list[str]:
        return [str(row[key]) for row in self.rows]

    @property
    def next_path(self) -> str:
        scheme, _, host, path = str(self.document["next_url"]).split("/", 3)
        assert (scheme, host.partition(":")[0]) == ("http:", "127.0.0.1")
        return f"/{path}"


def connect(api: StandIn, timeout: float = 10.0) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(api.base_url.removeprefix("http://"), timeout=timeout)


def ask(
    api: StandIn,
    target: str,
    *,
    authorization: str | None = "Bearer demo-key",
    gzip_too: bool = False,
    post: str | None = None,
) -> Seen:
    headers = {"Authorization": authorization} if authorization else {}
    if gzip_too:
        headers["Accept-Encoding"] = "gzip"
    with closing(connect(api)) as connection:
        connection.request("GET" if post is None else "POST", target, post, headers)
        answer = connection.getresponse()
        return Seen(answer.status, answer.read(), dict(answer.getheaders()))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until another thread has done this."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


# ---------------------------------------------------------------------- replay


def test_equal_calls_get_equal_bars_for_any_window() -> None:
    start = WEDNESDAY - 3 * DAY_MS
    wide = replay.bars("C:XAUUSD", start, WEDNESDAY, WEDNESDAY)
    middle = wide[100].start_ms, wide[200].start_ms
    assert replay.bars("C:XAUUSD", *middle, WEDNESDAY) == wide[100:201]
    assert replay.bars("C:XAUUSD", *middle, WEDNESDAY + DAY_MS) == wide[100:201]


def test_the_replay_includes_both_bounds_and_ends_with_the_bar_in_progress() -> None:
    found = replay.bars("X:BTCUSD", WEDNESDAY - 12 * 60_000, WEDNESDAY + DAY_MS, WEDNESDAY)
    assert [bar.start_ms for bar in found] == [
        ms(f"2026-11-18T{at}") for at in ("11:50:00", "11:55:00", "12:00:00")
    ]
    at = found[0].start_ms
    assert replay.bars("X:BTCUSD", at, at, WEDNESDAY) == found[:1]
    assert replay.bars("X:BTCUSD", at + 1, at + BAR_MS - 1, WEDNESDAY) == []


@pytest.mark.parametrize(
    "start",
    # 2014-05-01 was a Thursday. These days are a whole number of fortnights later. In winter the
    # clock of New York is an hour behind that of May.
    ["2026-08-20T00:00:00", "2026-11-12T01:00:00"],
)
def test_replayed_forex_keeps_the_weekday_and_the_hour_in_new_york(start: str) -> None:
    (bar,) = replay.bars("C:EURUSD", ms(start), ms(start) + BAR_MS - 1, 2**42)
    assert (ms(start[:10] + "T00:00:00") - ms("2014-05-01T00:00:00")) % (14 * DAY_MS) == 0
    assert bar[1:5] == (1.38676, 1.38690, 1.38669, 1.38684)


@pytest.mark.parametrize("ticker", [t for t, i in INSTRUMENTS.items() if i.market is Market.FX])
def test_forex_is_closed_at_the_weekend_and_open_on_weekdays(ticker: str) -> None:
    def count(start: str, end: str) -> int:
        return len(replay.bars(ticker, ms(start), ms(end) - 1, 2**42))

    assert count("2026-11-20T22:00:00", "2026-11-22T22:00:00") == 0
    assert count("2026-07-17T21:00:00", "2026-07-19T21:00:00") == 0
    assert count("2026-12-24T22:00:00", "2026-12-25T22:00:00") == 0
    for day in ("16", "17", "18", "19"):
        assert count(f"2026-11-{day}T00:00:00", f"2026-11-{day}T20:00:00") == 20 * 12


def test_crypto_never_closes() -> None:
    found = replay.bars("X:BTCUSD", WEDNESDAY - 40 * DAY_MS, WEDNESDAY, WEDNESDAY)
    assert [bar.start_ms for bar in found] == list(
        range(found[0].start_ms, WEDNESDAY - WEDNESDAY % BAR_MS + 1, BAR_MS)
    )


@pytest.mark.parametrize(("ticker", "days"), [("C:EURUSD", 14), ("C:XAUUSD", 14), ("X:BTCUSD", 2)])
def test_replayed_cycles_follow_each_other_without_overlap_or_gap(ticker: str, days: int) -> None:
    start, cycle = ms("2026-11-18T00:00:00"), days * DAY_MS
    two = replay.bars(ticker, start, start + 2 * cycle - 1, 2**42)
    starts = [bar.start_ms for bar in two]
    assert starts == sorted(set(starts))
    half = len(two) // 2
    assert [(bar.start_ms + cycle, *bar[1:]) for bar in two[:half]] == two[half:]
    assert half == rows_recorded(ticker)


def rows_recorded(ticker: str) -> int:
    """Return the rows of the file on the replayed days."""
    recording = INSTRUMENTS[ticker].recording
    path = Path(replay.__file__).with_name("bars") / recording.file
    first = recording.first_day
    replayed = {(first + timedelta(days=day)).isoformat() for day in range(recording.days)}
    return sum(line[:10] in replayed for line in path.read_text().splitlines())


@pytest.mark.parametrize("ticker", INSTRUMENTS)
def test_every_replayed_bar_is_possible(ticker: str) -> None:
    found = replay.bars(ticker, WEDNESDAY - 14 * DAY_MS, WEDNESDAY, WEDNESDAY)
    assert found
    for bar in found:
        assert 0 < bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        assert bar.low <= bar.vwap <= bar.high
        assert bar.trades >= 1
        if INSTRUMENTS[ticker].market is Market.FX:
            assert isinstance(bar.volume, int)
            assert bar.volume == bar.trades


def test_longer_bars_are_built_from_short_ones_and_grow_while_in_progress() -> None:
    day = ms("2026-11-18T00:00:00")
    parts = replay.bars("C:EURUSD", day, WEDNESDAY, WEDNESDAY)
    today = replay.day("C:EURUSD", WEDNESDAY, WEDNESDAY)
    assert today is not None
    assert today[:5] == (
        day,
        parts[0].open,
        max(bar.high for bar in parts),
        min(bar.low for bar in parts),
        parts[-1].close,
    )
    assert today.volume == sum(bar.volume for bar in parts)
    whole = replay.day("C:EURUSD", WEDNESDAY, WEDNESDAY + DAY_MS)
    assert whole is not None
    assert whole.volume > today.volume


def test_forty_days_of_bars_are_replayed_quickly() -> None:
    replay.bars("X:BTCUSD", WEDNESDAY, WEDNESDAY, WEDNESDAY)
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        assert len(replay.bars("X:BTCUSD", WEDNESDAY - 40 * DAY_MS, WEDNESDAY, WEDNESDAY)) > 11_500
        best = min(best, time.perf_counter() - began)
    assert best < 0.1


def test_the_stand_in_imports_nothing_of_the_product_but_its_errors() -> None:
    code = (
        "import sys, asset_sync.demo.server\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in "
        "('asset_sync', 'requests', 'rich', 'psycopg2', 'typer')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    others = [name for name in shown.stdout.split() if not name.startswith("asset_sync.demo")]
    assert others == ["asset_sync", "asset_sync.errors"]


# ---------------------------------------------------------------------- shapes: bars


def test_bars_have_the_shape_of_the_specification_and_the_figures_of_the_replay() -> None:
    with standin() as api:
        seen = ask(api, f"{EURO_BARS}?adjusted=true&sort=asc&limit=50000")
    assert seen.status == 200
    assert seen.headers["Content-Type"] == "application/json"
    document = seen.document
    assert re.fullmatch(r"[0-9a-f]{32}", str(document.pop("request_id")))
    assert document.pop("results") is not None
    count = len(seen.rows)
    assert document == {
        "ticker": "C:EURUSD",
        "queryCount": 5 * count,
        "resultsCount": count,
        "adjusted": True,
        "status": "OK",
        "count": count,
    }
    expected = replay.bars("C:EURUSD", ms(YESTERDAY), WEDNESDAY, WEDNESDAY)
    assert [
        tuple(row[key] for key in ("t", "o", "h", "l", "c", "v", "vw", "n")) for row in seen.rows
    ] == expected


def test_a_free_key_gets_full_bars_with_the_status_delayed() -> None:
    with standin("free") as api:
        seen = ask(api, EURO_BARS)
    assert seen.document["status"] == "DELAYED"
    assert seen.rows


def test_bounds_may_be_unix_milliseconds_and_are_inclusive() -> None:
    first, last = ms("2026-11-18T08:00:00"), ms("2026-11-18T08:10:00")
    with standin() as api:
        seen = ask(api, f"/v2/aggs/ticker/C%3AEURUSD/range/5/minute/{first}/{last}")
    assert [row["t"] for row in seen.rows] == [first, first + BAR_MS, last]


@pytest.mark.parametrize("ticker", ["C:EURUSD", "C:TYPO"])
def test_a_quiet_and_an_unknown_ticker_look_the_same_and_have_no_results(ticker: str) -> None:
    with standin("free") as api:
        seen = ask(api, f"/v2/aggs/ticker/{ticker}/range/5/minute/2026-11-14/2026-11-14")
    document = seen.document
    document.pop("request_id")
    assert (seen.status, document) == (
        200,
        {
            "ticker": ticker,
            "queryCount": 0,
            "resultsCount": 0,
            "adjusted": True,
            "status": "OK",
            "count": 0,
        },
    )


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_limit_counts_minutes_and_the_pages_together_are_complete(sort: str) -> None:
    pages: list[list[Row]] = []
    with standin() as api:
        target: str | None = f"{EURO_BARS}?sort={sort}&limit=1000&apiKey=demo-key"
        while target:
            seen = ask(api, target)
            pages.append(seen.rows)
            assert "demo-key" not in seen.body.decode()
            target = seen.next_path if "next_url" in seen.document else None
    together = [row["t"] for page in pages for row in page]
    expected = [
        bar.start_ms for bar in replay.bars("C:EURUSD", ms(YESTERDAY), WEDNESDAY, WEDNESDAY)
    ]
    assert [len(page) for page in pages] == [200, 200, 33]
    assert together == (expected if sort == "asc" else expected[::-1])


@pytest.mark.parametrize(
    ("query", "most"), [("", 1_000), ("?limit=50000", 10_000), ("?limit=99999", 10_000)]
)
def test_limit_is_5000_by_default_and_50000_at_most(query: str, most: int) -> None:
    with standin() as api:
        seen = ask(api, f"/v2/aggs/ticker/X:BTCUSD/range/5/minute/2026-09-01/{TODAY}{query}")
    assert len(seen.rows) == most
    assert seen.next_path.startswith("/v2/aggs/ticker/X:BTCUSD/range/5/minute/")


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "standin.test:443", "[::1]:80"])
@pytest.mark.parametrize("path", [EURO_BARS, "/v3/reference/tickers", "/v3/snapshot"])
def test_the_next_page_is_at_the_address_that_the_client_used(host: str, path: str) -> None:
    headers = {"Authorization": "Bearer demo-key", "Host": host}
    with standin() as api, closing(connect(api)) as connection:
        connection.request("GET", f"{path}?limit=5", None, headers)
        document = json.loads(connection.getresponse().read())
    assert document["next_url"].startswith(f"http://{host}{path[:10]}")


def test_a_client_that_names_no_host_gets_links_to_the_servers_address() -> None:
    with standin() as api, closing(connect(api)) as connection:
        connection.putrequest("GET", "/v3/reference/tickers?limit=1", skip_host=True)
        connection.putheader("Authorization", "Bearer demo-key")
        connection.endheaders()
        document = json.loads(connection.getresponse().read())
        assert document["next_url"].startswith(f"{api.base_url}/v3/reference/tickers?cursor=")


def test_a_cursor_has_no_padding_and_is_read_with_and_without_it() -> None:
    with standin() as api:
        for limit in (1, 10, 100):  # of each length modulo three
            seen = ask(api, f"/v3/reference/tickers?limit=1&x={limit}")
            assert "=" not in seen.next_path.partition("cursor=")[2]
            rest = ask(api, seen.next_path)
            assert rest.names("ticker") == ["C:GBPUSD"]
            assert ask(api, f"{seen.next_path}==").rows == rest.rows


@pytest.mark.parametrize(
    ("span", "length_ms"), [("1/hour", HOUR_MS), ("1/day", DAY_MS), ("15/minute", 3 * BAR_MS)]
)
def test_longer_bars_are_served_too(span: str, length_ms: int) -> None:
    with standin() as api:
        rows = ask(api, f"/v2/aggs/ticker/X:BTCUSD/range/{span}/{YESTERDAY}/{TODAY}").rows
    assert all(row["t"] % length_ms == 0 for row in rows)
    assert len(rows) == WEDNESDAY // length_ms - ms(YESTERDAY) // length_ms + 1


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        (
            "yesterday/2026-11-18",
            "Could not parse the time parameter: 'from'. Use YYYY-MM-DD or Unix MS Timestamps",
        ),
        (
            "2026-11-18/2026-02-30",
            "Could not parse the time parameter: 'to'. Use YYYY-MM-DD or Unix MS Timestamps",
        ),
        ("2026-11-18/2026-11-17", "The parameter 'to' cannot be a time that occurs before 'from'"),
        ("2026-11-17/2026-11-18?limit=many", "The parameter 'limit' is not a positive number"),
        (
            "2026-11-17/2026-11-18?cursor=x",
            "The parameter 'cursor' is not one that this API gave out",
        ),
    ],
)
def test_an_invalid_request_gets_a_400_with_the_apis_sentence(bounds: str, sentence: str) -> None:
    with standin() as api:
        seen = ask(api, f"/v2/aggs/ticker/C:EURUSD/range/5/minute/{bounds}")
    assert seen.status == 400
    assert seen.document.keys() == {"status", "request_id", "error"}
    assert seen.document["error"] == sentence


@pytest.mark.parametrize("ticker", INSTRUMENTS)
def test_the_minute_bars_of_a_bar_add_up_to_the_bar(ticker: str) -> None:
    day = f"/v2/aggs/ticker/{ticker}/range/{{}}/minute/{YESTERDAY}/{YESTERDAY}?limit=50000"
    with standin() as api:
        bars, minutes = ask(api, day.format(5)).rows, ask(api, day.format(1)).rows
    assert len(minutes) > 4 * len(bars)
    parts: dict[float, list[Row]] = {bar["t"]: [] for bar in bars}
    for minute in minutes:
        assert minute["t"] % 60_000 == 0
        assert 0 < minute["l"] <= min(minute["o"], minute["c"])
        assert max(minute["o"], minute["c"]) <= minute["h"]
        assert minute["l"] <= minute["vw"] <= minute["h"]
        assert minute["n"] >= 1
        parts[minute["t"] // BAR_MS * BAR_MS].append(minute)
    for bar in bars:
        of_it = parts[bar["t"]]
        assert of_it[0]["t"] == bar["t"]
        assert {
            "t": bar["t"],
            "o": of_it[0]["o"],
            "h": max(minute["h"] for minute in of_it),
            "l": min(minute["l"] for minute in of_it),
            "c": of_it[-1]["c"],
            "v": sum(minute["v"] for minute in of_it),
            "n": sum(minute["n"] for minute in of_it),
            "vw": bar["vw"],
        } == bar


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_minute_bars_are_paged_and_end_at_the_minute(sort: str) -> None:
    first, last = ms("2026-11-18T11:52:30"), ms("2026-11-18T12:10:00")
    asked: str | None = (
        f"/v2/aggs/ticker/X:BTCUSD/range/1/minute/{first}/{last}?sort={sort}&limit=4"
    )
    starts: list[float] = []
    with standin() as api:
        while asked:
            seen = ask(api, asked)
            starts += [row["t"] for row in seen.rows]
            asked = seen.next_path if "next_url" in seen.document else None
    expected = [ms(f"2026-11-18T11:{minute}:00") for minute in range(53, 60)]
    expected += [ms(f"2026-11-18T12:0{minute}:00") for minute in range(3)]
    assert starts == (expected if sort == "asc" else expected[::-1])


def test_bars_that_the_recordings_cannot_make_are_refused() -> None:
    with standin() as api:
        for span in ("2/minute", "7/minute", "1/week", "0/minute"):
            seen = ask(api, f"/v2/aggs/ticker/C:EURUSD/range/{span}/{YESTERDAY}/{TODAY}")
            assert seen.status == 400


def test_a_free_key_has_two_years_of_history() -> None:
    path = "/v2/aggs/ticker/C:EURUSD/range/1/day/{}/2026-11-18"
    with standin("free") as api:
        assert ask(api, path.format("2024-11-20")).status == 200
        refused = ask(api, path.format("2024-11-10"))
    assert refused.status == 403
    assert str(refused.document["message"]).startswith(
        "Your plan doesn't include this data timeframe."
    )
    with standin("starter") as api:
        assert ask(api, path.format("2024-11-10")).status == 200


# ---------------------------------------------------------------------- shapes: the others

SESSION_KEYS = {
    "change", "change_percent", "close", "high", "low", "open", "volume", "previous_close"
}  # fmt: skip
QUOTE_KEYS = {
    "last_updated", "timeframe", "ask", "ask_exchange", "bid", "bid_exchange", "exchange"
}  # fmt: skip


class SnapshotRow(TypedDict, total=False):
    ticker: str
    type: str
    market_status: str
    error: str
    message: str
    session: Row
    last_quote: Row
    last_trade: Row


def snapshot(seen: Seen) -> dict[str, SnapshotRow]:
    rows: list[SnapshotRow] = json.loads(seen.body)["results"]
    return {row["ticker"]: row for row in rows}


def test_each_row_of_a_snapshot_has_its_own_result() -> None:
    with standin() as api:
        rows = snapshot(ask(api, SNAPSHOT))
    euro, bitcoin, typo = rows["C:EURUSD"], rows["X:BTCUSD"], rows["C:TYPO"]
    assert euro.keys() == {"market_status", "name", "ticker", "type", "session", "last_quote"}
    assert bitcoin.keys() == {"market_status", "name", "ticker", "type", "session", "last_trade"}
    assert typo == {"ticker": "C:TYPO", "error": "NOT_FOUND", "message": "Ticker not found."}
    assert (euro["type"], bitcoin["type"]) == ("fx", "crypto")
    assert euro["session"].keys() == SESSION_KEYS
    assert euro["last_quote"].keys() == QUOTE_KEYS
    last = replay.bars("C:EURUSD", WEDNESDAY - HOUR_MS, WEDNESDAY, WEDNESDAY)[-1]
    assert euro["last_quote"]["bid"] < last.close < euro["last_quote"]["ask"]
    assert euro["last_quote"]["last_updated"] == WEDNESDAY * 1_000_000
    assert bitcoin["last_trade"]["last_updated"] == WEDNESDAY * 1_000_000


def test_the_session_covers_the_utc_day_so_far() -> None:
    midnight = ms(TODAY)
    with standin() as api:
        session = snapshot(ask(api, SNAPSHOT))["C:EURUSD"]["session"]
    today = replay.bars("C:EURUSD", midnight, WEDNESDAY, WEDNESDAY)
    before = replay.bars("C:EURUSD", midnight - DAY_MS, midnight - 1, WEDNESDAY)[-1]
    assert session["open"] == today[0].open
    assert session["high"] == max(bar.high for bar in today)
    assert session["low"] == min(bar.low for bar in today)
    assert session["close"] == today[-1].close
    assert session["previous_close"] == before.close
    assert session["change"] == pytest.approx(today[-1].close - before.close)


def test_on_a_saturday_the_days_figures_are_zero_and_the_quote_is_fridays() -> None:
    with standin(now_ms=SATURDAY) as api:
        euro = snapshot(ask(api, SNAPSHOT))["C:EURUSD"]
        status = ask(api, "/v1/marketstatus/now").document
    assert euro["market_status"] == "closed"
    assert euro["session"]["open"] == euro["session"]["close"] == 0
    assert euro["session"]["previous_close"] > 0
    assert euro["last_quote"]["last_updated"] == ms("2026-11-20T22:00:00") * 1_000_000
    assert status["currencies"] == {"crypto": "open", "fx": "closed"}


def test_a_snapshot_has_ten_rows_by_default_and_links_to_the_rest() -> None:
    tickers = ",".join(f"C:AAA{number:03}" for number in range(25))
    with standin() as api:
        first = ask(api, f"/v3/snapshot?ticker.any_of={tickers}")
        second = ask(api, first.next_path)
        third = ask(api, second.next_path)
        too_many = ask(api, f"/v3/snapshot?ticker.any_of={tickers}&limit=251")
    assert [len(seen.rows) for seen in (first, second, third)] == [10, 10, 5]
    assert "next_url" not in third.document
    assert too_many.status == 400


def test_only_paid_plans_have_snapshots() -> None:
    with standin("free") as api:
        seen = ask(api, SNAPSHOT)
    assert seen.status == 403
    assert seen.document.keys() == {"status", "request_id", "message"}
    assert seen.document["status"] == "NOT_AUTHORIZED"
    assert str(seen.document["message"]).startswith("You are not entitled to this data.")


def test_the_reference_distinguishes_an_unknown_ticker_from_a_quiet_one() -> None:
    with standin("free") as api:
        known = ask(api, "/v3/reference/tickers/C:XAUUSD").document
        unknown = ask(api, "/v3/reference/tickers/C:TYPO")
    details = known["results"]
    assert isinstance(details, dict)
    assert details["market"] == "fx"
    assert details["base_currency_symbol"] == "XAU"
    assert unknown.status == 404
    assert unknown.document.keys() == {"status", "request_id", "message"}
    assert unknown.document["message"] == "Ticker not found."


def test_the_list_of_tickers_filters_and_pages() -> None:
    with standin() as api:
        first = ask(api, "/v3/reference/tickers?market=fx&limit=3")
        second = ask(api, first.next_path)
        found = ask(api, "/v3/reference/tickers?search=bitcoin")
        gone = ask(api, "/v3/reference/tickers?active=false")
    assert first.document["count"] == 3
    assert first.names("ticker") + second.names("ticker") == [
        "C:EURUSD", "C:GBPUSD", "C:USDJPY", "C:XAGUSD", "C:XAUUSD"
    ]  # fmt: skip
    assert "next_url" not in second.document
    assert found.names("ticker") == ["X:BTCUSD"]
    assert gone.rows == []


@pytest.mark.parametrize(
    ("query", "tickers"),
    [
        ("ticker=X:BTCUSD", ["X:BTCUSD"]),
        ("ticker=C%3AEURUSD&market=fx", ["C:EURUSD"]),
        ("ticker=C:EURUSD&market=crypto", []),
        ("ticker=C:TYPO", []),
        ("ticker=&market=crypto", ["X:BTCUSD", "X:ETHUSDT"]),
        ("market=stocks", []),
        ("type=CS", []),
        ("type=&market=crypto", ["X:BTCUSD", "X:ETHUSDT"]),
        ("search=GOLD", ["C:XAUUSD"]),
        ("search=tether&ticker=X:BTCUSD", []),
        ("ticker.gte=C:XAGUSD&ticker.lt=X:ETHUSDT", ["C:XAGUSD", "C:XAUUSD", "X:BTCUSD"]),
        ("ticker.gt=C:XAGUSD&ticker.lte=C:XAUUSD", ["C:XAUUSD"]),
        ("market=crypto&order=desc", ["X:ETHUSDT", "X:BTCUSD"]),
        ("market=crypto&sort=name&order=asc", ["X:BTCUSD", "X:ETHUSDT"]),
        ("sort=base_currency_symbol&limit=2", ["X:BTCUSD", "X:ETHUSDT"]),
        ("sort=base_currency_symbol&order=desc&limit=1", ["C:XAUUSD"]),
        ("active=true&market=crypto&limit=1", ["X:BTCUSD"]),
        ("active=false", []),
    ],
)
def test_the_list_of_tickers_obeys_its_filters(query: str, tickers: list[str]) -> None:
    with standin() as api:
        assert ask(api, f"/v3/reference/tickers?{query}").names("ticker") == tickers


@pytest.mark.parametrize("query", ["sort=price", "order=up", "limit=0"])
def test_an_unknown_filter_gets_a_400(query: str) -> None:
    with standin() as api:
        assert ask(api, f"/v3/reference/tickers?{query}").status == 400


def test_pages_of_the_list_keep_filters_and_order() -> None:
    with standin() as api:
        first = ask(api, "/v3/reference/tickers?market=fx&sort=ticker&order=desc&limit=3")
        second = ask(api, first.next_path)
    assert first.names("ticker") + second.names("ticker") == [
        "C:XAUUSD", "C:XAGUSD", "C:USDJPY", "C:GBPUSD", "C:EURUSD"
    ]  # fmt: skip


def test_an_unknown_path_is_answered_in_plain_text() -> None:
    with standin() as api:
        seen = ask(api, "/v9/everything")
    assert (seen.status, seen.body.strip()) == (404, b"404 page not found")
    assert seen.headers["Content-Type"].startswith("text/plain")


# ---------------------------------------------------------------------- keys and HTTP


@pytest.mark.parametrize(
    ("authorization", "in_url", "sentence"),
    [
        (None, "", "API Key was not provided"),
        ("Basic ZGVtbw==", "", "API Key was not provided"),
        ("Bearer ", "", "API Key was not provided"),
        ("Bearer wrong", "", "Unknown API Key"),
        (None, "?apiKey=wrong", "Unknown API Key"),
    ],
)
def test_a_request_without_the_key_is_refused_and_not_counted(
    authorization: str | None, in_url: str, sentence: str
) -> None:
    with standin("free") as api:
        for _ in range(10):
            seen = ask(api, EURO_BARS + in_url, authorization=authorization)
            assert (seen.status, seen.document["error"]) == (401, sentence)
        assert ask(api, EURO_BARS).status == 200
        assert api.most_in_a_window() == 1
        assert [arrival.key_ok for arrival in api.log] == [False] * 10 + [True]


def test_a_key_in_the_url_works_and_is_not_logged() -> None:
    with standin() as api:
        assert ask(api, f"{EURO_BARS}?sort=asc&apiKey=demo-key", authorization=None).status == 200
        (arrival,) = api.log
    assert arrival.method_path == f"GET {EURO_BARS}?sort=asc"


def test_large_answers_are_compressed_if_the_client_accepts_that() -> None:
    with standin() as api:
        packed = ask(api, EURO_BARS, gzip_too=True)
        plain = ask(api, EURO_BARS)
        small = ask(api, "/v3/reference/tickers/C:EURUSD", gzip_too=True)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 2
    assert json.loads(gzip.decompress(packed.body))["results"] == plain.rows
    assert "Content-Encoding" not in plain.headers
    assert "Content-Encoding" not in small.headers


def test_one_connection_serves_many_calls() -> None:
    with standin() as api, closing(connect(api)) as connection:
        for _ in range(3):
            connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            assert connection.getresponse().read()
            address = connection.sock.getsockname()
        assert connection.sock.getsockname() == address
        assert len(api.log) == 3


def test_a_client_that_leaves_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    with standin("starter", "huge") as api:
        with closing(connect(api)) as connection:
            connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            assert connection.getresponse().read(10)
        api.set_faults([])
        assert ask(api, EURO_BARS).status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["stall", "drip", "huge"])
def test_the_stand_in_stops_within_a_second_even_if_a_request_hangs(fault: str) -> None:
    before = threading.active_count()
    with StandIn("starter", faults=[fault]) as api, closing(connect(api)) as connection:
        connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
        deadline = time.monotonic() + 5
        while not api.log:
            assert time.monotonic() < deadline
        began = time.monotonic()
        api.stop()
        assert time.monotonic() - began < 1
    assert threading.active_count() == before


def test_the_stand_in_stops_without_waiting_for_the_latency() -> None:
    threads = threading.active_count()
    with standin(latency=60) as api, closing(connect(api)) as connection:
        connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
        deadline = time.monotonic() + 5
        while threading.active_count() < threads + 2:  # the server's and the connection's
            assert time.monotonic() < deadline
        began = time.monotonic()
        api.stop()
        assert time.monotonic() - began < 1
    assert threading.active_count() == threads


def test_an_idle_connection_does_not_delay_the_stop() -> None:
    with standin() as api, create_connection(("127.0.0.1", int(api.base_url.rsplit(":")[-1]))):
        began = time.monotonic()
        api.stop()
        assert time.monotonic() - began < 1


def test_a_port_in_use_and_an_unknown_plan_are_reported_in_a_sentence() -> None:
    with standin() as api:
        port = int(api.base_url.rsplit(":", 1)[1])
        with pytest.raises(StandInError, match=f"cannot listen on port {port}"):
            StandIn(port=port).start()
    with pytest.raises(StandInError, match="free, starter, developer, advanced"):
        StandIn("gold")
    with pytest.raises(StandInError, match="not running"):
        _ = StandIn().base_url


# ---------------------------------------------------------------------- the window


def test_the_window_is_strict_and_slides() -> None:
    clock = Clock(0.0)
    with StandIn("free", monotonic=clock) as api:

        def at(seconds: float) -> int:
            clock.seconds = seconds
            return ask(api, EURO_BARS).status

        # Five calls early and five late in one minute: a calendar window would allow all ten.
        assert [at(t) for t in (50, 51, 52, 53, 54)] == [200] * 5
        assert at(109.999) == 429
        # The refused call counts too: at 110 the first call has left the window and it has not.
        assert at(110.0) == 429
        # 52, 53, 54 and the two refused calls are in the window; 51 left it at 111.
        assert at(111.5) == 429
        assert at(174.0) == 200
        assert api.refused == 3
        assert api.most_in_a_window() == 6


def test_a_call_exactly_one_period_later_is_allowed() -> None:
    clock = Clock(0.0)
    with StandIn("free", calls=1, period_seconds=10, monotonic=clock) as api:
        statuses = []
        for clock.seconds in (0.0, 10.0, 20.0, 29.9):
            statuses += [ask(api, EURO_BARS).status]
    assert statuses == [200, 200, 200, 429]


def test_every_answer_counts_for_the_window_whatever_its_status() -> None:
    with standin("free") as api:
        for target in (SNAPSHOT, "/nowhere", "/v3/reference/tickers/C:TYPO", EURO_BARS, EURO_BARS):
            assert ask(api, target).status != 429
        refused = ask(api, EURO_BARS)
    assert refused.status == 429
    assert refused.document.keys() == {"status", "request_id", "error"}
    assert str(refused.document["error"]).startswith(
        "You've exceeded the maximum requests per minute"
    )
    assert "Retry-After" not in refused.headers


def test_many_clients_at_once_get_no_more_than_the_window() -> None:
    statuses: list[int] = []
    with standin("free", latency=0.01) as api:
        clients = [
            threading.Thread(target=lambda: statuses.append(ask(api, EURO_BARS).status))
            for _ in range(20)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert api.most_in_a_window() == 20
        assert api.refused == 15
    assert sorted(statuses) == [200] * 5 + [429] * 15


def test_paid_plans_allow_a_hundred_a_second() -> None:
    assert {(PLANS[name].calls, PLANS[name].period_seconds) for name in list(PLANS)[1:]} == {
        (100, 1.0)
    }


def test_half_of_the_latency_passes_before_the_arrival_and_half_after_it() -> None:
    with standin(latency=0.08) as api:
        sent = time.monotonic()
        ask(api, EURO_BARS)
        received = time.monotonic()
        (arrival,) = api.log
    assert arrival.at_seconds - sent >= 0.04
    assert received - arrival.at_seconds >= 0.04


# ---------------------------------------------------------------------- the log


def test_the_log_has_each_request_with_its_answer() -> None:
    with standin() as api:
        ask(api, f"{EURO_BARS}?limit=10")
        ask(api, SNAPSHOT)
        ask(api, "/v1/marketstatus/now")
        log, by_ticker = api.log, api.calls_by_ticker()
    assert [(arrival.ticker, arrival.status) for arrival in log] == [
        ("C:EURUSD", 200),
        ("C:EURUSD,X:BTCUSD,C:TYPO", 200),
        (None, 200),
    ]
    assert log[0].method_path == f"GET {EURO_BARS}?limit=10"
    assert by_ticker == {"C:EURUSD": 2, "X:BTCUSD": 1, "C:TYPO": 1}


def test_other_processes_can_read_the_log_without_a_key_and_without_a_call() -> None:
    with standin("free") as api:
        for _ in range(7):
            ask(api, EURO_BARS)
        document = ask(api, "/_standin/log", authorization=None).document
        assert len(api.log) == 7
    arrivals = document["arrivals"]
    assert isinstance(arrivals, list)
    assert arrivals[0].keys() == {"at_seconds", "method_path", "ticker", "status", "key_ok"}
    assert [document[key] for key in ("refused", "most_in_a_window", "calls_by_ticker")] == [
        2,
        7,
        {"C:EURUSD": 7},
    ]


def test_other_processes_can_set_the_faults() -> None:
    with standin("starter", "server-error") as api:
        assert ask(api, "/_standin/faults", post='["html"]', authorization=None).status == 200
        assert ask(api, EURO_BARS).headers["Content-Type"] == "text/html"
        for bad in ('["nonsense"]', '{"a": 1}', "[1]", "not json"):
            assert ask(api, "/_standin/faults", post=bad).status == 400
        assert ask(api, EURO_BARS).headers["Content-Type"] == "text/html"
        assert ask(api, "/_standin/faults", post="[]").status == 200
        assert ask(api, EURO_BARS).rows
        assert ask(api, "/_standin/faults").status == 404
        assert ask(api, EURO_BARS, post="[]").status == 404


# ---------------------------------------------------------------------- a plan that changes


def test_after_a_subscription_lapses_the_key_has_the_free_plan() -> None:
    with StandIn("starter", clock=Clock(WEDNESDAY / 1000), monotonic=Clock(0.0)) as api:
        assert [ask(api, SNAPSHOT).status for _ in range(3)] == [200] * 3
        assert ask(api, "/_standin/plan", post='"free"', authorization=None).status == 200
        assert ask(api, SNAPSHOT).status == 403  # this is the fourth of five calls in the window
        assert ask(api, EURO_BARS).document["status"] == "DELAYED"
        refused = ask(api, EURO_BARS)
        assert ask(api, "/_standin/plan", post='"platinum"').status == 400
        assert ask(api, "/_standin/plan", post="[]").status == 400
    assert refused.status == 429
    assert "Retry-After" not in refused.headers


def test_a_plan_that_changes_may_have_a_window_of_its_own() -> None:
    clock = Clock(0.0)
    with StandIn("starter", calls=3, period_seconds=10, monotonic=clock) as api:
        assert ask(api, EURO_BARS).status == 200
        api.set_plan("free", calls=1, period_seconds=6)
        assert ask(api, EURO_BARS).status == 429
        clock.seconds = 6.5
        assert ask(api, EURO_BARS).status == 200
        assert api.most_in_a_window() == 2


# ---------------------------------------------------------------------- an API that freezes


def test_an_api_that_was_frozen_reads_counts_and_answers_everything_it_was_sent() -> None:
    clock = Clock(100.0)
    with StandIn("free", calls=5, period_seconds=6, monotonic=clock) as api:
        api.freeze(8.5)
        with closing(connect(api, timeout=0.1)) as gone:
            gone.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            with pytest.raises(TimeoutError):
                gone.getresponse()
        with closing(connect(api)) as patient:
            patient.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            assert api.log == []
            clock.seconds = 108.4
            assert api.log == []
            clock.seconds = 108.5
            assert patient.getresponse().status == 200
        wait_for(lambda: len(api.log) == 2)
        assert {arrival.at_seconds for arrival in api.log} == {108.5}
        assert api.most_in_a_window() == 2


def test_a_connection_that_was_reset_during_a_freeze_counts_too() -> None:
    clock = Clock(0.0)
    was_read = threading.Event()

    def latency(_: random.Random) -> float:
        was_read.set()
        return 0.0

    with StandIn("free", monotonic=clock, latency=latency) as api:
        api.freeze(1)
        port = int(api.base_url.rsplit(":")[-1])
        with create_connection(("127.0.0.1", port)) as connection:
            head = f"GET {EURO_BARS} HTTP/1.1\r\nAuthorization: Bearer demo-key\r\n\r\n"
            connection.sendall(head.encode())
            assert was_read.wait(5)
            connection.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
        assert api.log == []
        clock.seconds = 1
        wait_for(lambda: len(api.log) == 1)


def test_other_processes_can_freeze_the_stand_in_and_it_can_still_be_stopped() -> None:
    with standin() as api:
        assert ask(api, "/_standin/freeze", post="60", authorization=None).status == 200
        for bad in ('"long"', "-1", "Infinity", "NaN", "[]"):
            assert ask(api, "/_standin/freeze", post=bad).status == 400
        with closing(connect(api)) as connection:
            connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            began = time.monotonic()
            api.stop()
            assert time.monotonic() - began < 1


def test_a_call_counts_even_if_its_client_left_before_it_arrived() -> None:
    with standin("free", latency=0.4) as api:
        with closing(connect(api)) as connection:
            connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
        wait_for(lambda: len(api.log) == 1)


# ---------------------------------------------------------------------- faults

REFUSALS = {
    "rate-limit": (429, "You've exceeded the maximum requests per minute"),
    "rate-limit-empty": (429, ""),
    "rate-limit-retry-after": (429, "You've exceeded the maximum requests per minute"),
    "key-revoked": (401, "Unknown API Key"),
    "forbidden": (403, "You are not entitled to this data."),
    "today": (403, "Attempted to request today's data before end of day."),
    "timeframe": (403, "Your plan doesn't include this data timeframe."),
    "not-found": (404, "Data not found."),
    "server-error": (500, ""),
    "bad-gateway": (502, "<html>"),
    "html": (200, "<!doctype html>"),
    "redirect": (302, ""),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusing_fault_replaces_the_answer_by_a_refusal(name: str) -> None:
    status, start = REFUSALS[name]
    with standin("starter", name) as api:
        seen = ask(api, EURO_BARS)
        assert [arrival.status for arrival in api.log] == [status]
    assert seen.status == status
    if seen.headers["Content-Type"] == "application/json" and seen.body:
        sentence = seen.document.get("error") or seen.document["message"]
        assert str(sentence).startswith(start)
    else:
        assert seen.body.decode().startswith(start)
        assert bool(seen.body) == bool(start)


def test_the_fault_with_retry_after_names_a_whole_window() -> None:
    with StandIn("free", period_seconds=9.5, faults=["rate-limit-retry-after"]) as api:
        assert ask(api, EURO_BARS).headers["Retry-After"] == "10"


def test_the_fault_redirect_points_to_another_host() -> None:
    with standin("starter", "redirect") as api:
        assert ask(api, EURO_BARS).headers["Location"].startswith("https://stand-in.invalid/")


def test_a_revoked_key_is_refused_without_counting_for_the_window() -> None:
    with standin("free", "key-revoked") as api:
        assert {ask(api, EURO_BARS).status for _ in range(8)} == {401}
        assert api.most_in_a_window() == 0


def test_today_is_refused_only_if_the_range_includes_today() -> None:
    with standin("starter", "today:1") as api:
        until_yesterday = EURO_BARS.replace(TODAY, YESTERDAY)
        assert ask(api, until_yesterday).status == 200
        assert ask(api, "/v1/marketstatus/now").status == 200
        assert ask(api, EURO_BARS).status == 403
        assert ask(api, EURO_BARS).status == 200


def bars_with(fault: str) -> tuple[list[Row], list[Row]]:
    """Return the correct rows and the spoiled ones."""
    with standin("starter", f"{fault}@C:EURUSD") as api:
        spoiled = ask(api, EURO_BARS).rows
        api.set_faults([])
        return ask(api, EURO_BARS).rows, spoiled


FIGURES: dict[str, Callable[[Row, Row], bool]] = {
    "nan": lambda _, bad: math.isnan(bad["c"]),
    "infinity": lambda _, bad: math.isinf(bad["c"]),
    "negative": lambda right, bad: bad["c"] == -right["c"],
    "high-below-low": lambda _, bad: bad["h"] < bad["l"],
    "future": lambda right, bad: bad["t"] == right["t"] + DAY_MS,
}


@pytest.mark.parametrize("name", FIGURES)
def test_faults_of_bars_spoil_only_the_newest_bar(name: str) -> None:
    right, spoiled = bars_with(name)
    assert FIGURES[name](right[-1], spoiled[-1])
    assert spoiled[:-1] == right[:-1]


NOT_ENTITLED = {
    "ticker": "X:BTCUSD",
    "error": "NOT_ENTITLED",
    "message": "Not entitled to this ticker.",
}

PRICES: dict[str, Callable[[SnapshotRow], bool]] = {
    "nan": lambda row: (
        math.isnan(row["last_trade"]["price"]) and math.isnan(row["session"]["close"])
    ),
    "infinity": lambda row: math.isinf(row["last_trade"]["price"]),
    "negative": lambda row: row["last_trade"]["price"] < 0,
    "high-below-low": lambda row: row["session"]["high"] < row["session"]["low"],
    "future": lambda row: row["last_trade"]["last_updated"] > WEDNESDAY * 1_000_000,
    "other-ticker": lambda row: row["ticker"] == OTHER_TICKER,
    "not-entitled": lambda row: row == NOT_ENTITLED,
}


@pytest.mark.parametrize("name", PRICES)
def test_faults_of_figures_spoil_a_snapshot_too(name: str) -> None:
    with standin("starter", f"{name}@X:BTCUSD") as api:
        seen = ask(api, "/v3/snapshot?ticker.any_of=C:EURUSD,X:BTCUSD&limit=250")
    rows: list[SnapshotRow] = json.loads(seen.body)["results"]
    assert PRICES[name](rows[-1])


def test_the_fault_unordered_changes_only_the_order_of_rows() -> None:
    right, spoiled = bars_with("unordered")
    assert spoiled != right
    assert sorted(spoiled, key=lambda row: row["t"]) == right


def test_the_fault_duplicate_sends_the_older_version_of_the_bar_first() -> None:
    right, spoiled = bars_with("duplicate")
    assert spoiled[:-2] == right[:-1]
    assert spoiled[-1] == right[-1]
    assert spoiled[-2] == {**right[-1], "c": right[-1]["o"]}


def test_a_fault_answers_for_another_ticker() -> None:
    with standin("starter", "other-ticker") as api:
        assert ask(api, EURO_BARS).document["ticker"] == OTHER_TICKER


def test_the_fault_empty_has_the_shape_of_the_apis_empty_answer() -> None:
    with standin("starter", "empty") as api:
        document = ask(api, EURO_BARS).document
    assert "results" not in document
    assert document["resultsCount"] == document["queryCount"] == document["count"] == 0


def test_the_fault_end_of_day_ends_the_bars_yesterday() -> None:
    with standin("free", "end-of-day") as api:
        rows = ask(api, EURO_BARS).rows
        today = ask(api, EURO_BARS.replace(YESTERDAY, TODAY)).document
        (before,) = ask(api, "/v2/aggs/ticker/C:EURUSD/prev").rows
    assert rows[-1]["t"] == ms(TODAY) - BAR_MS
    assert "results" not in today
    assert today["resultsCount"] == 0
    assert before["t"] == ms(TODAY) - 1


def test_a_fault_empties_an_assets_five_minute_bars_and_not_its_minute_bars() -> None:
    with standin("free", "five-minutes-empty@C:EURUSD") as api:
        assert ask(api, EURO_BARS).document["resultsCount"] == 0
        assert ask(api, EURO_BARS.replace("/5/", "/1/")).rows
        assert ask(api, EURO_BARS.replace("C:EURUSD", "C:GBPUSD")).rows


def test_only_a_snapshot_can_have_rows_outside_of_the_plan() -> None:
    right, same = bars_with("not-entitled")
    assert same == right


def test_a_fault_sends_rows_of_an_undocumented_shape() -> None:
    with standin("starter", "wrong-shape") as api:
        assert isinstance(json.loads(ask(api, EURO_BARS).body)["results"], dict)


def test_a_fault_cuts_the_json_off_in_the_middle() -> None:
    with standin("starter", "bad-json") as api, pytest.raises(json.JSONDecodeError):
        _ = ask(api, EURO_BARS).document


def test_a_fault_sends_a_body_shorter_than_announced() -> None:
    with standin("starter", "truncated") as api, pytest.raises(http.client.IncompleteRead):
        ask(api, EURO_BARS)


def test_the_fault_reset_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with standin("starter", "reset") as api:
        with pytest.raises(ConnectionResetError) as caught:
            ask(api, EURO_BARS)
        # http.client also reports a normal close without an answer as a reset.
        assert caught.value.errno == errno.ECONNRESET
        assert [arrival.status for arrival in api.log] == [0]
    assert capfd.readouterr().err == ""


def test_the_fault_stall_lasts_until_the_client_gives_up() -> None:
    threads = threading.active_count()
    with standin("starter", "stall") as api:
        with closing(connect(api, timeout=0.15)) as connection:
            connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
            with pytest.raises(TimeoutError):
                connection.getresponse()
        assert [arrival.status for arrival in api.log] == [0]
    assert threading.active_count() == threads


def test_the_fault_drip_never_ends_and_never_lets_a_read_time_out() -> None:
    with standin("starter", "drip") as api, closing(connect(api, timeout=1)) as connection:
        connection.request("GET", EURO_BARS, headers={"Authorization": "Bearer demo-key"})
        answer = connection.getresponse()
        assert answer.read(3) == b"   "
        assert answer.length is not None
        assert answer.length > 100_000


def test_the_fault_huge_sends_a_hundred_megabytes_of_json() -> None:
    with standin("starter", "huge") as api:
        body = ask(api, EURO_BARS).body
    assert len(body) == 100 * 1024 * 1024
    assert body.startswith(b'{"status":"OK","results":[ ')
    assert body.endswith(b" ]}")


def test_the_fault_gzip_bomb_sends_few_bytes_that_unpack_to_many() -> None:
    with standin("starter", "gzip-bomb") as api:
        seen = ask(api, EURO_BARS)
    assert seen.headers["Content-Encoding"] == "gzip"
    assert len(seen.body) < 2_000_000
    unfolded, left = 0, seen.body
    while left:
        member = zlib.decompressobj(wbits=31)
        unfolded += len(member.decompress(left))
        left = member.unused_data
        if unfolded > 64 * 1024 * 1024:
            break
    assert unfolded > 64 * 1024 * 1024


def test_a_fault_sends_pages_without_end() -> None:
    with standin("starter", "endless-next-url") as api:
        target, seen_before = EURO_BARS, set()
        for _ in range(5):
            seen = ask(api, target)
            assert seen.rows
            target = seen.next_path
            assert target not in seen_before
            seen_before.add(target)


def test_a_fault_links_the_next_page_to_another_host_without_the_key() -> None:
    with standin("starter", "foreign-next-url") as api:
        url = str(ask(api, EURO_BARS).document["next_url"])
        assert url.startswith("https://stand-in.invalid/v2/aggs/")
        assert "demo-key" not in url
        second = ask(api, url.removeprefix("https://stand-in.invalid"))
    assert second.rows
    assert "next_url" not in second.document


def test_the_list_of_tickers_is_the_same_in_short_pages() -> None:
    with standin("starter", "short-pages") as api:
        seen = ask(api, "/v3/reference/tickers?market=fx&active=true&limit=1000")
        pages = [seen.names("ticker")]
        while "next_url" in seen.document:
            seen = ask(api, seen.next_path)
            pages.append(seen.names("ticker"))
    assert pages == [["C:EURUSD", "C:GBPUSD"], ["C:USDJPY", "C:XAGUSD"], ["C:XAUUSD"]]


def test_a_request_refused_by_a_full_window_uses_up_no_fault() -> None:
    clock = Clock(0.0)
    with StandIn("free", calls=1, monotonic=clock) as api:
        assert ask(api, EURO_BARS).status == 200
        api.set_faults(["html:1"])
        assert ask(api, EURO_BARS).status == 429
        clock.seconds = 61
        assert ask(api, EURO_BARS).headers["Content-Type"] == "text/html"


def test_a_fault_can_be_limited_to_a_number_of_times_and_to_a_ticker() -> None:
    with standin("starter", "server-error:2@C:EURUSD", "bad-gateway@X:BTCUSD") as api:
        gold, bitcoin = (EURO_BARS.replace("C:EURUSD", t) for t in ("C:XAUUSD", "X:BTCUSD"))
        assert [ask(api, gold).status for _ in range(3)] == [200] * 3
        assert [ask(api, EURO_BARS).status for _ in range(3)] == [500, 500, 200]
        assert [ask(api, bitcoin).status for _ in range(3)] == [502] * 3
        assert ask(api, SNAPSHOT).status == 502  # bitcoin is one of several assets in the request


@pytest.mark.parametrize(
    "spec", ["", "nonsense", "stall:0", "stall:-1", "stall:x", "stall@", "stall@C:A:B C"]
)
def test_an_unknown_fault_is_reported_in_a_sentence_that_lists_the_names(spec: str) -> None:
    with pytest.raises(StandInError) as caught:
        FaultPlan([spec])
    assert all(name in str(caught.value) for name in FAULTS)


def test_every_fault_is_described_and_has_its_test() -> None:
    elsewhere = {
        "unordered", "duplicate", "other-ticker", "empty", "bad-json", "truncated", "reset",
        "stall", "drip", "huge", "gzip-bomb", "endless-next-url", "foreign-next-url",
        "short-pages", "not-entitled", "wrong-shape", "end-of-day", "five-minutes-empty",
    }  # fmt: skip
    assert set(FAULTS) == set(REFUSALS) | set(FIGURES) | elsewhere
    assert all(fault.about for fault in FAULTS.values())
