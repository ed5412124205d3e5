"""Each fault of the API leaves item, slot, data and exit code as documented."""

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import commandline
import pytest
from anytime import DAYS, Today
from machine import Machine, close_at, one_bar

from asset_sync.database import Connection, Row, query
from asset_sync.demo import replay, wire
from asset_sync.demo.faults import FAULTS
from asset_sync.demo.replay import DAY_MS
from asset_sync.demo.server import StandIn

KEY = "the-key-that-nobody-else-gets"
TICKERS = {"BTCUSD": "X:BTCUSD", "ETHUSDT": "X:ETHUSDT", "EURUSD": "C:EURUSD"}
SYMBOLS = list(TICKERS)  # in the order in which the run serves them

FILE = """
[provider]
plan = "{plan}"
connect_timeout_seconds = 0.3
read_timeout_seconds = {read}
call_timeout_seconds = {call}

[rate_limit]
calls = {calls}
period_seconds = {period}
"""
ASSET = """
[[secondary_assets]]
symbol = "{}"
polygon_ticker = "{}"
asset_type = "{}"
hours = "crypto"
"""


class Host(Machine):
    """A machine with three assets, last synced some hours ago: a call brings some thirty bars."""

    def __init__(self, home: Path, url: str, db: Connection, api: StandIn, today: Today) -> None:
        super().__init__(home, url, api, secrets=(KEY,))
        self.db, self.today = db, today
        self.seeded = {
            symbol: one_bar(db, symbol, ticker, hours_ago=2, now_ms=today.now_ms)
            for symbol, ticker in TICKERS.items()
        }
        self.serve()

    def serve(
        self,
        *symbols: str,
        plan: str = "free",
        calls: int = 10,
        period: float = 60,
        read: float = 5,
        call: float = 10,
    ) -> None:
        text = FILE.format(plan=plan, calls=calls, period=period, read=read, call=call)
        for symbol in symbols or SYMBOLS:
            kind = "forex" if symbol == "EURUSD" else "crypto"
            text += ASSET.format(symbol, TICKERS[symbol], kind)
        self.file(text)

    def sync(self, *arguments: str, **environ: str) -> commandline.Told:
        return self.tell("sync", "queue", *arguments, **environ)

    def report(self, *arguments: str, **environ: str) -> tuple[int, dict[str, Any]]:
        told = self.sync("--json", *arguments, **environ)
        return told.code, json.loads(told.out)

    def an_hour_later(self) -> None:
        """Let an hour pass: everything is due again, and every delay and window has ended."""
        query(
            self.db,
            """
            update asset_sync.queue set last_success_at = last_success_at - interval '1 h',
              last_attempt_at = last_attempt_at - interval '1 h',
              not_before = not_before - interval '1 h';
            update asset_sync.slots set stamped_at = stamped_at - interval '1 h';
            update asset_sync.limiter set blocked_until = blocked_until - interval '1 h',
              called_at = called_at - interval '1 h'
            """,
        )

    def items(self, feed: str = "bars") -> dict[str, Row]:
        rows = query(
            self.db,
            "select symbol, state, attempts, level from asset_sync.queue where feed = %s",
            (feed,),
        )
        return {symbol: tuple(rest) for symbol, *rest in rows}

    def outcomes(self) -> list[str]:
        rows = query(self.db, "select outcome from asset_sync.calls order by id")
        return [outcome for (outcome,) in rows]

    def price(self, symbol: str) -> dict[str, Any]:
        [(update,)] = query(
            self.db,
            "select metadata -> 'last_update' from trading.symbols where symbol = %s",
            (symbol,),
        )
        return dict(update or {})

    def statuses(self) -> dict[str, str]:
        rows = query(
            self.db,
            """
            select symbol, sync_status from data_sources.data_sync_status t
            join trading.symbols s on s.id = t.ticker_id
            """,
        )
        return dict(rows)

    def bars(self, symbol: str) -> list[Row]:
        return query(
            self.db,
            """
            select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap,
              trades
            from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
            where symbol = %s order by ts
            """,
            (symbol,),
        )

    def assert_in_order(self) -> None:
        """Check that nothing is held, and that the stored data is correct and complete."""
        [(held, in_flight, open_runs)] = query(
            self.db,
            """
            select (select count(*) from asset_sync.queue where state = 'leased'),
              (select count(token) from asset_sync.slots),
              (select count(*) from asset_sync.runs where reason_ended is null)
            """,
        )
        assert (held, in_flight, open_runs) == (0, 0, 0)
        [(stamped, slots)] = query(
            self.db,
            """
            select count(*) filter (where stamped_at > '-infinity'), count(*) from asset_sync.slots
            """,
        )
        assert stamped == min(len(self.outcomes()), slots)
        for symbol, since in self.seeded.items():
            stored = self.bars(symbol)
            first, last = stored[0][0], stored[-1][0]
            assert first <= since
            assert stored == replay.bars(TICKERS[symbol], first, last, self.today.now_ms)
            price = self.price(symbol)
            if price and price["bid"] is None and self.items("snapshot") == {}:
                assert price["last_price"] == price["daily_close"] == self.close_at_price(symbol)

    def closed_bars(self, symbol: str) -> list[replay.Bar]:
        """Return the bars since the seeded one that are over: those that should be stored."""
        now_ms = self.today.now_ms
        over_ms = now_ms - replay.BAR_MS
        return replay.bars(TICKERS[symbol], self.seeded[symbol], over_ms, now_ms)

    def close_at_price(self, symbol: str) -> float:
        return close_at(TICKERS[symbol], self.price(symbol))


@pytest.fixture
def url(url: str, today: Today) -> str:
    """The database on the date of the test: which bars exist depends on the date."""
    today.give_to(url)
    return url


@pytest.fixture
def api(today: Today) -> Iterator[StandIn]:
    """A stand-in with a large limit, so that it refuses only because of a fault."""
    with StandIn("starter", calls=1000, key=KEY, clock=today.time) as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, url: str, db: Connection, api: StandIn, today: Today) -> Iterator[Host]:
    with Host(tmp_path, url, db, api, today) as machine:
        yield machine


# --- every fault of the stand-in ----------------------------------------------------------------

FRESH = ("idle", 0, "medium")
BACK = ("waiting", 0, "medium")
COUNTED = ("waiting", 1, "low")


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected result of a run whose every call meets the fault."""

    code: int
    reason: str
    item: Row
    """The item of the asset that was asked for first."""
    outcomes: list[str]
    status: str | None = None
    read_seconds: float = 5
    call_seconds: float = 10
    seconds: float = 30


UNANSWERED = Expected(1, "provider_unavailable", BACK, ["unavailable"] * 3, "error")
# After the second unanswered call one is made each half window; this run has no time for that.
SILENT = replace(UNANSWERED, outcomes=["unanswered"] * 2)
REFUSED_429 = Expected(0, "budget_used_up", BACK, ["rate_limited"], seconds=0.9)
UNREADABLE = Expected(1, "done", COUNTED, ["unreadable"] * 3)
HARMLESS = Expected(0, "done", FRESH, ["ok"] * 3, "success")

EXPECTED = {
    "rate-limit": REFUSED_429,
    "rate-limit-empty": REFUSED_429,
    "rate-limit-retry-after": REFUSED_429,
    "key-revoked": Expected(4, "key_refused", BACK, ["key_refused"]),
    "forbidden": Expected(4, "plan_refused", COUNTED, ["feed_denied"] * 2),
    "not-found": Expected(1, "done", COUNTED, ["ticker_unknown"] * 3),
    "server-error": UNANSWERED,
    "bad-gateway": UNANSWERED,
    "html": UNANSWERED,
    "redirect": UNANSWERED,
    "bad-json": UNANSWERED,
    "truncated": SILENT,
    "reset": SILENT,
    "stall": replace(SILENT, read_seconds=0.3),
    "drip": replace(SILENT, call_seconds=0.4),
    "huge": UNANSWERED,
    "gzip-bomb": UNANSWERED,
    "wrong-shape": UNREADABLE,
    "other-ticker": UNREADABLE,
    **dict.fromkeys(
        ("nan", "infinity", "negative", "high-below-low", "future"),
        HARMLESS,  # except the one bar
    ),
    "unordered": HARMLESS,
    "duplicate": HARMLESS,
    # Even the stored bars are missing, so the run looks each ticker up and finds it.
    "empty": replace(HARMLESS, outcomes=["empty", "ok"] * 3),
    "five-minutes-empty": replace(HARMLESS, outcomes=["empty", "ok"] * 3),
    # The run asks again from the last bar on until no more comes, and follows no link.
    "endless-next-url": replace(HARMLESS, outcomes=["ok"] * 6),
    "foreign-next-url": replace(HARMLESS, outcomes=["ok"] * 6),
}
ON_THEIR_OWN = {"today", "timeframe", "end-of-day", "not-entitled", "short-pages"}
"""Faults whose result depends on the time of the day, or that only snapshots or lists have."""


def test_every_fault_of_the_stand_in_has_an_expected_result() -> None:
    assert set(EXPECTED) | ON_THEIR_OWN == set(FAULTS)


@pytest.mark.parametrize("fault", EXPECTED)
def test_each_fault_leaves_the_expected_item_slot_data_and_exit_code(
    host: Host, api: StandIn, fault: str
) -> None:
    expected = EXPECTED[fault]
    host.serve(read=expected.read_seconds, call=expected.call_seconds)
    api.set_faults([fault])

    began = time.monotonic()
    code, told = host.report("--max-runtime", str(expected.seconds))

    assert (code, told["reason_ended"]) == (expected.code, expected.reason)
    assert time.monotonic() - began < 6
    assert host.outcomes() == expected.outcomes
    assert len(api.log) == told["api_calls_used"] == len(expected.outcomes)
    assert host.items()["BTCUSD"] == expected.item
    assert host.statuses().get("BTCUSD") == (
        "error" if expected.item == COUNTED else expected.status
    )
    if expected.status is None:
        assert [len(host.bars(symbol)) for symbol in SYMBOLS] == [1, 1, 1]
    host.assert_in_order()
    # After the fault, everything is as if it had not occurred.
    api.set_faults([])
    host.an_hour_later()
    assert host.report()[0] == 0
    assert set(host.items().values()) == {FRESH} or expected.item == COUNTED
    assert set(host.statuses().values()) == {"success"}
    assert all(
        host.price(symbol)["last_price"] == host.close_at_price(symbol) for symbol in SYMBOLS
    )
    host.assert_in_order()


def test_a_key_that_may_not_see_today_gets_bars_until_yesterday_and_the_run_succeeds(
    host: Host, api: StandIn
) -> None:
    api.set_faults(["today"])
    code, told = host.report()
    assert (code, told["updated"]) == (0, SYMBOLS)
    assert host.outcomes()[0] == "range_denied"
    assert set(host.items().values()) == {FRESH}


def test_a_key_revoked_in_the_middle_of_a_run_ends_it_and_earlier_answers_stay_stored(
    host: Host, api: StandIn
) -> None:
    api.set_faults(["key-revoked@X:ETHUSDT"])
    code, told = host.report()
    assert (code, told["reason_ended"], told["updated"]) == (4, "key_refused", ["BTCUSD"])
    assert host.items() == {"BTCUSD": FRESH, "ETHUSDT": BACK, "EURUSD": BACK}
    host.assert_in_order()


# --- impossible and broken bars -----------------------------------------------------------------


@pytest.mark.parametrize("ts", ["2030-01-01", "infinity", "-infinity", "4713-01-01 BC"])
def test_a_stored_bar_with_an_impossible_time_hides_no_other_and_ends_no_run(
    host: Host, ts: str
) -> None:
    query(
        host.db,
        """
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, %s::timestamptz, 7, 7, 7, 7 from trading.symbols
        """,
        (ts,),
    )

    code, told = host.report()

    assert (code, told["updated"], told["failed"]) == (0, SYMBOLS, [])
    query(host.db, "delete from market_data.ohlcv_5m where close = 7")
    for symbol in SYMBOLS:
        expected = host.closed_bars(symbol)
        assert host.bars(symbol)[-len(expected) :] == expected
        assert host.price(symbol)["last_price"] == host.close_at_price(symbol)


def test_if_the_newest_bar_of_an_answer_is_broken_the_price_is_that_of_the_newest_stored_bar(
    host: Host, api: StandIn
) -> None:
    now_ms = host.today.now_ms
    bar = replay.newest("X:BTCUSD", now_ms - DAY_MS, now_ms, now_ms)
    assert bar is not None
    query(
        host.db,
        """
        insert into market_data.ohlcv_5m
        select id, to_timestamp(%s / 1000.0), %s, %s, %s, %s, %s, %s, %s
        from trading.symbols where symbol = 'BTCUSD'
        """,
        tuple(bar),
    )
    host.serve("BTCUSD")
    api.set_faults(["nan"])  # usually the same bar

    assert host.report()[0] == 0

    assert host.price("BTCUSD")["last_price"] == host.bars("BTCUSD")[-1][4]


# --- any day ------------------------------------------------------------------------------------


@pytest.mark.parametrize("today", DAYS.values(), ids=DAYS, indirect=True)
def test_on_any_day_broken_bars_are_left_out_and_all_others_are_stored(
    host: Host, api: StandIn
) -> None:
    for fault in ("nan", "infinity", "negative", "high-below-low", "future"):
        api.set_faults([fault])
        assert host.report()[0] == 0
        assert set(host.items().values()) == {FRESH}
        host.assert_in_order()
        host.an_hour_later()


@pytest.mark.parametrize("today", DAYS.values(), ids=DAYS, indirect=True)
@pytest.mark.parametrize("fault", ["endless-next-url", "foreign-next-url", "unordered", "empty"])
def test_on_any_day_answers_with_many_pages_or_no_bars_leave_every_asset_fresh(
    host: Host, api: StandIn, fault: str
) -> None:
    api.set_faults([fault])
    assert host.report()[0] == 0
    assert set(host.items().values()) == {FRESH}
    api.set_faults([])
    host.an_hour_later()
    assert host.report()[0] == 0
    for symbol in SYMBOLS:
        expected = host.closed_bars(symbol)
        assert host.bars(symbol)[-len(expected) :] == expected
    host.assert_in_order()


# --- no connection ------------------------------------------------------------------------------


@contextmanager
def nobody_accepts() -> Iterator[str]:
    """Give a port that neither accepts nor refuses a connection, since its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)  # noqa: FBT003
            with suppress(BlockingIOError):
                client.connect(server.getsockname())
            waiting.append(client)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()


@contextmanager
def nobody_listens() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("nowhere", "why"),
    [(nobody_listens, "Connection refused"), (nobody_accepts, "did not accept the connection")],
)
def test_a_run_tries_an_unreachable_api_three_times_and_leaves_it_to_the_next_run(
    host: Host, nowhere: Callable[[], AbstractContextManager[str]], why: str
) -> None:
    with nowhere() as address:
        began = time.monotonic()
        told = host.sync(POLYGON_BASE_URL=address)
    assert time.monotonic() - began < 5
    assert told.code == 1
    assert why in told.err
    assert host.outcomes() == [], "nothing was sent"
    assert set(host.items().values()) == {BACK}
    host.assert_in_order()


# --- other hosts and certificates ---------------------------------------------------------------


@pytest.mark.parametrize("fault", ["redirect", "foreign-next-url"])
def test_the_client_never_connects_to_another_host(
    host: Host, api: StandIn, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        elsewhere = f"http://127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setattr(wire, "FOREIGN_HOST", elsewhere)
        api.set_faults([fault])
        host.report("--max-runtime", "5")
        other.setblocking(False)  # noqa: FBT003
        with pytest.raises(BlockingIOError):
            other.accept()
    assert len(api.log) >= 3


SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgwaBURXOxyByUhVwT
BIY+HtfvBBLtzWG0STvPn3U1ERKhRANCAATGuvWGoZQmQif97aXLs4BvHu6Ix5TJ
nG2D3WGXj6J3EldIxQ6+tfybnGIZkCKtgFTU8RkNgYd7JWlzKQWfsnB7
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUISm5Av3VpqQxnbF3J0Oa8a/HfjowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMDA4MzgwM1oYDzIxMjYxMDI3
MDgzODAzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATGuvWGoZQmQif97aXLs4BvHu6Ix5TJnG2D3WGXj6J3EldIxQ6+tfyb
nGIZkCKtgFTU8RkNgYd7JWlzKQWfsnB7o2kwZzAdBgNVHQ4EFgQUv8pBVnUMycre
4U9o3wKvk6Zu2QEwHwYDVR0jBBgwFoAUv8pBVnUMycre4U9o3wKvk6Zu2QEwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SQAwRgIhAMc3OMxilr173+7wdfJe92p2irr2m9FfaJz3dVUCWWOdAiEAo1ejPKqF
DXc9rqbb3KxQao6yo8a3AQzmdm0nGGKZuxo=
-----END CERTIFICATE-----
"""
SELF_SIGNED_ELSEWHERE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgdbznT02M5M/KLKx3
CLw2KDpmYzBf8o2kqfRjyqzxh3OhRANCAATj1uA9yrSGotXiQvK3ihUoTSIXAw5n
SeE0P/0GxdCoUrdbkie4LpQ7N2qx2+gymVSdxYYxHy3rOZMADq7XiNny
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBpDCCAUqgAwIBAgIUFtc+QPkFG211tkj/Es47C6MjwWgwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOZWxzZXdoZXJlLnRlc3QwIBcNMjYxMTIwMDgzODAzWhgPMjEy
NjEwMjcwODM4MDNaMBkxFzAVBgNVBAMMDmVsc2V3aGVyZS50ZXN0MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAE49bgPcq0hqLV4kLyt4oVKE0iFwMOZ0nhND/9BsXQ
qFK3W5InuC6UOzdqsdvoMplUncWGMR8t6zmTAA6u14jZ8qNuMGwwHQYDVR0OBBYE
FJSiKD/tV2//mX0KP/ul80fhqhTzMB8GA1UdIwQYMBaAFJSiKD/tV2//mX0KP/ul
80fhqhTzMA8GA1UdEwEB/wQFMAMBAf8wGQYDVR0RBBIwEIIOZWxzZXdoZXJlLnRl
c3QwCgYIKoZIzj0EAwIDSAAwRQIgdvlu4FxY04MFFO1N/5hbcf3yc0NYgRqkThif
uH8dLtQCIQCYUQafyLRfsB9cx+AOlJx/zUIzxXkVi3zQn02U2mBJuQ==
-----END CERTIFICATE-----
"""
"""Keys used only here, each with its self-signed certificate: localhost, elsewhere.test."""


def first_bar(request: bytes) -> bytes:
    """Return the answer of an API that has only the first bar of the range asked for."""
    [(ticker, start_ms)] = re.findall(rb"/ticker/([^/]+)/.*/(\d+)/\d+\?", request)
    bar = b'{"t":%s,"o":1,"h":1,"l":1,"c":1,"v":1}' % start_ms
    body = b'{"status":"OK","ticker":"%s","resultsCount":1,"results":[%s]}' % (ticker, bar)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


@contextmanager
def over_tls(directory: Path, pem: str) -> Iterator[tuple[str, Path, list[bytes]]]:
    """Give the address of a TLS server, its certificate, and the list of what it received."""
    certificate = directory / "certificate.pem"
    certificate.write_text(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            with suppress(OSError):  # a client that does not trust the server closes the connection
                client, _ = server.accept()
                with client, context.wrap_socket(client, server_side=True) as line:
                    heard.append(line.recv(65536))
                    line.sendall(first_bar(heard[-1]))
            if server.fileno() < 0:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"https://localhost:{server.getsockname()[1]}", certificate, heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize(
    ("pem", "trusted"),
    [(SELF_SIGNED, False), (SELF_SIGNED_ELSEWHERE, True)],
    ids=["unknown", "other name"],
)
def test_a_server_with_an_untrusted_certificate_gets_no_key(
    host: Host, pem: str, *, trusted: bool
) -> None:
    with over_tls(host.home, pem) as (address, certificate, heard):
        bundle = {"REQUESTS_CA_BUNDLE": str(certificate)} if trusted else {}
        told = host.sync(POLYGON_BASE_URL=address, **bundle)
    assert told.code == 1
    assert "no TLS connection that can be trusted" in told.err
    assert heard == []
    assert set(host.items().values()) == {BACK}
    host.assert_in_order()


def test_a_certificate_that_the_user_trusts_is_accepted(host: Host) -> None:
    with over_tls(host.home, SELF_SIGNED) as (address, certificate, heard):
        code, told = host.report(POLYGON_BASE_URL=address, REQUESTS_CA_BUNDLE=str(certificate))
    assert (code, told["updated"]) == (0, SYMBOLS)
    assert all(f"Bearer {KEY}".encode() in request for request in heard)


# --- snapshots ----------------------------------------------------------------------------------


SNAPSHOT_EXPECTED = {
    # What happens to the snapshot's items if its call meets the fault: to the last one and to the
    # others, the recorded outcome, and the assets that get no snapshot for a day.
    "not-entitled": (("idle", 0, "medium"), FRESH, "ok", ["EURUSD"]),
    "nan": (COUNTED, FRESH, "ok", []),
    "infinity": (COUNTED, FRESH, "ok", []),
    "negative": (COUNTED, FRESH, "ok", []),
    "other-ticker": (COUNTED, FRESH, "ok", []),
    "high-below-low": (FRESH, FRESH, "ok", []),
    "future": (FRESH, FRESH, "ok", []),
    "unordered": (FRESH, FRESH, "ok", []),
    "duplicate": (FRESH, FRESH, "ok", []),
    "empty": (COUNTED, COUNTED, "ok", []),
    "wrong-shape": (FRESH, FRESH, "unreadable", SYMBOLS),
    "not-found": (FRESH, FRESH, "ticker_unknown", SYMBOLS),
    "forbidden": (FRESH, FRESH, "feed_denied", [""]),
    "server-error": (BACK, BACK, "unavailable", []),
    "truncated": (BACK, BACK, "unanswered", []),
}


@pytest.mark.parametrize("fault", SNAPSHOT_EXPECTED)
def test_after_any_fault_of_a_snapshot_each_asset_has_a_price_at_the_end_of_the_run(
    host: Host, api: StandIn, fault: str
) -> None:
    last, others, outcome, denied = SNAPSHOT_EXPECTED[fault]
    host.serve(plan="starter", period=1)
    api.set_faults([f"{fault}:1"])

    code, told = host.report("--max-runtime", "10")

    assert (code, sorted(told["updated"]), told["failed"]) == (0, SYMBOLS, [])
    snapshots = host.items("snapshot")
    assert (snapshots["EURUSD"], snapshots["BTCUSD"], snapshots["ETHUSDT"]) == (
        last,
        others,
        others,
    )
    assert host.outcomes()[0] == outcome
    denials = query(
        host.db,
        "select symbol from asset_sync.entitlements where capability = 'snapshot' order by symbol",
    )
    assert [symbol for (symbol,) in denials] == denied
    for symbol in SYMBOLS:
        price = host.price(symbol)
        figures = [price[f"daily_{name}"] for name in ("low", "high")]
        assert price["last_price"] > 0
        assert None in figures or figures[0] <= figures[1]
        assert set(host.statuses().values()) == {"success"}
    host.assert_in_order()
    # The next snapshot has none of the denied assets.
    api.set_faults([])
    host.an_hour_later()
    made = len(api.log)
    assert host.report("--max-runtime", "10")[0] == 0
    asked = {
        t
        for call in api.log[made:]
        if "/v3/" in call.method_path
        for t in (call.ticker or "").split(",")
    }
    assert asked == ({TICKERS[s] for s in SYMBOLS if s not in denied} if denied != [""] else set())


def test_a_quote_with_a_future_time_does_not_block_the_next_quote(host: Host, api: StandIn) -> None:
    host.serve("BTCUSD", plan="starter", period=1)
    api.set_faults(["future:1"])
    host.report("--max-runtime", "10")
    [(now, stamp)] = query(
        host.db,
        """
        select clock_timestamp(), (metadata -> 'last_update' ->> 'timestamp')::timestamptz
        from trading.symbols where symbol = 'BTCUSD'
        """,
    )
    assert stamp <= now
    query(host.db, "update trading.symbols set updated_at = '2000-01-01'")
    api.set_faults([])
    host.an_hour_later()
    host.report("--max-runtime", "10")
    [(written,)] = query(
        host.db, "select updated_at > '2000-01-02' from trading.symbols where symbol = 'BTCUSD'"
    )
    assert written


# --- many processes at once ---------------------------------------------------------------------


def test_processes_that_all_get_a_429_at_once_wait_and_lose_nothing(
    host: Host, api: StandIn
) -> None:
    host.serve(calls=3, period=1.5)
    api.set_faults(["rate-limit-retry-after:3"])  # others stop all calls for a minute
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "asset_sync", "sync", "queue", "--json"],
            env=host.environ,
            cwd=host.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=30), process.returncode) for process in started]

    assert [code for _, _, code in ended] == [0] * 3, ended
    updated = [symbol for out, _, _ in ended for symbol in json.loads(out)["updated"]]
    assert sorted(updated) == SYMBOLS
    assert host.items() == dict.fromkeys(SYMBOLS, FRESH)
    # Refusals of calls that were in flight together count as one and cause one wait.
    refused = min(call.at_seconds for call in api.log if call.status == 429)
    answered = [call.at_seconds for call in api.log if call.status == 200]
    assert not [at for at in answered if refused < at < refused + 1.5]
    assert len(api.log) == len(host.outcomes()) <= 6
    host.assert_in_order()
