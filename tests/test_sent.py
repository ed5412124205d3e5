"""A request counts as sent from just before its first byte is written."""

import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from test_polygon import HEAD, Script, drips, failure, polygon, read_request, resets, says, wire

from asset_sync.provider.errors import NotSent, Unanswered, Unavailable
from asset_sync.provider.polygon.client import Polygon

START, END = datetime(2026, 3, 2, 9, tzinfo=UTC), datetime(2026, 3, 2, 10, tzinfo=UTC)
CLOSED_PORT = "http://127.0.0.1:9"
EMPTY = json.dumps({"status": "OK", "ticker": "C:EURUSD", "resultsCount": 0}).encode()
WELL = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(EMPTY), EMPTY)


def ask(api: Polygon) -> object:
    return api.bars("C:EURUSD", START, END)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("base_url", "proxy"),
    [
        (CLOSED_PORT, ""),
        ("http://no-such-host.invalid", ""),
        ("nothing", ""),
        ("https://api.invalid", CLOSED_PORT),
    ],
    ids=["refused", "no such name", "no URL", "proxy refused"],
)
def test_a_request_that_could_not_be_written_counts_as_not_sent(
    base_url: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with polygon(base_url) as api:
        assert type(failure(lambda: ask(api))) is NotSent


def test_a_failed_or_slow_tls_handshake_counts_as_not_sent() -> None:
    for script in (
        drips(b"HTTP/1.1 400 Bad\r\n\r\n", b"x", after_request=False),
        drips(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb", b"\x00", after_request=False),
    ):
        with wire(script) as url, polygon(url.replace("http", "https"), call=0.3) as api:
            assert type(failure(lambda: ask(api))) is NotSent


def test_a_request_to_a_proxy_that_refuses_the_tunnel_counts_as_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with wire(says(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with polygon("https://api.invalid") as api:
            assert type(failure(lambda: ask(api))) is NotSent


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(resets, id="reset"),
        pytest.param(says(), id="hung up"),
        pytest.param(drips(b"", b"H"), id="time-out"),
        pytest.param(says(HEAD + b"Content-Length: 99\r\n\r\n{}"), id="half a body"),
        *(
            pytest.param(
                says(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status), id=str(status)
            )
            for status in (504, 522, 523, 524)
        ),
    ],
)
def test_a_written_request_without_an_answer_counts_as_sent(script: Script) -> None:
    with wire(script) as url, polygon(url, call=0.4) as api:
        error = failure(lambda: ask(api))
    assert type(error) is Unanswered
    assert 0 <= error.sent_seconds_ago < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n{",
        HEAD + b"Content-Encoding: br\r\n\r\n{}",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip",
    ],
)
def test_a_request_with_an_unusable_answer_counts_as_answered(answer: bytes) -> None:
    with wire(says(answer)) as url, polygon(url) as api:
        assert type(failure(lambda: ask(api))) is Unavailable


def test_a_request_on_a_kept_connection_that_is_reset_counts_as_sent() -> None:
    def script(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(WELL)
        resets(connection, over)

    with wire(script) as url, polygon(url) as api:
        ask(api)
        assert type(failure(lambda: ask(api))) is Unanswered


# --- a host that is suspended ---------------------------------------------------------------------


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Suspend the host for an hour: its clock counts that, and no timer notices it."""
    asleep = [0.0]
    real = time.clock_gettime

    def clock_gettime(clock: int) -> float:
        return real(clock) + (asleep[0] if clock != time.CLOCK_REALTIME else 0)

    def sleep() -> None:
        asleep[0] += 3600

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    return sleep


Moment = Callable[[Callable[[], None], str, pytest.MonkeyPatch, Polygon], None]


def _while_the_name_is_resolved(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    resolve = socket.getaddrinfo

    def resolved(*arguments: object, **options: object) -> object:
        suspend()
        return resolve(*arguments, **options)  # type: ignore[arg-type]

    patch.setattr(socket, "getaddrinfo", resolved)


def _while_it_connects(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    connect = socket.socket.connect

    def connected(line: socket.socket, address: object) -> None:
        suspend()
        connect(line, address)  # type: ignore[arg-type]

    patch.setattr(socket.socket, "connect", connected)


def _once_it_is_connected(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    connect = socket.socket.connect

    def connected(line: socket.socket, address: object) -> None:
        connect(line, address)  # type: ignore[arg-type]
        suspend()

    patch.setattr(socket.socket, "connect", connected)


def _while_a_proxy_makes_the_tunnel(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    patch.setenv("HTTPS_PROXY", url)
    patch.setattr(api._http, "base_url", "https://api.invalid")


def _before_the_call(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    suspend()


def _before_a_call_on_a_kept_connection(
    suspend: Callable[[], None], url: str, patch: pytest.MonkeyPatch, api: Polygon
) -> None:
    ask(api)
    suspend()


@pytest.mark.parametrize(
    "moment",
    [
        _while_the_name_is_resolved,
        _while_it_connects,
        _once_it_is_connected,
        _while_a_proxy_makes_the_tunnel,
        _before_the_call,
        _before_a_call_on_a_kept_connection,
    ],
)
def test_a_host_that_was_suspended_between_slot_and_request_sends_nothing(
    moment: Moment, suspend: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket, over: threading.Event) -> None:
        while True:
            requests.append(read_request(connection))
            if requests[-1].startswith(b"CONNECT"):
                suspend()
                connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                over.wait(0.2)
                return
            connection.sendall(WELL)

    with wire(script) as url, polygon(url) as api:
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + 30
        api.send_only_if(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) < until)
        moment(suspend, url, monkeypatch, api)
        before = len(requests)
        assert type(failure(lambda: ask(api))) is NotSent
    assert all(request.startswith(b"CONNECT") for request in requests[before:])
