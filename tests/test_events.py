"""Listeners get each new price after it is stored, and no price that is not stored."""

import itertools
import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from io import BufferedIOBase
from pathlib import Path
from typing import Self

import pytest
from commandline import Told
from machine import Machine
from servers import RedisServer, redis_server

from asset_sync.bus import Client, EventsError
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.secret import Secret
from asset_sync.store import publish
from asset_sync.store.market import LastPrice

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PASSWORD = "s3cret-Tr4ding-v4lue"


def price(
    symbol: str = "EURUSD",
    *,
    bid: float | None = 1.0868,
    ask: float | None = 1.087,
    at: datetime = NOON,
) -> LastPrice:
    return LastPrice(symbol, bid, ask, 1.0869, 1.08, 1.09, 1.07, 1.0869, at)


# --- the message --------------------------------------------------------------------------------


def test_the_message_has_exactly_the_keys_that_listeners_rely_on() -> None:
    assert json.loads(publish.message(price())) == {
        "symbol": "EURUSD",
        "bid": 1.0868,
        "ask": 1.087,
        "last_price": 1.0869,
        "timestamp": "2026-03-02T12:00:00+00:00",
        "source": "polygon",
    }


def test_a_price_without_a_quote_has_null_for_bid_and_ask() -> None:
    told = json.loads(publish.message(price(bid=None, ask=None)))

    assert (told["bid"], told["ask"]) == (None, None)


def test_the_time_of_an_event_is_in_utc() -> None:
    tokyo = NOON.astimezone(timezone(timedelta(hours=9)))

    assert json.loads(publish.message(price(at=tokyo)))["timestamp"] == "2026-03-02T12:00:00+00:00"


# --- NOTIFY -------------------------------------------------------------------------------------


@pytest.fixture
def listener(connect: Callable[[], Connection]) -> Connection:
    """Return another program's connection that listens."""
    connection = connect()
    query(connection, "listen asset_update")
    return connection


def heard(listener: Connection) -> list[str]:
    """Return the events that have arrived: NOTIFY comes before a statement's answer."""
    query(listener, "select 1")
    listener.poll()
    payloads = [one.payload for one in listener.notifies]
    listener.notifies.clear()
    return payloads


def test_listeners_get_each_price_after_its_commit(db: Connection, listener: Connection) -> None:
    prices = [price("EURUSD"), price("GBPUSD")]

    with transaction(db) as cursor:
        publish.notify(cursor, prices)
        assert heard(listener) == []

    assert heard(listener) == [publish.message(one) for one in prices]


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt])
def test_listeners_get_nothing_that_was_rolled_back(
    db: Connection, listener: Connection, trouble: type[BaseException]
) -> None:
    with suppress(trouble), transaction(db) as cursor:
        publish.notify(cursor, [price()])
        raise trouble

    assert heard(listener) == []


def test_an_answer_without_prices_sends_no_event(db: Connection, listener: Connection) -> None:
    with transaction(db) as cursor:
        publish.notify(cursor, [])

    assert heard(listener) == []


def test_the_events_of_a_whole_snapshot_are_delivered(db: Connection, listener: Connection) -> None:
    prices = [price(f"ASSET{number}") for number in range(250)]

    with transaction(db) as cursor:
        publish.notify(cursor, prices)

    assert len(heard(listener)) == 250


# --- Redis --------------------------------------------------------------------------------------


class FakeRedis:
    """A server that knows the part of RESP that a publishing client needs."""

    def __init__(self, *, refuses: Sequence[bytes] = ()) -> None:
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self._refuses = {command.upper() for command in refuses}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> Secret:
        port = self._socket.getsockname()[1]
        return Secret(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")

    @property
    def published(self) -> list[tuple[str, str]]:
        return [
            (arguments[0].decode(), arguments[1].decode())
            for name, *arguments in self.commands
            if name.upper() == b"PUBLISH"
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.connections += 1
                with client, client.makefile("rwb") as stream, suppress(OSError):
                    while header := stream.readline():
                        command = [self._argument(stream) for _ in range(int(header[1:]))]
                        self.commands.append(command)
                        stream.write(self._answer(command[0].upper()))
                        stream.flush()

    @staticmethod
    def _argument(stream: BufferedIOBase) -> bytes:
        length = int(stream.readline()[1:])
        argument = stream.read(length)
        stream.read(2)
        return argument

    def _answer(self, name: bytes) -> bytes:
        if name in self._refuses:
            return b"-NOPERM this user may not run the '%s' command\r\n" % name
        if name == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        return b":0\r\n" if name == b"PUBLISH" else b"+OK\r\n"


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    with FakeRedis() as server:
        yield server


@pytest.fixture
def closing() -> Iterator[Callable[[Client], Client]]:
    """Close publishers at the end of the test, as a run does."""
    opened: list[Client] = []

    def keep(publisher: Client) -> Client:
        opened.append(publisher)
        return publisher

    yield keep
    for publisher in opened:
        publisher.close()


Closing = Callable[[Client], Client]


def failure(publisher: Client) -> EventsError:
    """Return the error of publishing, having made sure that the password is nowhere in it."""
    with pytest.raises(EventsError) as caught:
        publish.send(publisher, [price()])
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return caught.value


def test_redis_gets_the_same_json_on_the_assets_own_channel(
    redis: FakeRedis, closing: Closing
) -> None:
    publisher = closing(Client(redis.url))

    publish.send(publisher, [price("EURUSD"), price("XAUUSD", bid=None)])

    assert redis.published == [
        ("asset:update:EURUSD", publish.message(price("EURUSD"))),
        ("asset:update:XAUUSD", publish.message(price("XAUUSD", bid=None))),
    ]


def test_one_connection_serves_a_whole_run(redis: FakeRedis, closing: Closing) -> None:
    publisher = closing(Client(redis.url))

    for _ in range(3):
        publish.send(publisher, [price()])

    assert (redis.connections, len(redis.published)) == (1, 3)


def test_a_redis_that_is_down_causes_one_warning(closing: Closing) -> None:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    publisher = closing(Client(Secret(f"redis://me:{PASSWORD}@127.0.0.1:1/0")))

    assert "REDIS_URL" in str(failure(publisher))

    publish.send(publisher, [price()])


def test_a_redis_that_is_down_is_tried_once(closing: Closing) -> None:
    """It is tried again neither within a call, with pauses, nor for the next price."""
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        tries = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    tries.append(client.getpeername())
                    client.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        publisher = closing(Client(Secret(f"redis://127.0.0.1:{server.getsockname()[1]}")))
        failure(publisher)
        publish.send(publisher, [price()])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert len(tries) == 1


def test_a_redis_that_does_not_answer_several_workers_causes_one_warning(closing: Closing) -> None:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    warnings = list[EventsError]()

    def work() -> None:
        try:
            publish.send(publisher, [price()])
        except EventsError as error:
            warnings.append(error)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = closing(Client(Secret(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")))
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    assert len(warnings) == 1


def test_a_redis_that_refuses_to_publish_causes_one_warning(closing: Closing) -> None:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    with FakeRedis(refuses=[b"PUBLISH"]) as server:
        publisher = closing(Client(server.url))
        failure(publisher)
        publisher.close()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}@host:not-a-port/0",
        f"redis://:{PASSWORD}/not-encoded@host:6379/0",  # the client takes it for the port
        f"{PASSWORD}://host",
    ],
)
def test_an_invalid_redis_url_causes_one_warning(closing: Closing, url: str) -> None:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")

    failure(closing(Client(Secret(url))))


def test_if_the_redis_client_is_missing_the_warning_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, closing: Closing
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    publisher = closing(Client(Secret(f"redis://:{PASSWORD}@localhost/0")))

    assert "asset-sync[redis]" in str(failure(publisher))

    publish.send(publisher, [price()])


def test_a_publisher_that_was_never_used_can_be_closed() -> None:
    Client(Secret("redis://localhost")).close()


# --- a real Redis -------------------------------------------------------------------------------


@pytest.fixture
def real_redis() -> Iterator[RedisServer]:
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    with redis_server(PASSWORD) as server:
        yield server


@pytest.fixture
def subscriber(real_redis: RedisServer) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Return the channels and messages that a subscriber of every asset gets."""
    from redis import Redis  # noqa: PLC0415

    with Redis.from_url(real_redis.url, decode_responses=True) as client, client.pubsub() as heard:
        heard.psubscribe("asset:update:*")
        told = iter(lambda: heard.get_message(timeout=10), None)
        assert next(told)["type"] == "psubscribe"

        def messages() -> list[tuple[str, str]]:
            client.publish("asset:update:", "that was all")
            events = ((one["channel"], one["data"]) for one in told)
            return list(itertools.takewhile(lambda one: one[0] != "asset:update:", events))

        yield messages


@pytest.fixture
def run(url: str, tmp_path: Path) -> Callable[..., Told]:
    """Run a command line that publishes, and check that its output has no password."""

    def run(*arguments: str, api: StandIn, redis_url: str) -> Told:
        machine = Machine(tmp_path, url, api, secrets=(PASSWORD,), REDIS_URL=redis_url)
        return machine.tell(*arguments)

    return run


def test_a_sync_publishes_the_same_to_redis_and_postgresql(
    run: Callable[..., Told],
    real_redis: RedisServer,
    subscriber: Callable[[], list[tuple[str, str]]],
    listener: Connection,
) -> None:
    with StandIn("free") as api:
        told = run("sync", "priority", api=api, redis_url=real_redis.url)

    messages = subscriber()
    assert (told.code, told.err.count("Redis")) == (0, 0)
    assert [channel for channel, _ in messages] == [
        f"asset:update:{symbol}" for symbol in ("XAUUSD", "EURUSD", "BTCUSD")
    ]
    assert [message for _, message in messages] == heard(listener)
    first = json.loads(messages[0][1])
    assert set(first) == {"symbol", "bid", "ask", "last_price", "timestamp", "source"}
    assert (first["symbol"], first["source"]) == ("XAUUSD", "polygon")
    assert first["last_price"] > 0


def test_a_redis_that_stops_during_a_run_causes_one_warning_and_no_failure(
    run: Callable[..., Told],
    real_redis: RedisServer,
    subscriber: Callable[[], list[tuple[str, str]]],
    listener: Connection,
) -> None:
    calls = itertools.count(1)
    before: list[tuple[str, str]] = []

    def stop_at_the_second(_: object) -> float:
        if next(calls) == 2:
            before.extend(subscriber())
            real_redis.stop()
        return 0

    with StandIn("free", latency=stop_at_the_second) as api:
        told = run("sync", "priority", api=api, redis_url=real_redis.url)

    assert told.code == 0
    assert told.out.startswith("priority: 3 refreshed")
    assert told.err.count("Redis did not get the new prices (ConnectionError)") == 1
    assert [channel for channel, _ in before] == ["asset:update:XAUUSD"]
    assert len(heard(listener)) == 3, "PostgreSQL tells them all"


def test_a_wrong_redis_password_is_reported_in_one_sentence_without_the_password(
    run: Callable[..., Told], real_redis: RedisServer
) -> None:
    wrong = real_redis.url.replace(PASSWORD, f"{PASSWORD}x")
    with StandIn("free") as api:
        told = run("sync", "priority", "-q", api=api, redis_url=wrong)

    assert (told.code, told.out) == (0, "")
    [line] = told.err.splitlines()
    assert "Redis did not get the new prices (AuthenticationError)" in line


@pytest.mark.parametrize(
    ("password", "grade", "text"),
    [(PASSWORD, "ok", "answers"), (f"{PASSWORD}x", "warning", "AuthenticationError")],
)
def test_the_doctor_checks_that_redis_answers(
    db: Connection,
    run: Callable[..., Told],
    real_redis: RedisServer,
    password: str,
    grade: str,
    text: str,
) -> None:
    redis_url = real_redis.url.replace(PASSWORD, password)
    with StandIn("free") as api:
        told = run("doctor", "--offline", "--json", api=api, redis_url=redis_url)

    [line] = [one for one in json.loads(told.out)["findings"] if one["subject"] == "redis"]
    assert line["grade"] == grade
    assert text in line["text"]
