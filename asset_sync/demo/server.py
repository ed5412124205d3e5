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

import math
import random
import secrets
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from asset_sync.demo import answers, faults, refusals
from asset_sync.demo.answers import Endpoint, Plan
from asset_sync.demo.faults import FaultPlan
from asset_sync.demo.http import Server
from asset_sync.demo.wire import Call, Reply, StandInError

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
        self._server: Server | None = None

    # -------------------------------------------------------------- from start to stop

    def start(self) -> None:
        """Serve in the background; raise StandInError where the port is taken."""
        try:
            self._server = Server(("127.0.0.1", self._port), self)
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
