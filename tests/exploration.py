"""Schedules of the real runs on a real PostgreSQL.

The scheduler is in `explorer`. This module has what it schedules: runs of the real loop, a stand-in
for the provider, the states from which they start, and which schedule an integer stands for.
`promises` judges each.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from hashlib import blake2b
from random import Random
from typing import NamedTuple, cast
from unittest import mock

import psycopg2
from anytime import SEARCH_PATH, WEDNESDAY, shadowing
from explorer import sessions
from explorer.plans import Action, Die, Fault, Interrupt, Plan, Sleep, Spot
from explorer.scheduler import Event, Scheduler, StuckError, Task
from explorer.sessions import JUMP, LOST, REPLY_LOST, RESTART, Server
from explorer.strategies import change_points, preemptions, shuffled, strike
from explorer.threads import Threads
from psycopg2.extensions import connection as RealConnection  # noqa: N812  # a class
from psycopg2.extensions import make_dsn

from asset_sync.budget.turn import POLL_SECONDS
from asset_sync.clock import Clock
from asset_sync.database import Connection
from asset_sync.database.timestamps import clamp_timestamps
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.provider.answers import Bar, BarsAnswer, SnapshotAnswer, TickersAnswer
from asset_sync.provider.errors import (
    FeedDenied,
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    TickerUnknown,
    Unanswered,
    Unavailable,
    Unreadable,
)
from asset_sync.provider.protocol import Provider
from asset_sync.settings import SHIPPED_FILE, Settings, load
from asset_sync.spans import Span
from asset_sync.store import existing_tables
from asset_sync.sync import connection as lasting
from asset_sync.sync import loop, team
from asset_sync.sync.progress import Progress, Waiting
from asset_sync.sync.report import Ended, Report

NOON = datetime.fromisoformat(WEDNESDAY) + timedelta(seconds=30)
PERIOD_SECONDS = 20.0
CALL_SECONDS = 10.0
LEASE_SECONDS = CALL_SECONDS + 30
MAX_ATTEMPTS = 3
ATTEMPTS_BEFORE = MAX_ATTEMPTS - 1
"""How many attempts count when the schedule begins with failing assets."""
FREEZE_SECONDS = 1.5 * PERIOD_SECONDS
FREQUENCY_SECONDS = 300
QUEUE_SECONDS, PRIORITY_SECONDS = 100.0, 60.0
BAR = timedelta(minutes=5)
BAR_MS = 300_000
LAG_MS = 45_000
"""How long after its end a bar can be seen."""
# After so long no lease, slot, block or first back-off holds any more.
REST_SECONDS = 130.0


# --- scenarios --------------------------------------------------------------------------------


class Start(NamedTuple):
    """One run."""

    name: str
    lane: Lane
    at_seconds: float


class Before(StrEnum):
    """In which state the database is when the first run starts."""

    NEW = "new"
    """Nothing was ever fetched."""
    DUE = "due"
    """Every asset was fetched once and is due."""
    LEFT = "left"
    """So it is, and a run that died holds the first asset and a slot."""
    FAILING = "failing"
    """Every asset is due, and failed in all of its attempts but one."""


class Scenario(NamedTuple):
    """What the runs of a schedule have to do."""

    starts: tuple[Start, ...]
    symbols: tuple[str, ...]
    """P1 is critical, the others are not."""
    calls: int
    """How many a window may hold."""
    history: bool = False
    before: Before = Before.DUE
    workers: int = 1
    """How many calls a run may have in flight."""
    rests: bool = False
    """Whether further runs follow even if nothing is left to do."""

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes in which there is something to do."""
        return (Lane.QUEUE, Lane.PRIORITY) if "P1" in self.symbols else (Lane.QUEUE,)

    @property
    def forks(self) -> int:
        """How many threads a run may have beside its main one."""
        return 0 if self.workers == 1 else self.workers

    @property
    def is_roomy(self) -> bool:
        """Whether every asset can be fetched before the last run's end, if nothing goes wrong."""
        return self.before in {Before.NEW, Before.DUE} and all(
            start.lane is Lane.QUEUE for start in self.starts
        )


class Verdict(NamedTuple):
    """What a schedule showed."""

    findings: tuple[str, ...]
    used: Mapping[Spot, Action]
    events: Sequence[Event]
    steps: int
    shape: int
    """The same for two schedules only if the same happened in both, in the same order."""


# --- the provider -----------------------------------------------------------------------------

NOT_SENT = "the request cannot be sent"
SLOW = "the answer is slow:"
READ_LATE = "the request is read late, and answered, after"
SILENT = "no answer; the request is read after"
RESET = "the connection is reset; the request is read after"
DIES_IN_FLIGHT = "is killed; the request is read after"
BAD = "answer 500"
ODD = "an answer that nobody can read"
EMPTY = "an answer without bars"
UNKNOWN = "answer 404"
LIMITED = "answer 429"
DENIED = "the plan does not have it"
REFUSED = "the key is refused"
API_FAULTS = frozenset(
    (
        NOT_SENT,
        SLOW,
        READ_LATE,
        SILENT,
        RESET,
        DIES_IN_FLIGHT,
        BAD,
        ODD,
        EMPTY,
        UNKNOWN,
        LIMITED,
        DENIED,
        REFUSED,
    )
)
_ERRORS: Mapping[str, Callable[[str], ProviderError]] = {
    BAD: lambda ticker: Unavailable(f"500 for {ticker}"),
    ODD: Unreadable,
    UNKNOWN: TickerUnknown,
    LIMITED: lambda ticker: RateLimited(None, ticker),
    DENIED: FeedDenied,
    REFUSED: KeyRefused,
}
# Failures of the asset itself.
OWN = (ODD, EMPTY, UNKNOWN, DENIED)


@dataclass
class Sent:
    """A request that left."""

    task: str
    symbol: str
    feed: Feed
    sent_at: float
    reads_at: float
    ended_at: float | None = None
    """When the run had the answer, or gave up; None if it died before."""
    outcome: str = ""
    """`well`, or the fault."""


class Answer(NamedTuple):
    """What a run got and may store."""

    symbol: str
    feed: Feed
    asked: Span
    asked_at: datetime
    """By the database's clock."""
    bars: tuple[Bar, ...]


class Answers(tuple[Answer, ...]):
    """Answers that were committed before the schedules; equal only to itself, so it is a key."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


NO_ANSWERS = Answers()


class Applied(NamedTuple):
    """An answer whose bars were committed."""

    answer: Answer
    written_after: float
    """Before the statement that wrote them, which notes when it did."""
    at_seconds: float
    """When they were committed."""


class StandIn:
    """The provider's client of one run."""

    def __init__(self, world: "World") -> None:
        self.call_timeout_seconds = CALL_SECONDS
        self._world = world
        self._may_send: Callable[[], bool] = lambda: True

    def send_only_if(self, may_send: Callable[[], bool]) -> None:
        self._may_send = may_send

    def close(self) -> None:
        pass

    def bars(
        self, ticker: str, start: datetime, end: datetime, *, by_minute: bool = False
    ) -> BarsAnswer:
        feed = Feed.HISTORY if end < self._world.moment() - timedelta(hours=1) else Feed.BARS
        if self._world.server.jumped_seconds:
            feed = Feed.BARS
        task, symbol = self._world.scheduler.running.name, ticker.removeprefix("X:")
        sent = self._send(ticker, feed)
        read = self._world.start + timedelta(seconds=sent.reads_at)
        found = () if sent.outcome == EMPTY else tuple(bars_of(symbol, start, end, read))
        asked_at = self._world.asked_at.get(task, NOON)
        self._world.answers[task] = Answer(symbol, feed, Span(start, end), asked_at, found)
        return BarsAnswer(ticker, found, complete=True)

    def snapshots(self, tickers: Sequence[str]) -> SnapshotAnswer:
        raise NotImplementedError

    def ticker_exists(self, ticker: str) -> bool:
        self._send(ticker, Feed.BARS)
        return True

    def tickers(self, page: str) -> TickersAnswer:
        raise NotImplementedError

    def _send(self, ticker: str, feed: Feed) -> Sent:
        """Make a call; return it if it was answered. Raises any ProviderError."""
        world, scheduler = self._world, self._world.scheduler
        world.answers.pop(scheduler.running.name, None)
        fault = scheduler.point(f"call for {ticker}", API_FAULTS) or Fault("well")
        if fault.name == NOT_SENT or not self._may_send():
            raise NotSent("the request was not sent")
        amount = fault.amount if fault.name in {READ_LATE, SILENT, RESET, DIES_IN_FLIGHT} else 0.0
        sent = Sent(
            scheduler.running.name,
            ticker.removeprefix("X:"),
            feed,
            scheduler.now,
            scheduler.now + amount,
            outcome=fault.name,
        )
        world.sent.append(sent)
        world.scheduler.changes += 1
        if fault.name == DIES_IN_FLIGHT:
            scheduler.kill()
        scheduler.point(f"sent {ticker}")
        if fault.name == RESET:
            raise self._unanswered(sent, ticker)
        slow = fault.amount if fault.name in {SLOW, READ_LATE} else 0.3
        if fault.name == SILENT or slow >= self.call_timeout_seconds:
            scheduler.sleep(self.call_timeout_seconds)
            raise self._unanswered(sent, ticker)
        scheduler.sleep(slow)
        scheduler.point(f"answer for {ticker}")
        sent.ended_at = scheduler.now
        if fault.name in _ERRORS:
            raise _ERRORS[fault.name](ticker)
        if fault.name != EMPTY:
            sent.outcome = "well"
        return sent

    def _unanswered(self, sent: Sent, ticker: str) -> Unanswered:
        now = self._world.scheduler.now
        sent.ended_at = now
        sent.outcome = SILENT
        return Unanswered(f"no answer for {ticker}", now - sent.sent_at)


_SINCE = NOON - timedelta(hours=2)
_FEW = timedelta(hours=8)


def bars_of(symbol: str, start: datetime, end: datetime, read_at: datetime) -> Iterator[Bar]:
    """Yield the provider's bars of a range as they were at a moment.

    There is one each five minutes of the last two hours before the start, and each eight hours
    before that. The one that ended five minutes before the start is changed each seven seconds.
    """
    first = max(start, NOON - timedelta(days=70))
    for since, until, every in (
        (first, min(end, _SINCE - timedelta(milliseconds=1)), _FEW),
        (max(first, _SINCE), end, BAR),
    ):
        step = every // timedelta(milliseconds=1)
        at = -(-_ms(since) // step) * step
        while at <= _ms(until) and at + BAR_MS + LAG_MS <= _ms(read_at):
            yield bar_of(symbol, at, read_at)
            at += step


def bar_of(symbol: str, start_ms: int, read_at: datetime) -> Bar:
    version = 0
    if start_ms == _CHANGING_MS:
        version = max(0, int((read_at - NOON).total_seconds() // 7) + 1)
    close = 100.0 + version
    return Bar(start_ms, 100.0, 10_000.0, 1.0, close, float(start_ms // BAR_MS % 97), None, version)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


_CHANGING_MS = _ms(NOON) // BAR_MS * BAR_MS - 2 * BAR_MS


# --- one schedule -----------------------------------------------------------------------------


class _Clock(Clock):
    """The virtual time, for a run; a run that waits and finds nothing changed waits on at once."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.announced_seconds = 0.0

    def monotonic(self) -> float:
        return self._scheduler.now

    def sleep(self, seconds: float) -> None:
        alone = self._scheduler.sleep(seconds)
        left, self.announced_seconds = self.announced_seconds - seconds, 0.0
        while alone and left > 0:
            pause = min(left, POLL_SECONDS)
            alone = self._scheduler.sleep(pause)
            left -= pause


class Commit(NamedTuple):
    """A transaction that was committed."""

    at_seconds: float
    task: str
    labels: Sequence[str]


# Whoever waits finds nothing new after these.
_POLLS = frozenset(
    (
        "slots.take",
        "slots.budget",
        "slots.lowered",
        "slots.reserve",
        "slots.prepare",
        "view.due_within",
        "view.next_ready_seconds",
        "claiming.can_claim",
        "clocks.correct_after_jump",
        "entering.reclaim",
        "entering.enqueue",
        "ledger.next_symbols",
    )
)


class World:
    """One schedule: its runs, its provider, and what happened."""

    def __init__(
        self,
        server: Server,
        scenario: Scenario,
        plan: Plan,
        *,
        start: datetime = NOON,
        answers_before: Answers = NO_ANSWERS,
    ) -> None:
        self.server = server
        self.start = start
        self.answers_before = answers_before
        self.scenario = scenario
        self.settings = settings_of(scenario)
        self.scheduler = Scheduler(plan)
        self.sent: list[Sent] = []
        self.answers: dict[str, Answer] = {}
        """The last answer of each run."""
        self.asked_at: dict[str, datetime] = {}
        self.applied: list[Applied] = []
        """In the order of the commits."""
        self.commits: list[Commit] = []
        self.told: dict[str, list[Progress]] = defaultdict(list)
        self.reports: dict[str, Report] = {}
        self.tasks: list[Task] = []
        self.rested = False
        self.starved = False
        """Whether a run got no call although it worked alone and nothing was held any more."""
        server.begin(self.scheduler, start.timestamp())
        server.on_commit = self._note_commit

    def moment(self) -> datetime:
        """The true time."""
        return self.start + timedelta(seconds=self.scheduler.now)

    def live(self) -> None:
        """Let the runs of the scenario work to their ends. Raises StuckError."""
        for start in self.scenario.starts:
            work = partial(self._run, start.name, start.lane)
            task = self.scheduler.add(start.name, work, starts_at=start.at_seconds)
            self.tasks.append(task)
        self.scheduler.run()

    def rest(self) -> None:
        """Let one run after the other work alone, when everything that holds has ended."""
        self.rested = True
        self.scheduler.expect_nothing_more()
        after = self.scheduler.now + REST_SECONDS
        self.tasks.append(self.scheduler.add("rest", self._rest, starts_at=after))
        self.scheduler.run()

    def _rest(self) -> None:
        for _ in range(3):
            for lane in self.scenario.lanes:
                self._run("rest", lane)
                report = self.reports["rest"]
                self.starved |= report.reason_ended is Ended.BUDGET and not report.updated
            if not self.server.query(_NOT_AT_REST, (list(self.scenario.symbols),)):
                return
            self.scheduler.sleep(REST_SECONDS)

    def _run(self, name: str, lane: Lane) -> None:
        task = self.scheduler.running
        clock = _Clock(self.scheduler)

        def listen(progress: Progress) -> None:
            if isinstance(progress, Waiting):
                clock.announced_seconds = progress.seconds
            self.told[name].append(progress)

        session = self.server.session_of(task)
        self.reports[name] = loop.run(
            cast("Connection", session),
            self.settings,
            lane,
            max_runtime_seconds=PRIORITY_SECONDS if lane is Lane.PRIORITY else QUEUE_SECONDS,
            clock=clock,
            tell=listen,
            connect_to=lambda *_: cast("Provider", StandIn(self)),
        )
        if session.real is not None and not session.in_transaction:
            session.lose()

    def _note_commit(self, task: str, labels: Sequence[str], last_at: float) -> None:
        if set(labels) <= {"market.newest_bars", "market.newest_bars commit"}:  # alone
            self.asked_at[task] = datetime.fromtimestamp(last_at, UTC)
        if "market.save_bars" in labels and task in self.answers:
            written_after = max(
                event.at_seconds
                for event in self.scheduler.events
                if event.task == task and event.what == "market.save_bars"
            )
            self.applied.append(Applied(self.answers.pop(task), written_after, self.scheduler.now))
        if labels[0] not in _POLLS:
            self.scheduler.changes += 1
        self.commits.append(Commit(self.scheduler.now, task, list(labels)))


@lru_cache(maxsize=1)
def _base() -> Settings:
    environ = {
        "POLYGON_API_KEY": "key-for-tests",
        "POLYGON_BASE_URL": "http://127.0.0.1:9",
        "DATABASE_URL": "postgresql:///nowhere",
    }
    return load(SHIPPED_FILE, environ)


@lru_cache(maxsize=256)
def _settings(
    symbols: tuple[str, ...],
    calls: int,
    workers: int,
    history: bool,  # noqa: FBT001
) -> Settings:
    base = _base()
    return replace(
        base,
        assets=tuple(asset_of(symbol) for symbol in symbols),
        rate_limit=replace(base.rate_limit, calls=calls, period_seconds=PERIOD_SECONDS),
        provider=replace(
            base.provider,
            read_timeout_seconds=CALL_SECONDS,
            call_timeout_seconds=CALL_SECONDS,
            parallel_calls=workers,
        ),
        history=replace(base.history, enabled=history, days=60),
        batch=replace(base.batch, interval_minutes=1.0),
    )


def settings_of(scenario: Scenario) -> Settings:
    return _settings(scenario.symbols, scenario.calls, scenario.workers, scenario.history)


def asset_of(symbol: str) -> Asset:
    level = Level.CRITICAL if lane_of(symbol) is Lane.PRIORITY else Level.MEDIUM
    position = 1 if level is Level.CRITICAL else 0
    return Asset(
        symbol,
        f"X:{symbol}",
        AssetType.CRYPTO,
        symbol,
        level,
        position,
        FREQUENCY_SECONDS,
        hours="crypto",
    )


def lane_of(symbol: str) -> Lane:
    return Lane.PRIORITY if symbol.startswith("P") else Lane.QUEUE


SYMBOLS = ("P1", "S1", "S2", "S3")

_NOT_AT_REST = """
select symbol from asset_sync.queue where symbol = any(%s) and feed <> 'history' and (
  state <> 'idle' or last_success_at is null
  or last_success_at < clock_timestamp() - interval '350 s')
"""


# --- the database -----------------------------------------------------------------------------

_TABLES = (
    "trading.symbols",
    "data_sources.data_sync_status",
    "market_data.ohlcv_5m",
    *(
        f"asset_sync.{name}"
        for name in (
            "runs",
            "calls",
            "queue",
            "limiter",
            "slots",
            "entitlements",
            "ledger",
            "weeks",
            "lags",
            "revisions",
            "arrivals",
        )
    ),
)


class Laboratory:
    """A database in which one schedule after the other runs."""

    def __init__(self, url: str) -> None:
        """Prepare an initialised database without data."""
        _execute(url, shadowing("pg_catalog.now()", "pg_catalog.clock_timestamp()"))
        _execute(url, sessions.CLOCK)
        options = f"-c search_path={SEARCH_PATH} -c plan_cache_mode=force_generic_plan -c jit=off"
        self._server = Server(
            make_dsn(url, options=options),
            package="asset_sync",
            unnamed=("asset_sync.database.connection", "asset_sync.sync.connection"),
            ignored=r"set local (jit|transaction_isolation|\w+_timeout)\b",
            on_open=clamp_timestamps,
        )
        threads = Threads(lambda: self._server.scheduler)
        self._patches = (
            mock.patch.object(lasting, "connect", self._connect),
            # The tables are as they should be, and to read that takes a tenth of the time.
            mock.patch.object(existing_tables, "require_usable"),
            mock.patch.object(team, "connect", self._connect),
            mock.patch.object(team, "threading", threads),
            mock.patch.object(team, "SimpleQueue", threads.SimpleQueue),
            mock.patch.object(team, "_SLICE_SECONDS", 60.0),  # nothing is missed here
        )
        for patch in self._patches:
            patch.start()
        self._runs = 0
        # Not when the database was made, which is after the time of the schedules.
        _execute(url, "update asset_sync.limiter set changes_from = '2000-01-01'")
        _execute(url, "create schema kept")
        self._keep(url, Before.NEW)
        self._fetch_everything()
        self._keep(url, Before.DUE)
        self._keep(url, Before.LEFT)
        self._keep(url, Before.FAILING)
        _execute(url, _WATCH)
        _execute(url, _reset_function())

    def close(self) -> None:
        for patch in self._patches:
            patch.stop()
        self._server.__exit__()

    def explore(self, scenario: Scenario, plan: Plan) -> Verdict:
        """Run a schedule and judge it."""
        from promises import judgement  # noqa: PLC0415  # it judges what is made here

        self._reset(scenario.before)
        before = NO_ANSWERS if scenario.before is Before.NEW else self._answers
        world = World(self._server, scenario, plan, answers_before=before)
        try:
            world.live()
            findings = judgement(world)
            if not findings and (scenario.rests or not is_at_rest(world)):
                world.rest()
                findings = judgement(world)
        except StuckError as error:
            raise StuckError(f"{error}: {scenario}, {plan}") from None
        events = world.scheduler.events
        return Verdict(
            tuple(findings),
            world.scheduler.used,
            events,
            world.scheduler.steps,
            _shape(events),
        )

    def _reset(self, before: Before) -> None:
        self._runs += 1
        self._server.begin(Scheduler(Plan(())), NOON.timestamp())
        if self._runs % 250 == 0:
            for table in (*_TABLES, "world.leases"):
                self._server.query_alone(f"vacuum {table}")
        self._server.query(f"select world.reset('{before}')")
        if before in _BEFORE:
            self._server.query(_BEFORE[before])

    def _fetch_everything(self) -> None:
        """Fetch every asset once, well before the schedules begin."""
        starts = (Start("p", Lane.PRIORITY, 0.0), Start("q", Lane.QUEUE, 30.0))
        scenario = Scenario(starts, SYMBOLS, 5, before=Before.NEW)
        start = NOON - timedelta(seconds=2 * FREQUENCY_SECONDS)
        world = World(self._server, scenario, Plan(("p", "q")), start=start)
        world.live()
        errors = [task.error for task in world.tasks if task.error]
        if errors:
            raise errors[0]
        self._answers = Answers(one.answer for one in world.applied)

    def _keep(self, url: str, before: Before) -> None:
        for table in _TABLES:
            _execute(url, f"create table {_kept(table, before)} as table {table}")

    def _connect(self, *_: object, **__: object) -> Connection:
        return cast("Connection", self._server.connect())


def _shape(events: Sequence[Event]) -> int:
    text = "\n".join(f"{event.task} {event.what}" for event in events)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def is_at_rest(world: World) -> bool:
    """Whether nothing is left to do, so that no further run is needed to judge the schedule."""
    [(left,)] = world.server.query(
        """
        select exists (
          select from asset_sync.queue where symbol = any(%s) and (state <> 'idle'
            or last_error is not null or attempts > 0 or last_success_at is null)
        ) or exists (select from asset_sync.slots where token is not null)
        """,
        (list(world.scenario.symbols),),
    )
    return not left


def _kept(table: str, before: Before) -> str:
    return f"kept.{before}_{table.replace('.', '_')}"


def _reset_function() -> str:
    parts = []
    for before in Before:
        emptied = "".join(f"delete from {table};" for table in (*reversed(_TABLES), "world.leases"))
        filled = "".join(
            f"insert into {table} overriding system value table {_kept(table, before)};"
            for table in _TABLES
        )
        parts.append(f"if state = '{before}' then {emptied} {filled} end if;")
    return (
        "create function world.reset(state text) returns void language plpgsql as"
        f" $$ begin {''.join(parts)} end $$"
    )


# Every change of a lease, and who made it. At each a new claim or none holds the item.
_WATCH = """
create unlogged table world.leases (
  number bigserial, at timestamptz, task text, symbol text, feed text,
  before uuid, until timestamptz, after uuid
);
create function world.note_lease() returns trigger language plpgsql as $$
begin
  insert into world.leases (at, task, symbol, feed, before, until, after)
  values (world.clock_timestamp(), current_setting('world.task'), new.symbol, new.feed,
    old.lease_token, old.lease_until, new.lease_token);
  return null;
end $$;
create trigger note_lease after update on asset_sync.queue for each row
when (old.lease_token is distinct from new.lease_token) execute function world.note_lease()
"""

_BEFORE: Mapping[Before, str] = {
    # What a run leaves that was killed in its call a while ago.
    Before.LEFT: f"""
update asset_sync.queue set state = 'leased', lease_token = gen_random_uuid(), attempts = 1,
  last_attempt_at = clock_timestamp() - interval '25 s',
  lease_until = clock_timestamp() + interval '{LEASE_SECONDS - 25} s'
where symbol = 'S1' and feed = 'bars';
update asset_sync.slots set stamped_at = clock_timestamp() - interval '25 s',
  open_seconds = {CALL_SECONDS + FREEZE_SECONDS}, token = gen_random_uuid()
where slot = (select min(slot) from asset_sync.slots)
""",
    Before.FAILING: f"""
update asset_sync.queue set attempts = {ATTEMPTS_BEFORE}, strikes = {ATTEMPTS_BEFORE},
  failed_at = clock_timestamp() - interval '1 h', last_error = 'failed'
where feed = 'bars'
""",
}


def _execute(url: str, sql: str) -> None:
    db: RealConnection = psycopg2.connect(url)
    try:
        db.autocommit = True
        with db.cursor() as cursor:
            cursor.execute(sql)
    finally:
        db.close()


# --- what one integer stands for ----------------------------------------------------------------


def schedule_of(seed: int) -> tuple[Scenario, Plan]:
    """Return the schedule that an integer stands for."""
    random = Random(seed)
    scenario = _scenario(random)
    names = [
        name
        for start in scenario.starts
        for name in (start.name, *(f"{start.name}.{1 + n}" for n in range(scenario.forks)))
    ]
    # About as many points as such runs pass.
    steps = 45 * len(scenario.starts) + 55 * len(scenario.symbols)
    if random.random() < 0.5:
        actions = change_points(random, steps, random.randint(0, 3), _WITHIN)
    else:
        actions = preemptions(random, names, steps, random.randint(0, 4), _WITHIN)
    for kind in random.choice(_THEMES if scenario.workers == 1 else _THEMES_OF_WORKERS):
        actions.append(strike(random, steps, kind.choose(random), kind.labels, 0.7))
    actions.sort(key=lambda striking: striking.step)
    return scenario, Plan(shuffled(random, names), tuple(actions))


# Where a run holds a lock, or has read what it is about to change.
_WITHIN = (
    *("slots.take commit",) * 4,
    "slots.take 3",
    "slots.release 2",
    "slots.release commit",
    *("claiming.claim commit",) * 2,
    "entering.reclaim commit",
    "entering.enqueue 2",
    "entering.enqueue commit",
    "ledger.lock 2",
    "ledger.read",
    "ledger.save",
    "market.save",
    "ending.",
    "runs.record",
    "caller.serve commit",
)

# Most rules are about what a run holds meanwhile.
_CLOSE_TO_A_CALL = (
    "slots.take",
    "claiming.claim",
    "market.newest_bars",
    "call for",
    "call for",
    "sent",
    "answer for",
    "answer for",
    "slots.release",
    "ledger.",
    "ending.",
    "caller.serve commit",
)


def _scenario(random: Random) -> Scenario:
    lanes = random.choice(_LANES)
    starts = tuple(
        Start(f"{lane}-{number}", lane, random.choice(_STARTS) if number > 1 else 0.0)
        for number, lane in enumerate(lanes, start=1)
    )
    others = SYMBOLS[1 : random.choice((2, 3, 3, 4, 4))]
    symbols = ("P1", *others) if Lane.PRIORITY in lanes else others
    calls = random.choice((1, 1, 1, 2, 2, 3))
    return Scenario(
        starts,
        symbols,
        calls=calls,
        workers=random.randint(2, calls) if calls > 1 and random.random() < 0.5 else 1,
        history=random.random() < 0.2,
        before=random.choice(_BEFORES),
        rests=random.random() < 0.1,
    )


_Q, _P = Lane.QUEUE, Lane.PRIORITY
_LANES = ((_Q, _Q), (_Q, _Q, _Q), (_Q, _P), (_Q, _Q, _P), (_P, _P, _Q))
_BEFORES = (*(Before.DUE,) * 5, *(Before.LEFT,) * 2, Before.NEW, Before.FAILING)
_STARTS = (0.0, 0.0, 0.0, 0.0, 2.0, 21.0, 45.0, 62.0)


class _Kind(NamedTuple):
    """A kind of action, and the points before which it mostly happens."""

    choose: Callable[[Random], Action]
    labels: Sequence[str] = _CLOSE_TO_A_CALL


def _of_provider(random: Random) -> Action:
    name = random.choice((*sorted(API_FAULTS), *_LIKELY))
    if name in {SLOW, READ_LATE}:
        return Fault(name, random.choice((2.0, 8.0, 9.9, 15.0)))
    if name in {SILENT, RESET, DIES_IN_FLIGHT}:
        return Fault(name, random.choice((0.1, 15.0, FREEZE_SECONDS, FREEZE_SECONDS)))
    return Fault(name)


# What the provider may count later is what the limiter's rules are about.
_LIKELY = (
    *(SILENT,) * 4,
    *(RESET,) * 2,
    *(DIES_IN_FLIGHT,) * 2,
    *(LIMITED,) * 2,
    *(NOT_SENT,) * 3,
)


def _of_database(random: Random) -> Action:
    name = random.choice((LOST, REPLY_LOST, REPLY_LOST, RESTART))
    return Fault(name, random.choice((0.5, 3.0, 12.0)) if name == RESTART else 0.0)


_DIE = _Kind(lambda _: Die())
_INTERRUPT = _Kind(lambda _: Interrupt())
# Longer than the server allows in a transaction, than a lease, than an unanswered call's slot.
_SLEEP = _Kind(lambda random: Sleep(random.choice((3.0, 12.0, 25.0, 45.0, 62.0, 62.0, 95.0))))
# Longer than a lease, where nothing but the lease is held.
_STALL = _Kind(lambda random: Sleep(random.choice((42.0, 45.0, 62.0))), ("sent", "answer for"))
_JUMP = _Kind(lambda random: Fault(JUMP, random.choice((-3600.0, -40.0, -5.0, 15.0, 3600.0))))
# Between a run's first call and the next one.
_FORWARD = _Kind(
    lambda random: Fault(JUMP, random.choice((15.0, 3600.0))),
    ("claiming.claim", "slots.take commit", "call for", "sent"),
)
_PROVIDER = _Kind(_of_provider)
_SILENCE = _Kind(
    lambda random: Fault(
        random.choice((SILENT, RESET, RESET)), random.choice((0.1, FREEZE_SECONDS))
    )
)
_DATABASE = _Kind(_of_database)
# Where a run cannot know whether it has committed.
_COMMITTING = _Kind(_of_database, ("caller.serve commit",) * 3 + ("slots.", "claiming.", "ending."))

_THEMES: Sequence[Sequence[_Kind]] = (
    *[()] * 4,
    (_DIE,),
    (_DIE, _DIE),
    (_SLEEP,),
    (_SLEEP, _SLEEP),
    (_STALL, _SILENCE),
    (_STALL, _STALL),
    (_INTERRUPT,),
    (_DATABASE,),
    (_COMMITTING,),
    (_COMMITTING, _DATABASE),
    (_PROVIDER,),
    (_PROVIDER,),
    (_PROVIDER, _PROVIDER),
    (_SILENCE, _SILENCE),
    (_SILENCE, _SILENCE, _PROVIDER),
    (_PROVIDER, _PROVIDER, _PROVIDER),
    (_PROVIDER, _DIE),
    (_PROVIDER, _SLEEP),
    (_DATABASE, _SLEEP),
    (_DIE, _SLEEP),
    (_JUMP,),
    (_JUMP, _PROVIDER),
)
# A worker that begins after the clock was set forward has not read it before.
_THEMES_OF_WORKERS: Sequence[Sequence[_Kind]] = (*_THEMES, *[(_FORWARD,)] * 8)
