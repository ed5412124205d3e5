"""The result of each answer that the provider may give. All figures are invented."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import responses

from asset_sync import __version__
from asset_sync.demo.server import StandIn
from asset_sync.errors import AssetSyncError
from asset_sync.model import AssetType
from asset_sync.provider.access import Access
from asset_sync.provider.answers import Bar, BarsAnswer, Flaw, LeftOut, Listed, TickersAnswer
from asset_sync.provider.deadline import Session
from asset_sync.provider.errors import (
    Cause,
    FeedDenied,
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    Rejected,
    TickerUnknown,
    TimeRangeDenied,
    Unavailable,
    Unreadable,
)
from asset_sync.provider.polygon import endpoints
from asset_sync.provider.polygon.client import Polygon
from asset_sync.secret import Secret

KEY = "pk_never_to_be_shown_0123456789"
BASE = "https://api.example.test"

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
END = START + timedelta(hours=1)
T0 = 1_772_452_800_000  # START
T1, T2 = T0 + 300_000, T0 + 600_000


def polygon(base_url: str = BASE, *, read: float = 5.0, call: float = 10.0) -> Polygon:
    return Polygon(
        Access(
            base_url=base_url,
            key=Secret(KEY),
            connect_timeout_seconds=5.0,
            read_timeout_seconds=read,
            call_timeout_seconds=call,
        )
    )


def bars(api: Polygon) -> BarsAnswer:
    return api.bars("C:EURUSD", START, END)


def failure(call: Callable[[], object]) -> ProviderError:
    """Return the error that `call` raises, and check that it does not contain the key."""
    with pytest.raises(ProviderError) as caught:
        call()
    error: BaseException | None = caught.value
    assert error is not None
    text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert KEY not in text
    while error is not None:
        assert KEY not in str(error)
        assert KEY not in repr(error)
        assert KEY not in repr(vars(error))
        error = error.__cause__ or error.__context__
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 500
    return caught.value


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def api() -> Iterator[Polygon]:
    with polygon() as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def answers(
    server: responses.RequestsMock,
    body: object,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Make the server answer with `body`: a string unchanged, anything else as JSON."""
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    server.add(responses.GET, re.compile(".*"), body=text, status=status, headers=headers)


def bar(start: object = T0, **other: object) -> dict[str, object]:
    return {
        "t": start, "o": 1.10, "h": 1.12, "l": 1.09, "c": 1.11, "v": 40, "vw": 1.105, "n": 40,
    } | other  # fmt: skip


def aggregates(*rows: object, **other: object) -> dict[str, object]:
    return {
        "ticker": "C:EURUSD",
        "queryCount": len(rows),
        "resultsCount": len(rows),
        "adjusted": True,
        "results": list(rows),
        "status": "OK",
        "request_id": "r",
        "count": len(rows),
    } | other


# --- Requests --------------------------------------------------------------------------------


def test_a_request_for_bars_has_unix_milliseconds_and_the_largest_limit() -> None:
    assert endpoints.bars("C:EURUSD", START, END) == (
        f"/v2/aggs/ticker/C:EURUSD/range/5/minute/{T0}/{T0 + 3_600_000}"
        "?adjusted=true&sort=asc&limit=50000"
    )


def test_times_in_a_request_are_exact_to_the_millisecond() -> None:
    start = START + timedelta(microseconds=999_999)
    assert f"/{T0 + 999}/" in endpoints.bars("C:EURUSD", start, END)


def test_a_request_for_a_snapshot_has_its_tickers_and_the_limit() -> None:
    endpoint = endpoints.snapshot(["C:EURUSD", "X:BTCUSD"])
    assert endpoint == "/v3/snapshot?ticker.any_of=C:EURUSD,X:BTCUSD&limit=250"


@pytest.mark.parametrize("count", [0, 251])
def test_a_snapshot_of_no_or_more_than_250_tickers_is_refused(
    api: Polygon, server: responses.RequestsMock, count: int
) -> None:
    with pytest.raises(ValueError, match=f"1 to 250 tickers, not {count}"):
        api.snapshots(["C:EURUSD"] * count)
    assert len(server.calls) == 0


def test_a_ticker_cannot_change_the_path_of_the_address() -> None:
    assert endpoints.reference("C:A/../?x=1&y#z %") == (
        "/v3/reference/tickers/C:A%2F..%2F%3Fx%3D1%26y%23z%20%25"
    )
    assert "&limit=1&" not in endpoints.snapshot(["C:A&limit=1&"])


def test_the_key_is_sent_only_in_the_header(api: Polygon, server: responses.RequestsMock) -> None:
    answers(server, aggregates(bar()))
    bars(api)
    [call] = server.calls
    assert call.request.headers["Authorization"] == f"Bearer {KEY}"
    assert call.request.url == BASE + endpoints.bars("C:EURUSD", START, END)
    assert call.request.headers["User-Agent"] == f"asset-sync/{__version__}"
    assert call.request.headers["Accept-Encoding"] == "gzip"


def test_the_certificate_is_verified(
    api: Polygon, server: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # the user's own certificate authorities
        monkeypatch.delenv(name, raising=False)
    answers(server, aggregates(bar()))
    bars(api)
    assert vars(server.calls[0].request)["req_kwargs"]["verify"] is True


def test_a_netrc_does_not_replace_the_key(
    server: responses.RequestsMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.example.test login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    answers(server, aggregates(bar()))
    with polygon() as api:
        bars(api)
    assert server.calls[0].request.headers["Authorization"] == f"Bearer {KEY}"


def test_the_key_is_in_no_repr(api: Polygon) -> None:
    assert repr(api) == "<Polygon at api.example.test>"
    assert KEY not in repr(vars(api))


def test_a_slash_at_the_end_of_the_base_url_changes_nothing(server: responses.RequestsMock) -> None:
    answers(server, aggregates())
    with polygon(BASE + "/") as api:
        bars(api)
    assert server.calls[0].request.url == BASE + endpoints.bars("C:EURUSD", START, END)


# --- Bars ------------------------------------------------------------------------------------


def test_a_bar_is_read_with_exactly_the_figures_sent(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(T0), bar(T1, o=1, h=2, l=1, c=2)))
    assert bars(api) == BarsAnswer(
        ticker="C:EURUSD",
        bars=(
            Bar(T0, 1.10, 1.12, 1.09, 1.11, 40.0, 1.105, 40),
            Bar(T1, 1.0, 2.0, 1.0, 2.0, 40.0, 1.105, 40),
        ),
        complete=True,
    )
    assert len(server.calls) == 1


def test_a_delayed_answer_of_the_free_plan_is_accepted(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(), status="DELAYED"))
    assert len(bars(api).bars) == 1


@pytest.mark.parametrize(
    "empty",
    [
        {"ticker": "C:EURUSD", "resultsCount": 0, "adjusted": True, "status": "OK"},
        {"ticker": "C:EURUSD", "resultsCount": 0, "status": "OK", "results": None},
        {"ticker": "C:EURUSD", "resultsCount": 0, "status": "DELAYED", "results": []},
        {"resultsCount": 0, "status": "OK"},
    ],
)
def test_an_empty_answer_is_accepted(
    api: Polygon, server: responses.RequestsMock, empty: dict[str, object]
) -> None:
    answers(server, empty)
    assert bars(api) == BarsAnswer("C:EURUSD", (), complete=True)


@pytest.mark.parametrize(
    "mute",
    [
        {"status": "OK"},
        {"ticker": "C:EURUSD", "status": "OK"},
        {"ticker": "C:EURUSD", "resultsCount": 4, "status": "OK"},
        {"ticker": "C:EURUSD", "resultsCount": 4, "status": "OK", "results": []},
        {"ticker": "C:EURUSD", "resultsCount": None, "status": "OK", "results": None},
        {"ticker": "C:EURUSD", "resultsCount": False, "status": "OK"},
        {"ticker": "C:EURUSD", "resultsCount": "0", "status": "DELAYED", "results": []},
        {"ticker": "C:EURUSD", "resultsCount": 0, "status": "OK", "results": "moved"},
    ],
    ids=str,
)
def test_an_answer_without_bars_and_without_a_count_of_zero_is_unreadable(
    api: Polygon, server: responses.RequestsMock, mute: dict[str, object]
) -> None:
    answers(server, mute)
    error = failure(lambda: bars(api))
    assert type(error) is Unreadable
    assert "C:EURUSD" in str(error)


def test_bars_are_sorted_and_of_two_with_the_same_start_the_later_one_is_kept(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(T2), bar(T0, c=1.09), bar(T1), bar(T0, c=1.12)))
    answer = bars(api)
    assert [(b.start_ms, b.close) for b in answer.bars] == [(T0, 1.12), (T1, 1.11), (T2, 1.11)]
    assert answer.left_out == ()


def test_vwap_and_trades_may_be_missing_and_volume_may_have_an_exponent(
    api: Polygon, server: responses.RequestsMock
) -> None:
    row = f'{{"t":{T0},"o":1,"h":2,"l":1,"c":2,"v":1.029145e+06}}'
    answers(server, f'{{"ticker":"C:EURUSD","status":"OK","results":[{row}]}}')
    assert bars(api).bars == (Bar(T0, 1.0, 2.0, 1.0, 2.0, 1_029_145.0, None, None),)


@pytest.mark.parametrize("rubbish", [0, -1, "1.1", None, True, [], 10**400])
def test_a_vwap_that_is_no_positive_number_is_read_as_none(
    api: Polygon, server: responses.RequestsMock, rubbish: object
) -> None:
    answers(server, aggregates(bar(vw=rubbish)))
    assert bars(api).bars[0].vwap is None


@pytest.mark.parametrize("rubbish", [-1, "4", None, True, 10**12, 10**400])
def test_a_number_of_trades_that_the_column_cannot_hold_is_read_as_none(
    api: Polygon, server: responses.RequestsMock, rubbish: object
) -> None:
    answers(server, aggregates(bar(n=rubbish)))
    assert bars(api).bars[0].trades is None


def test_a_next_url_is_reported_and_never_followed(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(), next_url="https://elsewhere.test/v2/aggs?cursor=x"))
    answer = bars(api)
    assert answer.complete is False
    assert len(answer.bars) == 1
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("impossible", "flaw"),
    [
        pytest.param(bar(T1, c=float("nan")), Flaw.UNREADABLE, id="NaN"),
        pytest.param(bar(T1, h=float("inf")), Flaw.UNREADABLE, id="infinite"),
        pytest.param(bar(T1, o="1.1"), Flaw.UNREADABLE, id="text for a number"),
        pytest.param(bar(T1, o=True), Flaw.UNREADABLE, id="bool for a number"),
        pytest.param(bar(T1, o=None), Flaw.UNREADABLE, id="null"),
        pytest.param(bar(T1, o=10**400), Flaw.UNREADABLE, id="larger than any float"),
        pytest.param(bar(T1, v=-1), Flaw.VOLUME, id="negative volume"),
        pytest.param(bar(T1, v=1e300), Flaw.VOLUME, id="volume of 1e300"),
        pytest.param(bar(T1, v="many"), Flaw.UNREADABLE, id="text for a volume"),
        pytest.param(bar("soon"), Flaw.UNREADABLE, id="text for a time"),
        pytest.param(bar(float(T1)), Flaw.UNREADABLE, id="float for a time"),
        pytest.param(bar(True), Flaw.UNREADABLE, id="bool for a time"),  # noqa: FBT003
        pytest.param({"o": 1}, Flaw.UNREADABLE, id="no time"),
        pytest.param({"t": T1}, Flaw.UNREADABLE, id="nothing but a time"),
        pytest.param(17, Flaw.UNREADABLE, id="no object"),
        pytest.param(None, Flaw.UNREADABLE, id="null row"),
        pytest.param([bar(T1)], Flaw.UNREADABLE, id="list"),
        pytest.param(bar(T1, l=-1.0), Flaw.PRICE, id="negative price"),
        pytest.param(bar(T1, o=0), Flaw.PRICE, id="price zero"),
        pytest.param(bar(T1, o=1e300, h=1e300, l=1e300, c=1e300), Flaw.PRICE, id="1e300"),
        pytest.param(bar(T1, h=1.01e12), Flaw.PRICE, id="price above 1e12"),
        pytest.param(bar(T1, l=0.99e-12), Flaw.PRICE, id="price below 1e-12"),
        pytest.param(bar(T1, h=1.08, l=1.09), Flaw.HIGH_BELOW_LOW, id="high below low"),
        pytest.param(bar(T1, c=11.61), Flaw.OPEN_OR_CLOSE, id="close far above the high"),
        pytest.param(bar(T1, c=0.11), Flaw.OPEN_OR_CLOSE, id="close far below the low"),
        pytest.param(bar(T1, o=1.1201), Flaw.OPEN_OR_CLOSE, id="open above the high"),
        pytest.param(bar(T1, o=1.0899), Flaw.OPEN_OR_CLOSE, id="open below the low"),
        pytest.param(bar(T1 + 60_000), Flaw.OFF_THE_MARK, id="a minute late"),
        pytest.param(bar(T1 - 1), Flaw.OFF_THE_MARK, id="a millisecond early"),
        pytest.param(bar(T0 + 3_900_000), Flaw.OUT_OF_RANGE, id="after the end"),
        pytest.param(bar(T0 + 300_000 * 10**9), Flaw.OUT_OF_RANGE, id="far future"),
        pytest.param(bar(T0 - 300_000), Flaw.OUT_OF_RANGE, id="before the start"),
    ],
)
def test_an_impossible_bar_is_left_out_with_its_reason_and_the_others_are_kept(
    api: Polygon, server: responses.RequestsMock, impossible: object, flaw: Flaw
) -> None:
    answers(server, aggregates(bar(T0), impossible, bar(T2)))
    answer = bars(api)
    assert [b.start_ms for b in answer.bars] == [T0, T2]
    assert answer.left_out == (LeftOut(flaw, 1),)


def test_each_reason_is_reported_once_with_its_count(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(T0), bar(T1, c=9), bar(T2, o=9), bar(T1 + 1), bar(T2, c=0)))
    left_out = bars(api).left_out
    assert [str(one) for one in left_out] == [
        "1 with a price outside 1e-12 to 1e12",
        "2 with an open or close outside low to high",
        "1 with a start that is not on a five-minute mark",
    ]


def test_a_crash_is_stored(api: Polygon, server: responses.RequestsMock) -> None:
    crash = bar(T1, o=1.1, h=1.1, l=1e-6, c=1e-5, vw=1e-5)
    answers(server, aggregates(bar(T0), crash, bar(T2, o=1e-5, h=2e-5, l=1e-6, c=2e-5)))
    answer = bars(api)
    assert (len(answer.bars), answer.left_out) == (3, ())


def test_the_range_includes_its_ends(api: Polygon, server: responses.RequestsMock) -> None:
    answers(server, aggregates(bar(T0), bar(T0 + 3_600_000)))
    assert bars(api).left_out == ()


def test_the_range_includes_the_bar_that_contains_its_start(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(T0)))
    answer = api.bars("C:EURUSD", START + timedelta(seconds=70), END)
    assert [b.start_ms for b in answer.bars] == [T0]


def test_open_and_close_may_exceed_high_and_low_by_the_providers_rounding(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(T0, c=1.120001), bar(T1, o=1.089999)))
    answer = bars(api)
    assert (len(answer.bars), answer.left_out) == (2, ())


def test_an_answer_with_only_impossible_bars_is_unreadable(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, aggregates(bar(o=-1), bar(T1, c=0)))
    error = failure(lambda: bars(api))
    assert type(error) is Unreadable
    assert "None of the 2 bars" in str(error)
    assert "2 with a price outside 1e-12 to 1e12" in str(error)
    assert "C:EURUSD" in str(error)


@pytest.mark.parametrize("ticker", ["C:EURUSX", None, 7, ["C:EURUSD"]])
def test_bars_of_another_ticker_are_never_stored(
    api: Polygon, server: responses.RequestsMock, ticker: object
) -> None:
    answers(server, aggregates(bar(), ticker=ticker))
    assert type(failure(lambda: bars(api))) is Unreadable


@pytest.mark.parametrize(
    "shape",
    [
        [],
        "text",
        17,
        None,
        True,
        {},
        {"t": T0},
        bar(),
        {"status": "PERHAPS", "results": []},
        {"ticker": "C:EURUSD", "status": "OK", "results": {"o": 1}},
        {"ticker": "C:EURUSD", "status": "OK", "results": "none"},
        {"ticker": "C:EURUSD", "status": ["OK"], "results": []},
    ],
    ids=repr,
)
def test_json_of_another_shape_is_unreadable(
    api: Polygon, server: responses.RequestsMock, shape: object
) -> None:
    answers(server, json.dumps(shape))
    for call in (
        lambda: bars(api),
        lambda: api.ticker_exists("C:EURUSD"),
    ):
        assert type(failure(call)) is Unreadable


# --- Refusals --------------------------------------------------------------------------------

UPGRADE = "Please upgrade your plan at https://example.test/pricing"
NOT_AUTHORIZED = {"status": "NOT_AUTHORIZED", "request_id": "r"}
ERROR = {"status": "ERROR", "request_id": "r"}

# One of each recorded body: name, HTTP status, body, error.
RECORDED: list[tuple[str, int, object, type[ProviderError]]] = [
    ("bad time", 400, ERROR | {"error": "Could not parse the time parameter: 'from'."}, Rejected),
    (
        "to before from",
        400,
        ERROR | {"error": "The parameter 'to' cannot be a time that occurs before 'from'"},
        Rejected,
    ),
    ("no key", 401, ERROR | {"error": "API Key was not provided"}, KeyRefused),
    ("unknown key", 401, ERROR | {"error": "Unknown API Key"}, KeyRefused),
    (
        "before end of day",
        403,
        NOT_AUTHORIZED
        | {"message": f"Attempted to request today's data before end of day. {UPGRADE}"},
        TimeRangeDenied,
    ),
    (
        "time frame",
        403,
        NOT_AUTHORIZED | {"message": f"Your plan doesn't include this data timeframe. {UPGRADE}"},
        TimeRangeDenied,
    ),
    (
        "not entitled, as message",
        403,
        NOT_AUTHORIZED | {"message": f"You are not entitled to this data. {UPGRADE}"},
        FeedDenied,
    ),
    (
        "not entitled, as error",
        403,
        {"status": "NOT_AUTHORIZED", "error": f"You are not entitled to this data. {UPGRADE}"},
        FeedDenied,
    ),
    ("not found", 404, {"status": "NOT_FOUND", "message": "Data not found."}, TickerUnknown),
    ("no ticker", 404, {"status": "NOT_FOUND", "message": "Ticker not found."}, TickerUnknown),
    ("unknown path", 404, "404 page not found", Unavailable),
    (
        "rate limit",
        429,
        ERROR | {"error": f"You've exceeded the maximum requests per minute, {UPGRADE}"},
        RateLimited,
    ),
]


@pytest.mark.parametrize(
    ("status", "body", "kind"), [r[1:] for r in RECORDED], ids=[r[0] for r in RECORDED]
)
def test_each_recorded_refusal_raises_the_expected_error(
    api: Polygon,
    server: responses.RequestsMock,
    status: int,
    body: object,
    kind: type[ProviderError],
) -> None:
    answers(server, body, status)
    error = failure(lambda: bars(api))
    assert type(error) is kind
    assert "C:EURUSD" in str(error)
    assert len(server.calls) == 1


IN_A_GOOD_STATUS = [r for r in RECORDED if isinstance(r[2], dict)]


@pytest.mark.parametrize(
    ("body", "kind"), [r[2:] for r in IN_A_GOOD_STATUS], ids=[r[0] for r in IN_A_GOOD_STATUS]
)
def test_the_same_refusal_with_http_200_raises_the_same_error(
    api: Polygon, server: responses.RequestsMock, body: object, kind: type[ProviderError]
) -> None:
    answers(server, body)
    assert type(failure(lambda: bars(api))) is kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, "", RateLimited),
        (429, "<html>slow down</html>", RateLimited),
        (401, "", KeyRefused),
        (403, "", Unavailable),
        (403, "Forbidden", Unavailable),
        (403, "{}", Unavailable),
        (403, '{"message":"Forbidden"}', Unavailable),
        (403, "[]", Unavailable),
        (403, "<html>blocked by the firewall</html>", Unavailable),
        (404, "", Unavailable),
        (404, "<html>nothing here</html>", Unavailable),
        (404, "[]", Unavailable),
        (400, "<html>bad</html>", Rejected),
        (418, "{}", Unavailable),
        (204, "", Unavailable),
        (500, "", Unavailable),
        (502, "<html><body>Bad Gateway</body></html>", Unavailable),
        (503, '{"status":"ERROR","error":"maintenance"}', Unavailable),
        (200, "<html>Log in to this network</html>", Unavailable),
        (200, "", Unavailable),
        (200, "plain text", Unavailable),
        (200, '{"status":"OK","results":[{"t":17', Unavailable),
        (200, "[" * 100_000, Unavailable),
        (200, "1" * 5000, Unavailable),
        (200, b"\xff\xfe\x00\x80", Unavailable),
        (400, "[" * 100_000, Rejected),
        *((status, "", Rejected) for status in (405, 410, 413, 414, 422)),
        (405, "<html>Method Not Allowed</html>", Rejected),
        (451, "", Unavailable),
        (408, "", Unavailable),
    ],
)
def test_every_other_answer_raises_the_expected_error(
    api: Polygon,
    server: responses.RequestsMock,
    status: int,
    body: str | bytes,
    kind: type[ProviderError],
) -> None:
    answers(server, body, status)
    error = failure(lambda: bars(api))
    assert type(error) is kind
    assert "<" not in str(error)


@pytest.mark.parametrize("status", [200, 400, 405, 422])
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("API Key was not provided", KeyRefused),
        ("Unknown API Key", KeyRefused),
        ("You've exceeded the maximum requests per minute", RateLimited),
        (f"You are not entitled to this data. {UPGRADE}", FeedDenied),
        ("Attempted to request today's data before end of day.", TimeRangeDenied),
        ("Your plan doesn't include this data timeframe.", TimeRangeDenied),
        ("Could not parse the time parameter: 'from'.", Rejected),
    ],
)
def test_the_apis_words_decide_what_is_refused_whatever_the_status(
    api: Polygon,
    server: responses.RequestsMock,
    status: int,
    words: str,
    kind: type[ProviderError],
) -> None:
    answers(server, ERROR | {"error": words}, status)
    assert type(failure(lambda: bars(api))) is kind


@pytest.mark.parametrize("status", [400, 405, 410, 413, 414, 422])
def test_an_error_that_repetition_cannot_cure_is_the_assets_failure_in_the_servers_words(
    api: Polygon, server: responses.RequestsMock, status: int
) -> None:
    answers(server, ERROR | {"error": "The ticker is too long"}, status)
    error = failure(lambda: bars(api))
    assert type(error) is Rejected
    assert 'C:EURUSD and says "The ticker is too long"' in str(error)
    assert "tried again" not in str(error)


def test_a_refusal_says_what_to_check(api: Polygon, server: responses.RequestsMock) -> None:
    for status, body, advice in [
        (401, "", "POLYGON_API_KEY"),
        (404, "404 page not found", "POLYGON_BASE_URL"),
        (302, "", "POLYGON_BASE_URL"),
    ]:
        server.reset()
        answers(server, body, status)
        assert advice in str(failure(lambda: bars(api)))


def test_each_error_says_whose_fault_it_is() -> None:
    whose: dict[type[ProviderError], tuple[Cause, str]] = {
        RateLimited: (Cause.TEMPORARY, "rate_limited"),
        Unavailable: (Cause.TEMPORARY, "unavailable"),
        KeyRefused: (Cause.ACCOUNT, "key_refused"),
        TimeRangeDenied: (Cause.ACCOUNT, "range_denied"),
        FeedDenied: (Cause.ACCOUNT, "feed_denied"),
        TickerUnknown: (Cause.ASSET, "ticker_unknown"),
        Unreadable: (Cause.ASSET, "unreadable"),
        Rejected: (Cause.ASSET, "rejected"),
    }
    assert set(ProviderError.__subclasses__()) == set(whose)
    assert {kind: (kind.cause, kind.kind) for kind in whose} == whose
    assert issubclass(ProviderError, AssetSyncError)


@pytest.mark.parametrize("status", [400, 200])
def test_the_servers_words_are_shortened_to_one_printable_line_without_the_key(
    api: Polygon, server: responses.RequestsMock, status: int
) -> None:
    words = f"\x1b[31mno\r\n\u202e\ud800 {KEY} " + "long " * 1000
    answers(server, ERROR | {"error": words}, status)
    error = failure(lambda: bars(api))
    quoted = str(error).split('"')[1]
    assert quoted.startswith("[31mno *** long long")
    assert len(quoted) <= 200


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "86400"}, 3600.0),
        ({"Retry-After": "9" * 5000}, 3600.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "Fri, 06 Mar 2026 10:00:30 GMT"}, None),
        (
            {
                "Date": "Fri, 06 Mar 2026 10:00:00 GMT",
                "Retry-After": "Fri, 06 Mar 2026 10:00:30 GMT",
            },
            30.0,
        ),
        (
            {
                "Date": "Fri, 06 Mar 2026 10:00:00 GMT",
                "Retry-After": "Fri, 06 Mar 2026 09:00:00 -0000",
            },
            0.0,
        ),
        (
            {
                "Date": "Fri, 06 Mar 2026 10:00:00 GMT",
                "Retry-After": "Fri, 06 Mar 2099 10:00:00 GMT",
            },
            3600.0,
        ),
    ],
)
def test_a_wait_that_the_server_asks_for_is_passed_on_up_to_an_hour(
    api: Polygon,
    server: responses.RequestsMock,
    headers: dict[str, str],
    seconds: float | None,
) -> None:
    answers(server, "", 429, headers)
    error = failure(lambda: bars(api))
    assert isinstance(error, RateLimited)
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["https://elsewhere.test/", "/v2/other", "http://[broken", ""])
def test_a_redirect_is_never_followed(
    api: Polygon, server: responses.RequestsMock, status: int, target: str
) -> None:
    answers(server, "", status, {"Location": target})
    assert type(failure(lambda: bars(api))) is Unavailable
    assert len(server.calls) == 1


# --- Snapshots -------------------------------------------------------------------------------

AT_S = 1_772_452_801
AT = datetime.fromtimestamp(AT_S, tz=UTC)


def fx_row(ticker: str = "C:EURUSD", **other: object) -> dict[str, object]:
    return {
        "ticker": ticker,
        "type": "fx",
        "market_status": "open",
        "session": {"open": 1.11, "high": 1.14, "low": 1.10, "close": 1.13, "volume": 170},
        "last_quote": {"bid": 1.25, "ask": 1.75, "last_updated": AT_S * 10**9, "exchange": 48},
    } | other


def crypto_row(ticker: str = "X:BTCUSD", **other: object) -> dict[str, object]:
    return {
        "ticker": ticker,
        "type": "crypto",
        "session": {"open": 60.0, "high": 64.0, "low": 59.5, "close": 61.5},
        "last_trade": {"price": 62.0, "size": 0.1, "last_updated": AT_S * 10**9},
    } | other


def snapshot_of(
    server: responses.RequestsMock, api: Polygon, asked: Sequence[str], *rows: object
) -> tuple[Mapping[str, object], dict[str, type[ProviderError]]]:
    answers(server, {"request_id": "r", "results": list(rows), "status": "OK"})
    answer = api.snapshots(asked)
    assert len(server.calls) == 1
    assert not set(answer.quotes) & set(answer.refused)
    assert set(answer.quotes) | set(answer.refused) == set(asked)
    return answer.quotes, {ticker: type(error) for ticker, error in answer.refused.items()}


def test_forex_has_a_quote_and_its_price_is_the_mean_of_bid_and_ask(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, {"results": [fx_row()]})  # some v3 answers have no status
    quote = api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"]
    assert (quote.bid, quote.ask, quote.last_price) == (1.25, 1.75, 1.5)
    assert (quote.daily_open, quote.daily_high) == (1.11, 1.14)
    assert (quote.daily_low, quote.daily_close) == (1.10, 1.13)
    assert quote.at == AT
    assert quote.at.tzinfo is UTC


@pytest.mark.parametrize("price", [0, -1.0, 1e-13, 1e300, 10**400])
def test_an_impossible_quote_is_read_as_none(
    api: Polygon, server: responses.RequestsMock, price: float
) -> None:
    row = fx_row(last_quote={"bid": price, "ask": 1.75, "last_updated": AT_S})
    answers(server, {"results": [row | {"last_updated": AT_S}]})
    quote = api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"]
    assert (quote.bid, quote.ask, quote.last_price) == (None, 1.75, 1.13)


def test_if_a_days_high_is_below_its_low_both_are_read_as_none(
    api: Polygon, server: responses.RequestsMock
) -> None:
    session = {"open": 1.1, "high": 1.0, "low": 1.2, "close": 1.1}
    answers(server, {"results": [fx_row(session=session)]})
    quote = api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"]
    assert (quote.daily_open, quote.daily_high, quote.daily_low) == (1.1, None, None)


def test_crypto_has_a_trade_and_no_quote(api: Polygon, server: responses.RequestsMock) -> None:
    answers(server, {"results": [crypto_row()], "status": "DELAYED"})
    quote = api.snapshots(["X:BTCUSD"]).quotes["X:BTCUSD"]
    assert (quote.bid, quote.ask, quote.last_price, quote.at) == (None, None, 62.0, AT)


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9], ids=["s", "ms", "us", "ns"])
def test_the_unit_of_a_time_follows_from_its_size(
    api: Polygon, server: responses.RequestsMock, unit: int
) -> None:
    row = fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": AT_S * unit})
    answers(server, {"results": [row]})
    assert api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"].at == AT


def test_zeros_after_the_daily_reset_are_read_as_none(
    api: Polygon, server: responses.RequestsMock
) -> None:
    row = fx_row(session={"open": 0, "high": 0, "low": 0, "close": 0, "volume": 0})
    answers(server, {"results": [row]})
    quote = api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"]
    assert quote.last_price == 1.5
    assert [quote.daily_open, quote.daily_high, quote.daily_low, quote.daily_close] == [None] * 4


def test_if_quote_and_trade_are_missing_the_days_close_is_the_price(
    api: Polygon, server: responses.RequestsMock
) -> None:
    half = fx_row(last_quote={"bid": 1.25, "ask": 0}, last_minute={"last_updated": AT_S * 1000})
    answers(server, {"results": [half]})
    quote = api.snapshots(["C:EURUSD"]).quotes["C:EURUSD"]
    assert (quote.bid, quote.ask, quote.last_price, quote.at) == (1.25, None, 1.13, AT)


def test_each_row_of_a_snapshot_is_read_by_itself(
    api: Polygon, server: responses.RequestsMock
) -> None:
    quotes, refused = snapshot_of(
        server,
        api,
        ["C:EURUSD", "X:BTCUSD", "C:TYPO", "X:PAID", "C:ODD", "C:LEFTOUT"],
        fx_row(),
        {"ticker": "C:TYPO", "error": "NOT_FOUND", "message": "Ticker not found."},
        {"ticker": "X:PAID", "error": "NOT_ENTITLED", "message": "Not entitled to this ticker."},
        {"ticker": "C:ODD", "error": "SOMETHING_NEW", "message": "Not today."},
        fx_row("C:NOBODYASKED"),
        {"ticker": "C:NEITHER", "error": "NOT_FOUND"},
        crypto_row(),
    )
    assert set(quotes) == {"C:EURUSD", "X:BTCUSD"}
    assert refused == {
        "C:TYPO": TickerUnknown,
        "X:PAID": FeedDenied,
        "C:ODD": Rejected,
        "C:LEFTOUT": TickerUnknown,
    }


@pytest.mark.parametrize(
    "row",
    [
        {"ticker": "C:EURUSD"},
        fx_row(last_quote=None, session=None),
        fx_row(last_quote=[], session="closed"),
        fx_row(last_quote={"bid": "1", "ask": True, "last_updated": AT_S}, session={}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": 0}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": -1}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": 10**400}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": float("nan")}),
        fx_row(last_quote={"bid": 1.0, "ask": 2.0, "last_updated": "now"}),
        fx_row(last_quote={"bid": float("inf"), "ask": 2.0, "last_updated": AT_S}, session={}),
        fx_row(last_quote={"bid": -1, "ask": 2.0, "last_updated": AT_S}, session={}),
    ],
)
def test_only_a_row_without_a_price_or_its_time_is_unreadable(
    api: Polygon, server: responses.RequestsMock, row: object
) -> None:
    quotes, refused = snapshot_of(server, api, ["C:EURUSD", "X:BTCUSD"], row, crypto_row())
    assert set(quotes) == {"X:BTCUSD"}
    assert refused == {"C:EURUSD": Unreadable}


@pytest.mark.parametrize("row", [17, None, [], {}, {"ticker": 7}, {"error": "NOT_FOUND"}])
def test_a_row_without_a_ticker_makes_no_asset_unknown(
    api: Polygon, server: responses.RequestsMock, row: object
) -> None:
    _, refused = snapshot_of(server, api, ["C:EURUSD", "X:BTCUSD"], row, crypto_row())
    assert refused == {"C:EURUSD": Unreadable}


def test_a_refusal_of_the_whole_snapshot_raises_its_error(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, NOT_AUTHORIZED | {"message": "You are not entitled to this data."}, 403)
    error = failure(lambda: api.snapshots(["C:EURUSD", "X:BTCUSD", "X:ETHUSD"]))
    assert type(error) is FeedDenied
    assert "C:EURUSD and 2 more" in str(error)


# --- The reference ---------------------------------------------------------------------------


def test_the_reference_distinguishes_a_mistyped_ticker_from_a_quiet_market(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(server, {"status": "OK", "results": {"ticker": "C:EURUSD", "active": True}})
    assert api.ticker_exists("C:EURUSD") is True
    server.reset()
    answers(server, {"status": "NOT_FOUND", "message": "Ticker not found."}, 404)
    assert api.ticker_exists("C:EURUSX") is False
    server.reset()
    answers(server, "404 page not found", 404)
    assert type(failure(lambda: api.ticker_exists("C:EURUSD"))) is Unavailable


def page(*rows: object, **other: object) -> dict[str, object]:
    return {"status": "OK", "request_id": "r", "results": list(rows), "count": len(rows)} | other


def listed(api: Polygon) -> TickersAnswer:
    return api.tickers(endpoints.tickers(AssetType.FOREX))


def test_a_request_for_the_list_names_the_market_and_the_largest_page() -> None:
    assert endpoints.tickers(AssetType.FOREX) == (
        "/v3/reference/tickers?market=fx&active=true&limit=1000"
    )
    assert endpoints.tickers(AssetType.CRYPTO, "a&b/ü\udcff") == (
        "/v3/reference/tickers?market=crypto&active=true&search=a%26b%2F%C3%BC%3F&limit=1000"
    )


def test_a_page_of_the_list_has_tickers_with_printable_names(
    api: Polygon, server: responses.RequestsMock
) -> None:
    answers(
        server,
        page(
            {"ticker": "C:EURUSD", "name": "Euro -\x1b[31m US\n Dollar", "active": True},
            {"ticker": "C:AAABBB"},
            {"ticker": "C:CCCDDD", "name": f"key {KEY}"},
            {"ticker": "C:EEEFFF", "name": "x" * 900},
            {"ticker": "C:GONE", "name": "Gone", "active": False},
            *({"ticker": bad, "name": "n"} for bad in ("", "C:\x1b", "C:" + "A" * 99, None, 7)),
            *(None, [], "C:EURUSD", 7),
        ),
    )
    assert listed(api) == TickersAnswer(
        (
            Listed("C:EURUSD", "Euro - [31m US Dollar"),
            Listed("C:AAABBB", "C:AAABBB"),
            Listed("C:CCCDDD", "key ***"),
            Listed("C:EEEFFF", "x" * 200),
        ),
        next_page=None,
    )


@pytest.mark.parametrize("nothing", [page(), {"status": "OK", "count": 0}, page(results=None)])
def test_an_empty_list_is_accepted(
    api: Polygon, server: responses.RequestsMock, nothing: object
) -> None:
    answers(server, nothing)
    assert listed(api) == TickersAnswer((), None)


@pytest.mark.parametrize(
    "next_url",
    [
        "https://api.massive.com/v3/reference/tickers?cursor=abc%3D",
        "https://elsewhere.test:8443/v3/reference/tickers?cursor=abc%3D",
        "https://me:pw@elsewhere.test/v3/reference/tickers?cursor=abc%3D#top",
        "/v3/reference/tickers?cursor=abc%3D",
        f"https://api.massive.com/v3/reference/tickers?apiKey={KEY}&cursor=abc%3D",
        f"https://api.massive.com/v3/reference/tickers?cursor=abc%3D&APIKEY={KEY}",
    ],
)
def test_only_path_and_query_of_a_next_url_are_kept_without_the_key(
    api: Polygon, server: responses.RequestsMock, next_url: str
) -> None:
    answers(server, page({"ticker": "C:EURUSD"}, next_url=next_url))
    following = listed(api).next_page
    assert following == "/v3/reference/tickers?cursor=abc%3D"

    api.tickers(following)

    sent = server.calls[1].request
    assert sent.url == BASE + following
    assert sent.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "next_url",
    [
        "https://api.massive.com/v3/reference/tickers",
        "https://api.massive.com/v3/reference/tickers?apiKey=x",
        "https://api.massive.com/v3/reference/tickers/C:EURUSD?cursor=abc",
        "https://api.massive.com/v2/aggs?cursor=abc",
        "https://api.massive.com/v3/reference/tickers?cursor=a b",
        "https://api.massive.com/v3/reference/tickers?cursor=\ud800",
        "https://api.massive.com/v3/reference/tickers?cursor=" + "x" * 9000,
        "http://[::1/v3/reference/tickers?cursor=abc",
        "nonsense",
        17,
        True,
        ["https://api.massive.com/v3/reference/tickers?cursor=abc"],
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_list_that_continues_on_another_path_is_not_taken_as_complete(
    api: Polygon, server: responses.RequestsMock, next_url: object
) -> None:
    answers(server, page({"ticker": "C:EURUSD"}, next_url=next_url))
    assert type(failure(lambda: listed(api))) is Unreadable


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, page({"symbol": "EURUSD"}), Unreadable),
        (200, page(results={"rows": []}), Unreadable),
        (200, page(status="PERHAPS"), Unreadable),
        (200, [], Unreadable),
        (200, "<html>Log in", Unavailable),
        (200, '{"status":"OK","results":[{"ticker"', Unavailable),
        (404, {"status": "NOT_FOUND", "message": "Data not found."}, Unreadable),
        (404, "404 page not found", Unavailable),
        (400, {"status": "ERROR", "error": "bad cursor"}, Rejected),
        (401, {"status": "ERROR", "error": "Unknown API Key"}, KeyRefused),
        (403, {"status": "NOT_AUTHORIZED", "message": "no"}, FeedDenied),
        (429, "", RateLimited),
        (500, "", Unavailable),
    ],
)
def test_an_answer_that_is_no_list_raises_the_expected_error(
    api: Polygon,
    server: responses.RequestsMock,
    status: int,
    body: object,
    kind: type[ProviderError],
) -> None:
    answers(server, body, status)
    error = failure(lambda: listed(api))
    assert type(error) is kind
    assert "list of tickers" in str(error) or kind is Unavailable


# --- On the wire -----------------------------------------------------------------------------

Script = Callable[[socket.socket, threading.Event], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def wire(script: Script) -> Iterator[str]:
    """Give the base URL of a server that runs `script` on each connection after the request."""
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    script(connection, over)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        chunk = connection.recv(4096)
        if not chunk:
            raise ConnectionError
        request += chunk
    return request


def says(*parts: bytes) -> Script:
    """Answer and close the connection."""

    def script(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        for part in parts:
            connection.sendall(part)

    return script


def drips(start: bytes, drop: bytes, *, after_request: bool = True) -> Script:
    """Send `start` at once, then `drop` again and again, faster than any read time-out."""

    def script(connection: socket.socket, over: threading.Event) -> None:
        if after_request:
            read_request(connection)
        connection.sendall(start)
        for _ in range(300):  # if the client does not give up, the test fails and does not hang
            if over.wait(0.01):
                break
            connection.sendall(drop)

    return script


def stalls(start: bytes) -> Script:
    def script(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(start)
        over.wait(5)

    return script


def resets(connection: socket.socket, over: threading.Event) -> None:
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def failure_on_the_wire(
    script: Script, *, read: float = 5.0, call: float = 10.0, scheme: str = "http"
) -> ProviderError:
    """Return the error, and check that it came in time and that no thread is left."""
    with wire(script) as url, polygon(url.replace("http", scheme), read=read, call=call) as api:
        threads = threading.active_count()
        begun = time.monotonic()
        error = failure(lambda: bars(api))
        assert time.monotonic() - begun < min(read, call) + 1.0
        assert threading.active_count() == threads
    assert isinstance(error, Unavailable)
    return error


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(drips(b"", b"H"), id="status line"),
        pytest.param(drips(HEAD + b"X-Long: ", b"x"), id="header"),
        pytest.param(drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="100 Continue for ever"),
        pytest.param(drips(HEAD + b"Content-Length: 99999\r\n\r\n", b" "), id="body"),
        pytest.param(drips(HEAD + b"\r\n", b" "), id="body until the end of the connection"),
        pytest.param(
            drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), id="chunks"
        ),
        pytest.param(
            drips(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"), id="size of a chunk"
        ),
        pytest.param(drips(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", b" "), id="redirect"),
        pytest.param(drips(b"HTTP/1.1 500 No\r\n\r\n", b"<"), id="page of an error"),
    ],
)
def test_a_server_that_drips_cannot_hold_a_call_past_its_total_time(script: Script) -> None:
    assert "longer than 0.3 s in all" in str(failure_on_the_wire(script, call=0.3))


def test_a_tls_handshake_that_drips_cannot_hold_a_call_past_its_total_time() -> None:
    # The server announces a handshake message of 16 KB and sends its bytes one by one.
    hello = b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb"
    script = drips(hello, b"\x00", after_request=False)
    assert "in all" in str(failure_on_the_wire(script, call=0.3, scheme="https"))


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{"])
def test_a_call_to_a_server_that_falls_silent_ends_after_the_time_out(start: bytes) -> None:
    failure_on_the_wire(stalls(start), read=0.3)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(resets, id="reset"),
        pytest.param(says(), id="hung up without a word"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n"), id="no HTTP"),
        pytest.param(says(HEAD + b"Content-Length: 99\r\n\r\n{}"), id="half a body"),
        pytest.param(says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}"), id="half a chunk"),
        pytest.param(says(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), id="no chunk"),
        pytest.param(says(HEAD + b"Content-Length: 5, 6\r\n\r\n{}"), id="two lengths"),
        pytest.param(says(HEAD + b"Content-Encoding: gzip\r\n\r\nno gzip"), id="no gzip"),
        pytest.param(
            says(HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"{}" * 50)[:-20]),
            id="half a gzip",
        ),
        pytest.param(says(HEAD + b"Content-Encoding: br\r\n\r\n{}"), id="never asked for"),
        pytest.param(says(HEAD + b"X: y\r\n" * 200 + b"\r\n{}"), id="200 headers"),
        pytest.param(says(HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n{}"), id="a long header"),
        pytest.param(says(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n"), id="odd redirect"),
    ],
)
def test_a_broken_answer_counts_against_nobody(script: Script) -> None:
    failure_on_the_wire(script)


def test_a_429_counts_even_when_its_body_breaks_off() -> None:
    head = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 99\r\n\r\n{"
    with wire(says(head)) as url, polygon(url) as api:
        error = failure(lambda: bars(api))
    assert isinstance(error, RateLimited)
    assert error.retry_after_seconds == 7.0


def test_plain_http_instead_of_tls_counts_against_nobody() -> None:
    script = drips(b"HTTP/1.1 400 Bad\r\n\r\n", b"x", after_request=False)
    assert "TLS" in str(failure_on_the_wire(script, scheme="https"))


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found\r\nLocation: /x"])
def test_a_gzip_bomb_is_not_unpacked(status: bytes) -> None:
    bomb = gzip.compress(bytes(2**20)) * 1024  # 1 MB, which unpacks to 1 GiB
    script = says(b"HTTP/1.1 " + status + b"\r\nContent-Encoding: gzip\r\n\r\n", bomb)
    tracemalloc.start()
    try:
        error = failure_on_the_wire(script)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "larger than 16 MiB" in str(error) or "redirect" in str(error)
    assert peak < 80 * 2**20


def test_the_message_about_a_refused_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with polygon(f"http://127.0.0.1:{port}") as api:
        error = failure(lambda: bars(api))
    assert type(error) is NotSent
    assert "127.0.0.1" in str(error)
    assert "Connection refused" in str(error)


def test_a_resolver_that_hangs_cannot_hold_a_call_past_its_total_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> object:
        released.wait()
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with polygon(call=0.3) as api:
        error = failure(lambda: bars(api))
    released.set()
    assert "in all" in str(error)


@pytest.mark.parametrize(
    "base_url",
    ["http://", "nothing", "ftp://x.test", "http://[::1", f"http://{'a' * 70}.test", "http://x:y"],
)
def test_an_invalid_base_url_is_reported(base_url: str) -> None:
    with polygon(base_url) as api:
        assert type(failure(lambda: bars(api))) is NotSent


def test_a_proxy_from_the_environment_is_used_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:proxy-password@127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with polygon() as api:
        error = failure(lambda: bars(api))
    assert "HTTPS_PROXY" in str(error)
    assert "proxy-password" not in str(error)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost.", "api.localhost", "127.0.0.1", "127.9.9.9", "127.1"),
        *("0x7f.0.0.1", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"),
    ],
)
def test_calls_to_this_host_never_go_through_a_proxy(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://proxy.test:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Session({}) as session:
        for scheme in ("http", "https"):
            url = f"{scheme}://{host}:8080/v3"
            chosen = session.merge_environment_settings(url, {}, None, None, None)
            assert chosen["proxies"] == {}


def test_a_proxy_never_sees_the_key_meant_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, StandIn("free", key=KEY) as here:
        proxy.settimeout(0)
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with polygon(here.base_url) as api:
            bars(api)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_one_connection_serves_many_calls_and_each_has_its_own_time_limit() -> None:
    body = json.dumps(aggregates(bar())).encode()
    answer = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    connections = []

    def script(connection: socket.socket, over: threading.Event) -> None:
        connections.append(connection)
        for _ in range(3):
            read_request(connection)
            connection.sendall(answer)
        drips(HEAD, b"x")(connection, over)

    with wire(script) as url, polygon(url, call=0.3) as api:
        for _ in range(3):
            assert len(bars(api).bars) == 1
        begun = time.monotonic()
        assert "in all" in str(failure(lambda: bars(api)))
        assert time.monotonic() - begun < 1.5
        assert len(connections) == 1


def test_the_session_still_works_after_a_failure() -> None:
    body = json.dumps(aggregates(bar())).encode()
    answer = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    scripts = iter([drips(b"", b"H"), resets, says(answer)])

    def script(connection: socket.socket, over: threading.Event) -> None:
        # The first script ends when the client closes, not at the end of the test.
        with suppress(OSError):
            next(scripts)(connection, over)

    with wire(script) as url, polygon(url, call=0.3) as api:
        failure(lambda: bars(api))
        failure(lambda: bars(api))
        assert len(bars(api).bars) == 1


def test_the_total_time_can_be_changed_between_two_calls() -> None:
    with wire(drips(HEAD, b" ")) as url, polygon(url, call=10.0) as api:
        assert api.call_timeout_seconds == 10.0
        for seconds in (0.2, 0.4):
            api.call_timeout_seconds = seconds
            begun = time.monotonic()
            assert f"longer than {seconds} s in all" in str(failure(lambda: bars(api)))
            assert seconds <= time.monotonic() - begun < seconds + 1.0


def test_ctrl_c_ends_a_call_at_once_and_the_session_can_be_closed() -> None:
    def script(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        over.wait(5)

    with wire(script) as url:
        threads = threading.active_count()
        api = polygon(url)
        with pytest.raises(KeyboardInterrupt):
            bars(api)
        api.close()
        assert threading.active_count() == threads


# --- Size and speed --------------------------------------------------------------------------


def test_a_process_with_an_answer_of_50_000_bars_stays_under_80_mb() -> None:
    rows = [bar(T0 + i * 300_000, v=0.12345678 + i, n=i) for i in range(50_000)]
    body = gzip.compress(json.dumps(aggregates(*rows)).encode(), 1)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    program = """
        import re, resource, sys
        from datetime import UTC, datetime
        import psycopg2
        from asset_sync.provider.access import Access
        from asset_sync.provider.polygon.client import Polygon
        from asset_sync.secret import Secret

        with Polygon(Access(sys.argv[1], Secret("x"), 5, 20, 30)) as api:
            start = datetime(2026, 3, 2, 12, tzinfo=UTC)
            answer = api.bars("C:EURUSD", start, datetime(2027, 1, 1, tzinfo=UTC))
        if sys.platform == "linux":  # where ru_maxrss begins with that of the parent
            status = open("/proc/self/status").read()
            kilobytes = int(re.search(r"VmHWM:\\s+([0-9]+) kB", status)[1])
        else:
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(len(answer.bars), kilobytes)
    """
    with wire(says(head, body)) as url:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), url],
            capture_output=True,
            text=True,
            check=True,
        )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 50_000
    assert kilobytes < 80_000
