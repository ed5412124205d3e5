"""A day of cron in seconds: the real loop, the real SQL, and virtual time.

Time passes only when every thread sleeps. Each command is a thread, and one thread works at a time.
The database has the virtual time, too: each statement passes it to our own `now()` and
`clock_timestamp()`, which are before PostgreSQL's in the search path. This module also gives the
provider's answers, without a network: after as many virtual seconds as a call takes, and with one
bar each. So the simulation shows when an asset is asked for, not what is answered. With the hours
of the markets (`Bars`) an answer has the bars of the range that was asked for.

No real time is used, so a day has the same figures on every machine, however busy it is.
"""

import bisect
import heapq
import itertools
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil
from typing import NamedTuple
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg2.extensions
from anytime import SEARCH_PATH, WEDNESDAY, shadowing
from explorer.statements import Statements, named
from psycopg2.extensions import make_dsn

from asset_sync import database
from asset_sync.budget.turn import POLL_SECONDS
from asset_sync.clock import Clock
from asset_sync.database import Connection, Cursor, Parameters
from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.model import Feed, Lane
from asset_sync.provider.access import Access
from asset_sync.provider.errors import Unanswered
from asset_sync.provider.polygon import client
from asset_sync.provider.polygon.endpoints import REFERENCE_PATH
from asset_sync.provider.polygon.http import Reply
from asset_sync.secret import Secret
from asset_sync.settings import Settings
from asset_sync.sync import loop
from asset_sync.sync.progress import Calling, Failed, Progress, PutBack, Synced, Waiting, Warned

DAY = 86_400.0
NOON = datetime.fromisoformat(WEDNESDAY)
"""A start of every interval of cron: intervals count from the epoch."""
BAR_MS = 300_000


class Jump(NamedTuple):
    """A moment at which somebody sets the database's clock."""

    at_seconds: float
    by_seconds: float


class World:
    """Virtual time. One thread works; when it sleeps, the thread that wakes first continues."""

    def __init__(self, start: datetime, jumps: Sequence["Jump"] = ()) -> None:
        self.now = 0.0
        self._start = start.timestamp()
        self._jumps = jumps
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._errors: list[BaseException] = []

    @property
    def epoch_seconds(self) -> float:
        """The time of the database's clock, as Unix time."""
        jumped = sum(jump.by_seconds for jump in self._jumps if jump.at_seconds <= self.now)
        return self._start + self.now + jumped

    def start(self, at: float, work: Callable[[], None]) -> None:
        """Start this work then, in another thread."""
        awake = self._sleeper(at)

        def live() -> None:
            awake.wait()
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # raised again in the test's own thread
                self._errors.append(error)
                self._over.set()
            else:
                self._wake_the_next()

        threading.Thread(target=live, daemon=True).start()

    def sleep(self, seconds: float) -> bool:
        """Let the others work until so much time has passed; return whether none of them did."""
        awake = self._sleeper(self.now + max(0.0, seconds))
        alone = self._wake_the_next() is awake
        awake.wait()
        return alone

    def pass_by(self) -> None:
        """Let time pass until no thread sleeps any more."""
        self._wake_the_next()
        self._over.wait()
        if self._errors:
            raise self._errors[0]

    def _sleeper(self, until: float) -> threading.Event:
        awake = threading.Event()
        heapq.heappush(self._sleepers, (until, next(self._numbers), awake))
        return awake

    def _wake_the_next(self) -> threading.Event:
        awake = self._over
        if self._sleepers:
            self.now, _, awake = heapq.heappop(self._sleepers)
        awake.set()
        return awake


class WorldClock(Clock):
    """The clock with which a run measures the virtual time.

    A waiting run checks every few seconds whether somebody has changed something. If nobody
    else has worked meanwhile it would find what it found before, so it sleeps on.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.announced_seconds = 0.0
        """The wait that the run has announced, unless something changes."""

    def monotonic(self) -> float:
        return self._world.now

    def sleep(self, seconds: float) -> None:
        alone = self._world.sleep(seconds)
        left, self.announced_seconds = self.announced_seconds - seconds, 0.0
        while alone and left > 0:
            pause = min(left, POLL_SECONDS)
            alone = self._world.sleep(pause)
            left -= pause


@dataclass
class Day:
    """What happened on the day; times are seconds since the start."""

    fresh_at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: list[float] = field(default_factory=list)
    """When the provider read each call, in order."""
    asked_at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When each asset was asked for its newest data."""
    late: list[float] = field(default_factory=list)
    """How long after it was due each asset of the queue was asked, from its second time on."""
    history_calls: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """How long each priority run waited for slots."""
    failures: Counter[str] = field(default_factory=Counter)
    """How many calls for each asset failed."""
    warnings: list[str] = field(default_factory=list)

    def note(self, progress: Progress, at_seconds: float) -> None:
        """Note what a run reports."""
        match progress:
            case Synced(symbol=symbol):
                self.fresh_at[symbol].append(at_seconds)
            case Failed(symbol=symbol):
                self.failures[symbol] += 1
            case PutBack(symbols=symbols):
                self.failures.update(symbols)
            case Warned(text=text):
                self.warnings.append(text)

    def staleness(self, symbols: Sequence[str], after: float = 0) -> "Staleness":
        """Return how stale these assets were from then on, counted from their first refresh."""
        gaps: list[float] = []
        for symbol in symbols:
            moments = [at for at in self.fresh_at[symbol] if at >= after]
            gaps += [later - earlier for earlier, later in itertools.pairwise(moments)]
        return Staleness(sorted(gaps))

    def most_in(self, seconds: float) -> int:
        """Return the most calls that any window held."""
        first = most = 0
        for last, at in enumerate(self.calls):
            while self.calls[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


@dataclass(frozen=True)
class Staleness:
    """The ages that data had: in each gap between refreshes, from 0 to its length."""

    gaps: Sequence[float]

    @property
    def worst(self) -> float:
        return self.gaps[-1]

    def at(self, share: float) -> float:
        """Return the age that was not exceeded in that share of the time."""
        total = sum(self.gaps)
        low, high = 0.0, self.worst
        for _ in range(50):
            middle = (low + high) / 2
            if sum(min(gap, middle) for gap in self.gaps) < share * total:
                low = middle
            else:
                high = middle
        return high


class Asked(NamedTuple):
    """One call, as the provider sees it."""

    tickers: Sequence[str]
    at_seconds: float


class Freeze(NamedTuple):
    """A time in which the provider does nothing; then it reads everything it was sent."""

    from_seconds: float
    until_seconds: float


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars that the provider holds: all since a moment, and few of the time before.

    A call for history then brings about as many rows as one for the newest data.
    """

    hours: Mapping[str, Hours]
    """When each ticker trades; there is a bar in every open slot."""
    since: datetime
    lag_seconds: float = 0.0
    """How long after its end a bar can be seen."""

    def starts(self, ticker: str, start: datetime, end: datetime, now: datetime) -> Iterator[int]:
        """Yield the starts of the bars in a range, in Unix seconds."""
        seen_until = now - timedelta(seconds=self.lag_seconds) - BAR_LENGTH
        until = min(end, seen_until) + datetime.resolution
        yield from self._starts(ticker, start, min(until, self.since), _FEW)
        yield from self._starts(ticker, max(start, self.since), until, BAR_LENGTH)

    def _starts(
        self, ticker: str, start: datetime, until: datetime, every: timedelta
    ) -> Iterator[int]:
        step = every // timedelta(seconds=1)
        for opened in self.hours[ticker].spans(start, max(start, until)):
            first = ceil(opened.start.timestamp() / step) * step
            yield from range(first, ceil(opened.end.timestamp()), step)


_FEW = timedelta(hours=8)


@dataclass(frozen=True, slots=True)
class Api:
    """The provider's behaviour on the day."""

    call_seconds: float = 0.3
    bars: Bars | None = None
    """What it holds; by default each answer has one bar, at the end of the range."""
    reply: Callable[[Asked, Reply], Reply] = lambda _, right: right
    """What it answers instead of the correct answer."""
    freezes: Sequence[Freeze] = ()

    def reads_at(self, at_seconds: float) -> float:
        """Return when the provider reads a request that arrives then."""
        return next(
            (until for since, until in self.freezes if since <= at_seconds < until), at_seconds
        )


def live_through(
    url: str,
    settings: Settings,
    api: Api,
    *,
    seconds: float = DAY,
    start: datetime = NOON,
    hosts: int = 1,
    jumps: Sequence[Jump] = (),
) -> Day:
    """Start both commands as cron does, from that time for so long, and return what happened.

    Each run makes one call at a time: the simulated clock is that of one worker.
    """
    settings = replace(settings, provider=replace(settings.provider, parallel_calls=1))
    with database.session(Secret(url)) as db, db.cursor() as cursor:
        cursor.execute(shadowing(_TIME, _TIME))
    world, day = World(start, jumps), Day()
    simulated = Secret(
        make_dsn(url, options=f"-c search_path={SEARCH_PATH} -c plan_cache_mode=force_generic_plan")
    )
    with ExitStack() as stack:
        http = partial(_Http, world, day, api)
        stack.enter_context(mock.patch.object(client, "Http", http))
        plans = stack.enter_context(closing(Statements(simulated.reveal())))
        for _, lane in itertools.product(range(hosts), Lane):
            db = stack.enter_context(database.raw_session(simulated))
            db.cursor_factory = _cursors(world, plans)
            world.start(0, partial(_cron, world, day, db, settings, lane, seconds))
        world.pass_by()
    return day


def _cron(
    world: World, day: Day, db: Connection, settings: Settings, lane: Lane, seconds: float
) -> None:
    clock = WorldClock(world)

    def listen(progress: Progress) -> None:
        match progress:
            case Waiting(seconds=announced):
                clock.announced_seconds = announced
            case Calling(feed=Feed.HISTORY):
                day.history_calls.append(world.now)
            case Calling(symbols=symbols):
                if lane is Lane.QUEUE:
                    day.late += _late(db, [one for one in symbols if one in day.asked_at])
                for symbol in symbols:
                    day.asked_at[symbol].append(world.now)
            case _:
                day.note(progress, world.now)

    while world.now < seconds:
        started = world.now
        report = loop.run(db, settings, lane, clock=clock, tell=listen)
        if lane is Lane.PRIORITY:
            day.waits.append(report.waited_seconds)
        clock.sleep(started + settings.batch.interval_seconds - world.now)


def _late(db: Connection, symbols: Sequence[str]) -> list[float]:
    """Return for how long these leased assets have been due."""
    rows = database.query(
        db,
        """
        select extract(epoch from clock_timestamp() - due_at)::float8 from asset_sync.queue
        where symbol = any(%s) and state = 'leased' and feed <> 'history'
        """,
        (list(symbols),),
    )
    return [max(0.0, seconds) for (seconds,) in rows]


# --- the database's clock -------------------------------------------------------------------------

_TIME = "to_timestamp(current_setting('world.now')::float8)"


def _cursors(world: World, plans: Statements) -> type[Cursor]:
    """Return cursors of one connection that pass the virtual time with every statement."""
    prepared: set[str] = set()

    class Timed(psycopg2.extensions.cursor):
        def execute(self, sql: str | bytes, parameters: Parameters | None = None) -> None:  # type: ignore[override]
            if sql in {"commit", "rollback"}:
                super().execute(sql)
                return
            given = named(parameters)
            parts = [f"set local world.now = '{world.epoch_seconds!r}'"]
            for statement in plans.of(str(sql), given):
                if statement.prepare and statement.prepare not in prepared:
                    prepared.add(statement.prepare)
                    parts.append(statement.prepare.replace("%", "%%"))
                parts.append(statement.to_send)
            super().execute("; ".join(parts), given)

    return Timed


# --- the provider ---------------------------------------------------------------------------------


class _Http:
    """Answers from the simulation instead of a network; has the interface of the real one."""

    host = "the simulated API"

    def __init__(self, world: World, day: Day, api: Api, access: Access) -> None:
        self._world = world
        self._day = day
        self._api = api
        self._read_timeout_seconds = access.read_timeout_seconds
        self.call_timeout_seconds = access.call_timeout_seconds

    def close(self) -> None:
        pass

    def get(self, endpoint: str, asked: str) -> Reply:
        read_at = self._api.reads_at(self._world.now)
        bisect.insort(self._day.calls, read_at)
        frozen = read_at - self._world.now
        if frozen > self._read_timeout_seconds:
            self._world.sleep(self._read_timeout_seconds)
            what = f"No answer from {self.host} for {asked}"
            raise Unanswered(what, self._read_timeout_seconds)
        self._world.sleep(frozen + self._api.call_seconds)
        tickers, body = self._answer(endpoint)
        return self._api.reply(Asked(tickers, read_at), Reply(200, json.dumps(body), None))

    def _answer(self, endpoint: str) -> tuple[Sequence[str], dict[str, object]]:
        address = urlsplit(endpoint)
        if address.path.startswith("/v3/snapshot"):
            tickers = parse_qs(address.query)["ticker.any_of"][0].split(",")
            return tickers, {"status": "OK", "results": [self._quote(one) for one in tickers]}
        ticker = unquote(address.path.split("/")[4])
        if address.path.startswith(REFERENCE_PATH):
            return [ticker], {"status": "OK", "results": {"ticker": ticker}}
        asked = [int(bound) for bound in address.path.split("/")[-2:]]
        results = [
            {"o": 1.0, "h": 1.0, "l": 1.0, "c": 1.0, "v": 1, "t": at}
            for at in self._bars(ticker, *asked)
        ]
        return [ticker], {
            "status": "DELAYED",
            "ticker": ticker,
            "resultsCount": len(results),
            "results": results,
        }

    def _bars(self, ticker: str, since_ms: int, until_ms: int) -> list[int]:
        if self._api.bars is None:
            return [until_ms // BAR_MS * BAR_MS]
        moments = (since_ms / 1000, until_ms / 1000, self._world.epoch_seconds)
        since, until, now = (datetime.fromtimestamp(moment, UTC) for moment in moments)
        return [1000 * at for at in self._api.bars.starts(ticker, since, until, now)]

    def _quote(self, ticker: str) -> dict[str, object]:
        at_ns = int(self._world.epoch_seconds * 1e9)
        return {
            "ticker": ticker,
            "type": "fx",
            "last_quote": {"ask": 1.1, "bid": 1.0, "last_updated": at_ns},
            "session": {},
        }
