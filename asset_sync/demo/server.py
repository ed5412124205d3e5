"""The stand-in: a loopback HTTP server that answers as the provider's API does.

    with StandIn("free", calls=5, period_seconds=10) as api:
        ...  # ask api.base_url with the header "Authorization: Bearer demo-key"
        assert api.most_in_a_window() <= 5

It keeps the rate limit as a strict sliding window over the times at which calls arrive, refused
ones included, and logs every arrival: its log proves whether a client kept the limit. Its answers
have the shapes of the vendor's specification; the bars are those of `asset_sync.demo.replay`. One
difference: a free key gets bars of today, too, because no refusal of them has been seen for
currencies; the fault `today` refuses them.
"""

import json
import math
import random
import secrets
import sys
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from socketserver import TCPServer
from struct import pack
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from asset_sync.demo import answers, faults, refusals
from asset_sync.demo.answers import Endpoint, Plan
from asset_sync.demo.faults import FaultPlan
from asset_sync.demo.wire import Call, Document, Reply, StandInError

_PAID = Plan(calls=100, period_seconds=1.0, snapshots=True, status="OK")
PLANS: Mapping[str, Plan] = {
    "free": Plan(5, 60.0, snapshots=False, status="DELAYED", history_days=730),
    "starter": _PAID,
    "developer": _PAID,
    "advanced": _PAID,
}
"""By the names that the settings file uses."""

Latency: TypeAlias = tuple[float, float] | Callable[[random.Random], float]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as the server saw it."""

    at_seconds: float
    """The monotonic clock when the request was in."""

    method_path: str
    """`GET /v2/aggs/…?sort=asc`, without the key."""

    ticker: str | None
    """What was asked about; of a snapshot all tickers, with commas between."""

    status: int
    """The status answered; 0 for none (a stall, a reset)."""

    key_ok: bool
    """Whether it counts against the key's window."""


class StandIn:
    """The server; it serves from `__enter__` (or `start`) to `__exit__` (or `stop`)."""

    def __init__(
        self,
        plan: str = "free",
        *,
        calls: int | None = None,
        period_seconds: float | None = None,
        latency: Latency = (0.0, 0.0),
        faults: Iterable[str] = (),
        port: int = 0,
        key: str = "demo-key",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a server; raise StandInError for an unknown plan or fault.

        calls, period_seconds: the window; left out, the plan's (5 in 60 s, or 100 in 1 s).
        latency: the least and the most seconds that a call takes, drawn at random, or a function
            that draws them from the seeded generator that it gets (for example with a long tail).
            Half passes before the arrival is stamped (the request travels), half after it.
        faults: specs as in `asset_sync.demo.faults`.
        port: 0 takes a free one.
        clock: Unix seconds, decides which bars there are; monotonic: seconds, stamps arrivals.
        """
        self._plan = _plan(plan)
        self._window = _Window(
            self._plan.calls if calls is None else calls,
            self._plan.period_seconds if period_seconds is None else period_seconds,
        )
        self._thaws_at = -math.inf
        self._faults = FaultPlan(faults)
        self._latency = latency
        self._random = random.Random(20140501)  # noqa: S311 - the same delays in every run
        self._port = port
        self._key = key
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._arrivals: list[Arrival] = []
        self._server: _Server | None = None

    # -------------------------------------------------------------- from start to stop

    def start(self) -> None:
        """Serve in the background; raise StandInError where the port is taken."""
        try:
            self._server = _Server(("127.0.0.1", self._port), self)
        except OSError as error:
            raise StandInError(
                f"The stand-in cannot listen on port {self._port} ({error.strerror}): "
                f"choose another, or 0 for any that is free."
            ) from error
        self._server.begin()

    def stop(self) -> None:
        """Hang up on every client and end, within a second."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Where it listens, without a slash at the end."""
        if self._server is None:
            raise StandInError("The stand-in is not running: it has an address once started.")
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def key(self) -> str:
        """The one key that it knows."""
        return self._key

    # -------------------------------------------------------------- what it has seen

    @property
    def log(self) -> list[Arrival]:
        """Every call so far, in the order of arrival; a call is in it before its answer is out."""
        with self._lock:
            return sorted(self._arrivals, key=lambda arrival: arrival.at_seconds)

    @property
    def refused(self) -> int:
        """How many calls were answered with 429."""
        return sum(arrival.status == 429 for arrival in self.log)  # noqa: PLR2004 - its name says it

    def most_in_a_window(self) -> int:
        """Return the most calls that came with the key in any window, refused ones included."""
        window = _Window(self._window.calls, self._window.period_seconds)
        stamps = (arrival.at_seconds for arrival in self.log if arrival.key_ok)
        return max((window.add(stamp) for stamp in stamps), default=0)

    def calls_by_ticker(self) -> dict[str, int]:
        """How often each ticker was asked about; a snapshot asks about all of its own."""
        tickers = (arrival.ticker for arrival in self.log if arrival.ticker)
        return dict(Counter(ticker for several in tickers for ticker in several.split(",")))

    def set_faults(self, specs: Iterable[str]) -> None:
        """Replace the faults; raise StandInError, and change nothing, for a bad spec."""
        plan = FaultPlan(specs)
        with self._lock:
            self._faults = plan

    def set_plan(
        self, plan: str, *, calls: int | None = None, period_seconds: float | None = None
    ) -> None:
        """Change what the key may do, as when a subscription lapses.

        The arguments are those of the constructor. Earlier calls count in the new window.
        """
        changed = _plan(plan)
        window = _Window(
            changed.calls if calls is None else calls,
            changed.period_seconds if period_seconds is None else period_seconds,
        )
        with self._lock:
            for arrival in sorted(self._arrivals, key=lambda arrival: arrival.at_seconds):
                if arrival.key_ok:
                    window.add(arrival.at_seconds)
            self._plan, self._window = changed, window

    # -------------------------------------------------------------- what the handler asks for

    def draw_latency(self) -> float:
        """Seconds that the next call takes."""
        with self._lock:
            if callable(self._latency):
                return self._latency(self._random)
            return self._random.uniform(*self._latency)

    def freeze(self, seconds: float) -> None:
        """Do nothing for so long, then read, count and answer all that has come meanwhile.

        It makes no difference if a client has gone meanwhile: its request was sent.
        """
        with self._lock:
            self._thaws_at = self._monotonic() + seconds

    def frozen_seconds(self) -> float:
        """How much longer it does nothing; usually 0 or less."""
        with self._lock:
            return self._thaws_at - self._monotonic()

    def answer(self, target: str, authorization: str | None, address: str) -> Reply:
        """Stamp a GET request as arrived now, judge it, and log it with its answer.

        `address` is what the client calls this server.
        """
        now_ms = int(self._clock() * 1000)
        with self._lock:
            plan, period_seconds = self._plan, self._window.period_seconds
            route, call, key = _read(target, authorization, now_ms, period_seconds, address)
            at_seconds = self._monotonic()
            verdict = self._judge(call, key, at_seconds)
        reply = verdict.refusal or answers.right_answer(route, call, plan)
        if verdict.fault is not None:
            reply = verdict.fault.answer(call, reply)
        asked = f"GET {call.path}" + (f"?{urlencode(call.query, safe=':,')}" if call.query else "")
        tickers = ",".join(call.tickers) or None
        arrival = Arrival(at_seconds, asked, tickers, reply.status, key_ok=verdict.counts)
        with self._lock:
            self._arrivals.append(arrival)
        return reply

    def _judge(self, call: Call, key: str | None, at_seconds: float) -> "_Verdict":
        if key is None:
            return _Verdict(refusal=refusals.no_key(), counts=False)
        if not secrets.compare_digest(key.encode(), self._key.encode()):
            return _Verdict(refusal=refusals.unknown_key(), counts=False)
        if self._window.add(at_seconds) > self._window.calls:
            return _Verdict(refusal=refusals.rate_limited())
        fault = self._faults.take(call)
        if fault is not None and not fault.counts:
            self._window.take_back()
            return _Verdict(fault=fault, counts=False)
        return _Verdict(fault=fault)

    def control(self, path: str, body: bytes) -> Reply:
        """Answer other processes, which need no key here; their calls do not count."""
        if path == _LOG_PATH:
            return Reply(200, self._log_document())
        if path not in _POSTED:
            return refusals.unknown_path()
        try:
            wanted = json.loads(body)
            match path, wanted:
                case "/_standin/faults", list() if all(isinstance(one, str) for one in wanted):
                    self.set_faults(wanted)
                case "/_standin/freeze", int() | float() if 0 <= wanted < math.inf:
                    self.freeze(wanted)
                case "/_standin/plan", str():
                    self.set_plan(wanted)
                case _:
                    return refusals.bad_request(f"The body is JSON, such as {_POSTED[path]}")
        except (ValueError, StandInError) as error:
            return refusals.bad_request(str(error))
        return Reply(200, {path.removeprefix(_CONTROL): wanted})

    def _log_document(self) -> Document:
        by_ticker: Document = dict(self.calls_by_ticker())
        return {
            "arrivals": [asdict(arrival) for arrival in self.log],
            "refused": self.refused,
            "most_in_a_window": self.most_in_a_window(),
            "calls_by_ticker": by_ticker,
        }


_CONTROL = "/_standin/"
_LOG_PATH = f"{_CONTROL}log"
_POSTED = {
    f"{_CONTROL}faults": '["stall:1"]',
    f"{_CONTROL}freeze": "8.5, in seconds",
    f"{_CONTROL}plan": '"free"',
}
"""The paths to which other processes may post, each with an example of its body."""


def _plan(name: str) -> Plan:
    if name not in PLANS:
        raise StandInError(f"“{name}” is no plan: it is one of {', '.join(PLANS)}.")
    return PLANS[name]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How a request is answered: with a refusal, with a fault, or rightly."""

    refusal: Reply | None = None
    fault: faults.Fault | None = None
    counts: bool = True


class _Window:
    """Stamps within a strict sliding window; it is half open: a stamp leaves after one period."""

    def __init__(self, calls: int, period_seconds: float) -> None:
        self.calls = calls
        self.period_seconds = period_seconds
        self._stamps: deque[float] = deque()

    def add(self, at_seconds: float) -> int:
        """How many stamps the window that ends here holds, this one included."""
        while self._stamps and at_seconds - self._stamps[0] >= self.period_seconds:
            self._stamps.popleft()
        self._stamps.append(at_seconds)
        return len(self._stamps)

    def take_back(self) -> None:
        """Forget the newest stamp."""
        self._stamps.pop()


# ------------------------------------------------------------------ reading a request


def _read(
    target: str, authorization: str | None, now_ms: int, period_seconds: float, address: str
) -> tuple[Endpoint, Call, str | None]:
    """Read a request's path, parameters and key, even if they make no sense."""
    asked = urlsplit(target)
    path = unquote(asked.path)
    query = dict(parse_qsl(asked.query, keep_blank_values=True))
    key_in_url = query.pop("apiKey", None)
    scheme, _, token = (authorization or "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else key_in_url
    query |= _inside(query.pop("cursor", ""))
    endpoint, parts = answers.route(path)
    named = parts.get("ticker") or query.get("ticker.any_of", "")
    until = parts.get("to") or parts.get("date") or ""
    call = Call(
        path=path,
        parts=parts,
        query=query,
        tickers=tuple(dict.fromkeys(ticker for ticker in named.split(",") if ticker)),
        until_ms=answers.read_moment(until, end_of_day=True),
        now_ms=now_ms,
        period_seconds=period_seconds,
        address=address,
    )
    return endpoint, call, key or None


def _inside(cursor: str) -> dict[str, str]:
    """Return the parameters in a cursor; one that was not made here stays what it is."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return dict(parse_qsl(urlsafe_b64decode(padded).decode(), keep_blank_values=True))
    except ValueError:
        return {"cursor": cursor}


# ------------------------------------------------------------------ HTTP

_POLL_SECONDS = 0.02
_MOST_POSTED_BYTES = 65_536
_NO_LINGER = pack("ii", 1, 0)


class _Handler(BaseHTTPRequestHandler):
    """One connection; the `Wire` of its answers."""

    server: "_Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def do_GET(self) -> None:
        """Answer a call; half of its latency passes before it counts as arrived, half after.

        What was sent arrives, whether or not the client still waits for the answer.
        """
        api = self.server.api
        if self.path.startswith(_CONTROL):
            return self._send(api.control(self.path, b"[]") if self.path == _LOG_PATH else None)
        half_seconds = api.draw_latency() / 2
        stopped = self.server.stopping.wait(half_seconds)
        while not stopped and api.frozen_seconds() > 0:
            stopped = self.server.stopping.wait(_POLL_SECONDS)
        if stopped:
            return self.hang_up()
        host = self.headers.get("Host") or f"127.0.0.1:{self.server.server_port}"
        reply = api.answer(self.path, self.headers.get("Authorization"), f"http://{host}")
        if self.give_up(half_seconds):
            return self.hang_up()
        return self._send(reply)

    def do_POST(self) -> None:
        """Set the faults, the plan or a freeze; the API itself takes no POST."""
        length = self.headers.get("Content-Length", "")
        if self.path not in _POSTED or not length.isdecimal() or int(length) > _MOST_POSTED_BYTES:
            self.hang_up()  # with a body unread, the next request could not be found
            return self._send(None)
        return self._send(self.server.api.control(self.path, self.rfile.read(int(length))))

    def _send(self, reply: Reply | None) -> None:
        found = reply or refusals.unknown_path()
        found.send(self, found)

    def head(self, reply: Reply, length: int, *, encoding: str | None = None) -> None:
        """Send the status line and the headers, announcing `length` bytes."""
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(length))
        if encoding is not None:
            self.send_header("Content-Encoding", encoding)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def give_up(self, seconds: float) -> bool:
        """Wait that long; True as soon as the server stops or, at the end, the client has gone."""
        return self.server.stopping.wait(seconds) or self._client_has_gone()

    def _client_has_gone(self) -> bool:
        try:
            return not self.connection.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def accepts_gzip(self) -> bool:
        """Whether the client said so."""
        return "gzip" in self.headers.get("Accept-Encoding", "")

    def hang_up(self) -> None:
        """Close the connection after what has been sent."""
        self.close_connection = True

    def reset(self) -> None:
        """Close the connection now: without lingering, closing it sends a TCP reset."""
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
        for part in (self.rfile, self.wfile, self.connection):
            part.close()
        raise ConnectionResetError

    def version_string(self) -> str:
        """Name the server, for the header `Server`."""
        return "asset-sync stand-in"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Print nothing: the log is `StandIn.log`."""


_Request: TypeAlias = socket | tuple[bytes, socket]


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that it can end them all at once."""

    daemon_threads = True
    request_queue_size = 128  # many processes may start at once

    def __init__(self, address: tuple[str, int], api: StandIn) -> None:
        self.api = api
        self.stopping = threading.Event()
        self._connections: dict[threading.Thread, socket] = {}
        super().__init__(address, _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="stand-in", daemon=True
        )

    def server_bind(self) -> None:
        """Bind without asking the name service who 127.0.0.1 is, as HTTPServer would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Wake and hang up on everybody; a second is enough for the rest."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        deadline = time.monotonic() + 1
        for thread, connection in list(self._connections.items()):
            with suppress(OSError):  # it has closed by itself
                connection.shutdown(SHUT_RDWR)
            thread.join(max(0.0, deadline - time.monotonic()))
        self.server_close()

    def process_request(self, request: _Request, client_address: object) -> None:
        """As ThreadingMixIn does it, remembering the connection before it can end."""
        if not isinstance(request, socket):  # only UDP servers get a pair
            raise TypeError(request)
        thread = threading.Thread(
            target=self._converse, args=(request, client_address), daemon=True
        )
        self._connections[thread] = request
        thread.start()

    def _converse(self, request: socket, client_address: tuple[str, int]) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def handle_error(self, request: _Request, client_address: object) -> None:
        """Show bugs; a client that goes away is not one."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
