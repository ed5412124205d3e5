"""A day of cron in seconds: the real loop, the real SQL, and time that passes only when all sleep.

Each command is a thread that works while the other sleeps. The database takes its time from the
world, too: functions of ours stand before PostgreSQL's `now()` and `clock_timestamp()` in the
search path. The provider's answers come from `responses`, after as many seconds of the world as a
call takes, and with one bar each: what is asked is when, not what.
"""

import heapq
import itertools
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import requests
import responses
from psycopg2.extensions import make_dsn

from asset_sync import database, sync
from asset_sync.database import Connection, query
from asset_sync.progress import Failed, Progress, PutBack, Synced, Warned
from asset_sync.settings import Secret, Settings
from asset_sync.slots import Lane

DAY = 86_400.0
# Columns take their defaults, such as the time at which an asset was added, from the real time.
START = time.time()
BAR_MS = 300_000

_TIME = """
create schema world;
create function world.clock_timestamp() returns timestamptz language sql stable
  as $$select to_timestamp(current_setting('world.now')::float8)$$;
create function world.now() returns timestamptz language sql stable
  as $$select to_timestamp(current_setting('world.now')::float8)$$;
update asset_sync.limiter set blocked_until = '-infinity', reserved_at = '-infinity';
"""


class World:
    """Virtual time. One thread works; when it sleeps, whoever wakes first goes on."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._idle = threading.Event()
        self.errors: list[BaseException] = []

    def start(self, at: float, work: Callable[[], None]) -> None:
        """Let a thread of its own begin this work then."""
        awake = self._sleeper(at)

        def live() -> None:
            awake.wait()
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # the test is to see it
                self.errors.append(error)
            self._idle.set()

        threading.Thread(target=live, daemon=True).start()

    def sleep(self, seconds: float) -> None:
        """Let the others work until so much time has passed."""
        awake = self._sleeper(self.now + max(0.0, seconds))
        self._idle.set()
        awake.wait()

    def go_on(self) -> None:
        """Let time pass until nobody sleeps any more."""
        while self._sleepers and not self.errors:
            self.now, _, awake = heapq.heappop(self._sleepers)
            self._idle.clear()
            awake.set()
            self._idle.wait()
        if self.errors:
            raise self.errors[0]

    def _sleeper(self, until: float) -> threading.Event:
        awake = threading.Event()
        heapq.heappush(self._sleepers, (until, next(self._numbers), awake))
        return awake


class WorldClock(sync.Clock):
    """The clock of one run: the world's, of which its database connection is told."""

    def __init__(self, world: World, db: Connection) -> None:
        self._world = world
        self._db = db
        self.tell()

    def monotonic(self) -> float:
        return self._world.now

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)
        self.tell()

    def tell(self) -> None:
        now = str(START + self._world.now)
        query(self._db, "select set_config('world.now', %s, false)", (now,))


@dataclass
class Day:
    """What came of it; times are seconds since the start."""

    fresh_at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: list[float] = field(default_factory=list)
    """When each call reached the provider."""
    waits: list[float] = field(default_factory=list)
    """How long each priority run waited for slots."""

    def staleness(self, symbols: Sequence[str], after: float = 0) -> "Staleness":
        """Return how stale these assets were, from then on and from their first refresh."""
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
    """The ages that data had, as the gaps between refreshes say: within each, all from 0 to it."""

    gaps: Sequence[float]

    @property
    def worst(self) -> float:
        return self.gaps[-1]

    def at(self, share: float) -> float:
        """Return the age that was not exceeded for that share of the time."""
        total = sum(self.gaps)
        low, high = 0.0, self.worst
        for _ in range(50):
            middle = (low + high) / 2
            if sum(min(gap, middle) for gap in self.gaps) < share * total:
                low = middle
            else:
                high = middle
        return high


def live_through(
    url: str, settings: Settings, *, seconds: float = DAY, call_seconds: float = 0.3
) -> Day:
    """Start both commands as cron does, for so long, and return what came of it."""
    with database.session(Secret(url)) as db:
        query(db, _TIME)
    simulated = Secret(make_dsn(url, options="-c search_path=world,pg_catalog"))
    world, day = World(), Day()
    with ExitStack() as stack:
        # requests looks through all of it for proxies, at each call
        stack.enter_context(mock.patch.dict(os.environ, clear=True))
        stack.enter_context(_provider(world, day, call_seconds))
        for lane in Lane:
            db = stack.enter_context(database.raw_session(simulated))
            world.start(0, partial(_cron, world, day, db, settings, lane, seconds))
        world.go_on()
    return day


def _cron(
    world: World, day: Day, db: Connection, settings: Settings, lane: Lane, seconds: float
) -> None:
    clock = _of_this_run.clock = WorldClock(world, db)

    def listen(progress: Progress) -> None:
        assert not isinstance(progress, Failed | PutBack | Warned), progress
        if isinstance(progress, Synced):
            day.fresh_at[progress.symbol].append(world.now)

    while world.now < seconds:
        started = world.now
        report = sync.run(db, settings, lane, clock=clock, tell=listen)
        if lane is Lane.PRIORITY:
            day.waits.append(report.waited_seconds)
        clock.sleep(started + settings.batch.interval_seconds - world.now)


_of_this_run = threading.local()


@contextmanager
def _provider(world: World, day: Day, call_seconds: float) -> Iterator[None]:
    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        day.calls.append(world.now)
        _of_this_run.clock.sleep(call_seconds)
        [(ticker, end_ms)] = re.findall(r"/ticker/([^/]+)/.*/(\d+)\?", str(request.url))
        bar_ms = int(end_ms) // BAR_MS * BAR_MS
        row = {"o": 1.0, "h": 1.0, "l": 1.0, "c": 1.0, "v": 1, "t": bar_ms}
        body = {"status": "DELAYED", "ticker": unquote(ticker), "resultsCount": 1, "results": [row]}
        return 200, {}, json.dumps(body)

    def quotes(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        day.calls.append(world.now)
        _of_this_run.clock.sleep(call_seconds)
        asked = parse_qs(urlsplit(str(request.url)).query)["ticker.any_of"][0].split(",")
        at_ns = int((START + world.now) * 1e9)
        rows = [
            {
                "ticker": ticker,
                "type": "fx",
                "last_quote": {"ask": 1.1, "bid": 1.0, "last_updated": at_ns},
                "session": {},
            }
            for ticker in asked
        ]
        return 200, {}, json.dumps({"status": "OK", "results": rows})

    with responses.RequestsMock(assert_all_requests_are_fired=False) as answers:
        answers.add_callback(responses.GET, re.compile(r".*/v2/aggs/.*"), callback=answer)
        answers.add_callback(responses.GET, re.compile(r".*/v3/snapshot.*"), callback=quotes)
        yield
