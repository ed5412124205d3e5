"""One run: take a slot, claim an item, call, store; again, until nothing is due or time is up.

`sync priority` and `sync queue` are this loop with two filters. A run may be killed at any
instruction: what one answer brings is one transaction, a slot frees itself, and a lease ends.
What an answer means is judged in `asset_sync.sync.judge` and written by `asset_sync.sync.apply`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from asset_sync import clock, queue
from asset_sync.budget import clocks, slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.slots import CallEnd, Lane, Slot
from asset_sync.database import (
    SERVER_ERRORS,
    Connection,
    Cursor,
    ServerError,
    connect,
    hurry,
    may_pass,
    refuses_data,
    sentence,
    transaction,
    transaction_number,
    was_committed,
)
from asset_sync.errors import AssetSyncError
from asset_sync.model import Feed
from asset_sync.provider.errors import NotSent, ProviderError, RateLimited, Unanswered, Unavailable
from asset_sync.provider.protocol import Provider
from asset_sync.queue import LINE_LENGTH, TRY_AGAIN_SECONDS, Item, Wanted
from asset_sync.settings import ProviderSettings, Secret, Settings
from asset_sync.store import existing_tables, market, publish, runs
from asset_sync.sync import feeds
from asset_sync.sync.apply import Result, apply, refused_by_database
from asset_sync.sync.judge import Answer, Fetch, Known, Request, is_well
from asset_sync.sync.progress import (
    Calling,
    Failed,
    Listener,
    Progress,
    Recovered,
    Started,
    Synced,
    Waiting,
    Warned,
)
from asset_sync.sync.scope import NO_SNAPSHOTS, key_of, open_provider, scope_of

if TYPE_CHECKING:
    from asset_sync.budget.bucket import Limiter  # pyrate-limiter takes 87 ms

# A slot that is given back, a call that ends early, an asset that becomes due while others wait,
# a lease that ends: noticed within this time.
POLL_SECONDS = 5
SLICE_SECONDS = 0.5
# After so many requests in a row that could not be sent the run ends.
UNSENT_CALLS = 3
# After bad answers to so many different assets in a row, one call each half window asks whether the
# provider is well again.
BAD_ANSWERS = 3
WAIT_FOR_SECOND_TRY = 60
# What the plan does not include for so many different assets in a row, it includes for none.
NOT_IN_PLAN = 2
# The lease covers the call and its transaction.
LEASE_MARGIN_SECONDS = 30
LEAST_CALL_SECONDS = 2.0
# A server that restarts is back within seconds.
RECONNECT_SECONDS = 1.0
# An answer is paid for, but others wait while it is tried to store it.
STORE_TRIES = 3
# A server that is there but fails each time is not to cost a call each time.
CALLS_IN_VAIN = 3
# Whoever interrupts a run does not want to wait for a server that may be gone.
INTERRUPTED_SECONDS = 1.0


class Ended(StrEnum):
    """Why a run ended."""

    NOTHING_DUE = "nothing_due"
    DONE = "done"
    BUDGET = "budget_used_up"
    TIME = "time_up"
    LIMIT = "limit_reached"
    DISABLED = "disabled"
    KEY_REFUSED = "key_refused"
    PLAN_REFUSED = "plan_refused"
    UNAVAILABLE = "provider_unavailable"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"


_NO_WAY_IN = (Ended.KEY_REFUSED, Ended.PLAN_REFUSED, Ended.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An asset that could not be refreshed, and why."""

    symbol: str
    error: str


@dataclass(slots=True)
class Report:
    """What a run did."""

    run_id: int
    lane: Lane
    updated: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    api_calls_used: int = 0
    bars_written: int = 0
    waited_seconds: float = 0.0
    """Spent waiting for a slot."""
    left_out: int = 0
    """Due, but over the queue's size."""
    reason_ended: Ended = Ended.DONE
    message: str = ""
    """The sentence that goes with the reason, where there is one."""
    is_news: bool = True
    """Whether the command's last run before this one ended otherwise."""

    @property
    def served(self) -> int:
        """How many assets there is something to say of."""
        return len(self.updated) + len(self.failed)

    def note(self, progress: Progress) -> None:
        """Count what a call has brought; what was said last of an asset holds."""
        if isinstance(progress, Synced):
            self.bars_written += progress.bars_written
            if not progress.more:
                self._forget_failure(progress.symbol)
                if progress.symbol not in self.updated:
                    self.updated.append(progress.symbol)
        elif isinstance(progress, Failed):
            self._forget_failure(progress.symbol)
            self.failed.append(Failure(progress.symbol, progress.error))

    def _forget_failure(self, symbol: str) -> None:
        self.failed = [failure for failure in self.failed if failure.symbol != symbol]


class Clock:
    """Measures and waits; tests bring one that does not wait. Dates are the database's."""

    def monotonic(self) -> float:
        """Return seconds since some moment; those in which the host was suspended count."""
        return clock.monotonic()

    def steady(self) -> float:
        """Return seconds to compare with the database's clock: all that `sleep` waited for."""
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait; a signal ends it, in slices, as one that comes just before a sleep does not."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))


@dataclass(slots=True)
class _Held:
    """What the run has taken and has to give back."""

    slot: Slot
    until: float
    """When its call must be over: then the slot frees itself, as if the run had died."""
    items: Sequence[Item] = ()
    end: CallEnd = CallEnd.NOT_SENT
    """What became of its call; unanswered while it may be in flight."""
    sent_seconds_ago: float = 0.0

    @property
    def called(self) -> bool:
        """Whether the provider may have seen the call."""
        return self.end is not CallEnd.NOT_SENT


@dataclass(slots=True)
class _Streaks:
    """What has gone wrong in a row, since a call last went well."""

    unsent: int = 0
    """Requests that could not be sent."""
    bad: set[str] = field(default_factory=set)
    """Assets that got a bad answer or none."""
    not_in_plan: dict[str, str] = field(default_factory=dict)
    """Assets that the plan does not include, and what the provider said of each."""
    unavailable: str = ""
    """What the last call said, if it got no answer of the API's."""
    refused_by_database: tuple[str, str] | None = None
    """The asset whose data the database refused last, and the SQLSTATE."""


class _Stop(Exception):  # noqa: N818  # not an error: how a call ends the loop
    def __init__(self, reason: Ended, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def run(
    db: Connection,
    settings: Settings,
    lane: Lane,
    *,
    max_runtime_seconds: float | None = None,
    limit: int | None = None,
    tell: Listener = lambda _: None,
    clock: Clock | None = None,
    connect_to: Callable[[ProviderSettings, Secret], Provider] = open_provider,
) -> Report:
    """Refresh what is due in the lane, until nothing is, or the time or the budget is up.

    `connect_to` opens the provider when the first call is made. Raises SettingsError without a key,
    and DatabaseError; what the provider does ends in the report.
    """
    provider = partial(connect_to, settings.provider, key_of(settings))
    return _Run(
        db, settings, lane, provider, max_runtime_seconds, limit, tell, clock or Clock()
    ).work()


class _Run:
    """The state of one run."""

    def __init__(
        self,
        db: Connection,
        settings: Settings,
        lane: Lane,
        open_provider: Callable[[], Provider],
        most_seconds: float | None,
        limit: int | None,
        tell: Listener,
        clock: Clock,
    ) -> None:
        self._db = db
        self._settings = settings
        self._lane = lane
        self._open_provider = open_provider
        self._limit = limit
        self._tell = tell
        self._clock = clock
        self._scope = scope_of(db, settings, lane)
        self._started = clock.monotonic()
        self._deadline = self._started + (most_seconds or self._scope.runtime_seconds)
        self._report = Report(runs.start(db, lane.value), lane)
        self._enqueued_at = self._started
        self._line: tuple[Wanted, ...] = ()
        self._claimed = 0
        """How many items were claimed since the line was read."""
        self._called_at = self._started
        self._tried = False
        self._streaks = _Streaks()
        self._held: _Held | None = None
        self._failing_since: float | None = None
        """Since when the database fails; None while it works."""
        self._given = db
        self._provider: Provider | None = None
        self._limiter: Limiter | None = None
        self._watch = Watch(clock.steady)
        self._redis = publish.RedisPublisher(settings.redis_url) if settings.redis_url else None

    # --- the loop -----------------------------------------------------------------------------

    def work(self) -> Report:
        """Run the loop and note how it ended, however it does."""
        report = self._report
        report.reason_ended = Ended.BROKEN
        try:
            self._tell(Started(report.run_id))
            report.reason_ended = self._loop_persistently()
            self._compare_with_run_before()
        except _Stop as stop:
            report.reason_ended, report.message = stop.reason, str(stop)
            self._compare_with_run_before()
        except (KeyboardInterrupt, SystemExit):
            report.reason_ended = Ended.INTERRUPTED
            raise
        finally:
            self._close()
        return report

    def _loop_persistently(self) -> Ended:
        """Run the loop, and go on where the database failed it, until the run's end."""
        in_vain = 0
        while True:
            calls, progress = self._report.api_calls_used, self._progress()
            try:
                self._let_go(after_seconds=TRY_AGAIN_SECONDS)
                return self._loop()
            except SERVER_ERRORS as error:
                in_vain += self._report.api_calls_used > calls
                if self._progress() > progress:
                    in_vain = 0
                if not may_pass(error) or in_vain > CALLS_IN_VAIN:
                    raise
                self._connect_again(error)

    def _compare_with_run_before(self) -> None:
        """Tell what is news of how the run ended: cron's mail is for what changes."""
        before = None
        with contextlib.suppress(*SERVER_ERRORS):
            before = runs.reason_before(self._db, self._report.run_id)
        self._report.is_news = before != self._report.reason_ended
        if before in _NO_WAY_IN and self._report.updated:
            self._tell(Warned("The API serves this key again."))

    def _progress(self) -> int:
        return self._report.served + self._report.bars_written

    def _loop(self) -> Ended:
        if self._scope.switched_off:
            return Ended.DISABLED
        runs.prune(self._db)
        # A run of the queue that has work stays for what becomes due. To refresh that before its
        # time would take calls from what is due already (simulated: 539 s instead of 410 s between
        # refreshes of a high asset, beside a long queue).
        ahead = None if self._tried else self._settings.batch.interval_seconds
        self._enqueue(ahead if self._lane is Lane.PRIORITY else None)
        if ahead is not None and not self._line:
            self._enqueue(ahead)
        self._hold_place(in_seconds=0)
        self._database_works()
        while True:
            if self._limit is not None and self._report.served >= self._limit:
                return Ended.LIMIT
            if not self._something_to_do():
                return self._nothing_left()
            if self._remaining() <= 0 or not self._bad_answers_waited_out():
                return self._unless_unavailable(Ended.TIME)
            if not self._report.api_calls_used:
                existing_tables.require_usable(self._db, self._settings.assets)
            held = self._take_slot()
            if held is None:
                return self._unless_unavailable(Ended.BUDGET)
            with self._holding(held):
                held.items = self._claim()
                if held.items:
                    self._serve(held)
                else:  # another run was quicker
                    self._limits.give_back(held.slot)

    def _nothing_left(self) -> Ended:
        """Say how the run ends where nothing is left that it can do."""
        if self._streaks.not_in_plan and not self._report.updated:
            self._report.message = next(iter(self._streaks.not_in_plan.values()))
            return Ended.PLAN_REFUSED
        return self._unless_unavailable(Ended.DONE if self._tried else Ended.NOTHING_DUE)

    def _unless_unavailable(self, reason: Ended) -> Ended:
        """Return the reason, or that the provider does not answer, if all the run got was that."""
        if self._report.updated or not self._streaks.unavailable:
            return reason
        self._report.message = self._streaks.unavailable
        return Ended.UNAVAILABLE

    def _enqueue(self, cycle_seconds: float | None = None) -> None:
        self._enqueued_at = self._clock.monotonic()
        clocks.look(self._db, self._watch)
        queue.reclaim(self._db, self._settings.queue)
        entered = queue.enqueue(
            self._db, self._scope.wanted, self._settings.queue, cycle_seconds=cycle_seconds
        )
        if entered.left_out and not self._report.left_out:
            self._tell(
                Warned(
                    f"The queue is full ({self._settings.queue.max_size} items): "
                    f"{entered.left_out} due assets wait for a later run. Raise queue.max_size "
                    "or QUEUE_MAX_SIZE if that is not what you want."
                )
            )
        self._report.left_out = entered.left_out
        self._line, self._claimed = entered.line, 0

    def _something_to_do(self) -> bool:
        """Whether an item can be claimed, now or after a wait that this run can afford."""
        while not queue.waiting(self._db, self._line):
            if self._claimed and len(self._line) >= LINE_LENGTH:  # there may be more behind it
                self._enqueue()
                continue
            seconds = self._next_ready_seconds()
            if seconds is None:
                return False
            self._tell(Waiting("the next asset to be due", seconds))
            self._clock.sleep(min(max(seconds, 0.05), POLL_SECONDS))
            self._enqueue()
        return True

    def _next_ready_seconds(self) -> float | None:
        """Return how long to wait for something to do, None if that is not worth it.

        A run that finds nothing due does not sit and wait for what is not yet; but what was due
        before a bad answer is back within a minute.
        """
        states = ("idle", "waiting") if self._tried else ("waiting",)
        within = self._remaining() if self._tried else min(self._remaining(), WAIT_FOR_SECOND_TRY)
        return queue.next_ready_seconds(self._db, self._scope.wanted, within, states=states)

    def _bad_answers_waited_out(self) -> bool:
        """Wait between two calls while the provider answers badly; False if the run is too short.

        An hour of such answers costs no more than two calls a window, and nobody waits longer than
        half a window once the provider is well.
        """
        if len(self._streaks.bad) < BAD_ANSWERS:
            return True
        again_at = self._called_at + self._scope.rate.period_seconds / 2
        while (left := again_at - self._clock.monotonic()) > 0:
            if left > self._remaining():
                return False
            self._hold_place(left)
            self._tell(Waiting("the provider to be well again", left))
            self._clock.sleep(min(left, POLL_SECONDS))
        return True

    def _take_slot(self) -> _Held | None:
        """Take a slot, waiting if need be; None if there is none before the run's end."""
        while True:
            asked = self._clock.monotonic()
            answer = self._limits.take(self._lane)
            if isinstance(answer, Slot):
                return _Held(answer, asked + self._scope.rate.call_timeout_seconds)
            if answer.seconds > self._remaining():
                return None
            self._hold_place(answer.seconds)
            self._tell(Waiting("a slot", answer.seconds, self._budget()))
            pause = min(max(answer.seconds, 0.02), POLL_SECONDS)
            self._clock.sleep(pause)
            self._report.waited_seconds += pause

    def _claim(self) -> tuple[Item, ...]:
        # What has become due since may come before what waits.
        if self._clock.monotonic() - self._enqueued_at >= POLL_SECONDS:
            self._enqueue()
        most = Feed.SNAPSHOT.bulk
        if self._limit is not None:
            most = min(most, self._limit - self._report.served)
        lease = self._settings.provider.call_timeout_seconds + LEASE_MARGIN_SECONDS
        items = queue.claim(self._db, self._line, lease_seconds=lease, most=most)
        self._claimed += len(items)
        return items

    # --- one call -----------------------------------------------------------------------------

    def _serve(self, held: _Held) -> None:
        """Make the one call that these items need and store what comes of it."""
        items = held.items
        if not self._scope.may_use(items[0].feed, items[0].symbol):
            self._limits.give_back(held.slot)
            self._skip(items)
            return
        known = Known(*market.newest_bar(self._db, items[0].symbol))
        request = feeds.request_of(self._scope, items, known)
        if request is None:
            self._limits.give_back(held.slot)
            self._nothing_new(items[0])
            return
        budget = self._budget()
        if self._in_time(held):
            self._call(held, request, budget)

    def _in_time(self, held: _Held) -> bool:
        """Whether most of the slot's time is left for the call; if not, give all back.

        The database took its time since, or the host slept.
        """
        left = held.until - self._clock.monotonic()
        if left >= self._scope.rate.call_timeout_seconds / 2:
            return True
        self._limits.give_back(held.slot)
        with self._transaction() as cursor:
            queue.release(cursor, held.items)
        return False

    def _call(self, held: _Held, request: Request, budget: slots.Budget) -> None:
        """Make the call, and do with its answer what that asks for."""
        held.end = CallEnd.UNANSWERED
        self._tried = True
        self._tell(Calling([item.symbol for item in held.items], held.items[0].feed, budget))
        started = self._clock.monotonic()
        self._report.api_calls_used += 1
        answer = self._ask(held, request)
        self._called_at = self._clock.monotonic()
        held.end, held.sent_seconds_ago = _end_of(answer)
        if isinstance(answer, NotSent):
            self._report.api_calls_used -= 1
        fetch = Fetch(held.items, request, answer, self._called_at - started)
        result = self._applied(held, fetch)
        self._database_works()
        self._count(fetch, result)
        self._follow(result)

    def _count(self, fetch: Fetch, result: Result) -> None:
        """Keep account of what goes wrong in a row."""
        streaks, answer = self._streaks, fetch.answer
        symbols = fetch.symbols
        streaks.unsent = streaks.unsent + 1 if isinstance(answer, NotSent) else 0
        streaks.unavailable = str(answer) if isinstance(answer, Unavailable) else ""
        if is_well(answer):
            streaks.bad.clear()
            streaks.not_in_plan.clear()
        elif isinstance(answer, ProviderError) and not isinstance(answer, NotSent | RateLimited):
            streaks.bad.update(symbols)
        if result.not_in_plan is not None:
            streaks.not_in_plan |= dict.fromkeys(symbols, str(result.not_in_plan))

    def _ask(self, held: _Held, request: Request) -> Answer:
        """Make the call; what the provider refuses comes back as a value like any answer."""
        api = self._api
        api.send_only_if(lambda: self._clock.monotonic() < held.until)
        api.call_timeout_seconds = min(
            held.until - self._clock.monotonic(),
            max(self._remaining(), LEAST_CALL_SECONDS),
        )
        try:
            return request.call(api)
        except ProviderError as error:
            return error

    def _applied(self, held: _Held, fetch: Fetch) -> Result:
        """Stamp the slot and store the answer: on a new connection if need be, it is paid for."""
        tries = 1
        while True:
            try:
                self._stamp(held, fetch.answer)
                with self._transaction() as cursor:
                    result = apply(cursor, self._scope, self._report.run_id, fetch)
            except SERVER_ERRORS as error:
                if not may_pass(error) or tries == STORE_TRIES:
                    raise
                tries += 1
                self._connect_again(error)
            except ServerError as error:
                if not refuses_data(error):
                    raise
                return self._refused_by_database(fetch, error)
            else:
                self._streaks.refused_by_database = None
                return result

    def _refused_by_database(self, fetch: Fetch, error: ServerError) -> Result:
        """Note the failure of the asset whose data the database refuses.

        Where two different assets in a row are refused in the same way, it is not their data.
        """
        with self._transaction() as cursor:
            result = refused_by_database(cursor, self._scope, self._report.run_id, fetch, error)
        before, symbol = self._streaks.refused_by_database, fetch.items[0].symbol
        self._streaks.refused_by_database = (symbol, error.pgcode or "")
        if before is not None and before[0] != symbol and before[1] == error.pgcode:
            self._say(result.told)
            raise error
        return result

    def _stamp(self, held: _Held, answer: Answer) -> None:
        """Say that the call is over, and hold everybody back after a 429."""
        self._limits.release(held.slot, held.end, sent_seconds_ago=held.sent_seconds_ago)
        if isinstance(answer, RateLimited):
            lowered = self._limits.refused(held.slot, answer.retry_after_seconds)
            if lowered is not None:
                self._tell(Warned(str(lowered)))

    def _follow(self, result: Result) -> None:
        """Do what is left once an answer is stored."""
        self._publish(result.prices)
        self._say(result.told)
        if result.scope_changed:  # its items go another way
            self._scope = scope_of(self._db, self._settings, self._lane)
            self._enqueue()
        if result.hopeless is not None:
            raise _Stop(Ended.KEY_REFUSED, str(result.hopeless))
        if result.not_in_plan is not None and len(self._streaks.not_in_plan) >= NOT_IN_PLAN:
            raise _Stop(Ended.PLAN_REFUSED, str(result.not_in_plan))
        if self._streaks.unsent >= UNSENT_CALLS:
            raise _Stop(
                Ended.UNAVAILABLE,
                f"{self._streaks.unavailable} After {UNSENT_CALLS} requests that could not be sent "
                "the run ends; the next one tries again.",
            )

    def _publish(self, prices: Sequence[market.LastPrice]) -> None:
        if self._redis is None or not prices:
            return
        try:
            self._redis.publish(prices)
        except publish.EventsError as error:
            self._tell(Warned(str(error)))

    def _say(self, told: Sequence[Progress]) -> None:
        """Have all of it in the report before the first word of it is told."""
        for progress in told:
            self._report.note(progress)
        for progress in told:
            self._tell(progress)

    # --- no call ------------------------------------------------------------------------------

    def _skip(self, items: Sequence[Item]) -> None:
        """End items that stood in line for a feed when it was denied."""
        with self._transaction() as cursor:
            queue.skip(cursor, items, NO_SNAPSHOTS)

    def _nothing_new(self, item: Item) -> None:
        """End an item for which the key can be shown nothing new before tomorrow."""
        with self._transaction() as cursor:
            market.save_status(cursor, [item.symbol])
            queue.finish(cursor, [item])
        self._say([Synced(item.symbol, item.feed, 0, None, None, 0.0)])

    # --- what is held -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _holding(self, held: _Held) -> Iterator[None]:
        """Know what is to be let go of, whatever ends the run.

        What may be its items' doing keeps their lease and so their attempt, or it would end every
        run.
        """
        self._held = held
        try:
            yield
        except (KeyboardInterrupt, SystemExit, ServerError):
            raise  # `_close` puts the items back
        except queue.LostLeaseError as error:
            self._tell(Warned(str(error)))
            held.items = ()
            self._let_go()
        except Exception:
            held.items = ()
            raise
        self._held = None

    def _let_go(self, *, after_seconds: float = 0) -> None:
        """Return the slot and the items that the run holds, if they are still ours."""
        held = self._held
        if held is None:
            return
        slots.release(
            self._db, held.slot, held.end, self._scope.rate, sent_seconds_ago=held.sent_seconds_ago
        )
        with contextlib.suppress(queue.LostLeaseError), transaction(self._db) as cursor:
            wait = after_seconds if held.called else 0
            queue.release(cursor, held.items, after_seconds=wait, reason="The run was interrupted.")
        self._held = None

    # --- a database that fails ----------------------------------------------------------------

    def _connect_again(self, error: ServerError) -> None:
        """Have a connection that works, trying until the run's end; then raise what was wrong."""
        if self._failing_since is None:
            self._failing_since = self._clock.monotonic()
            self._tell(
                Warned(
                    f"{sentence(error, self._settings.conninfo)} Trying again until the run's end."
                )
            )
        while self._remaining() > RECONNECT_SECONDS:
            self._clock.sleep(RECONNECT_SECONDS)
            if not self._db.closed:
                return
            with contextlib.suppress(*SERVER_ERRORS, AssetSyncError):
                self._connect(within_seconds=self._remaining())
        raise error

    def _database_works(self) -> None:
        """Report that it works again, once something was written to it."""
        if self._failing_since is not None:
            seconds = self._clock.monotonic() - self._failing_since
            self._failing_since = None
            self._tell(Recovered("the database", seconds))

    def _connect(self, *, within_seconds: float) -> None:
        self._db = connect(self._settings.conninfo, within_seconds=within_seconds)
        self._limiter = None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        """Run a block as one transaction; where the answer to its commit is lost, ask for it."""
        number, whole = "", False
        try:
            with transaction(self._db) as cursor:
                number = transaction_number(cursor)
                yield cursor
                whole = True
        except SERVER_ERRORS as error:
            if not whole or not self._db.closed:
                raise
            self._connect_again(error)
            while (committed := was_committed(self._db, number)) is None and self._remaining() > 0:
                self._clock.sleep(RECONNECT_SECONDS)
            if not committed:
                raise

    # --- the next priority run's place --------------------------------------------------------

    def _hold_next_place(self) -> None:
        so_far = self._clock.monotonic() - self._started
        self._hold_place(in_seconds=self._settings.batch.interval_seconds - so_far)

    def _hold_place(self, in_seconds: float) -> None:
        """Reserve what a priority run wants: this one now and while it waits, the next one."""
        if self._lane is not Lane.PRIORITY:
            return
        calls = 0
        batch = self._settings.batch
        if self._settings.rate_limit.hold_for_priority and batch.priority_assets_enabled:
            calls = queue.due_within(
                self._db,
                self._scope.wanted,
                in_seconds,
                cycle_seconds=batch.interval_seconds,
            )
        slots.reserve(self._db, calls, in_seconds)

    # --- the end ------------------------------------------------------------------------------

    def _close(self) -> None:
        """Give back what is held and note how the run ended, as far as the database allows."""
        interrupted = self._report.reason_ended is Ended.INTERRUPTED
        with contextlib.suppress(Exception), hurry(INTERRUPTED_SECONDS if interrupted else None):
            for step in (self._let_go, self._hold_next_place, self._note_end):
                self._do_last(step)
        if self._provider is not None:
            self._provider.close()
        if self._redis is not None:
            self._redis.close()
        if self._db is not self._given:
            self._db.close()

    def _do_last(self, step: Callable[[], None]) -> None:
        """Do it if the database lets us, and on another connection if this one is lost."""
        for _ in range(2):
            if self._db.closed:
                self._connect(within_seconds=0)
            try:
                step()
            except SERVER_ERRORS:
                if self._db.closed:
                    continue
            return

    def _note_end(self) -> None:
        report = self._report
        runs.end(
            self._db,
            report.run_id,
            report.reason_ended.value,
            updated=len(report.updated),
            failed=len(report.failed),
            waited_seconds=report.waited_seconds,
        )

    # --- small things -------------------------------------------------------------------------

    @property
    def _limits(self) -> "Limiter":
        if self._limiter is None:
            from asset_sync.budget.bucket import Limiter  # noqa: PLC0415

            self._limiter = Limiter(self._db, self._scope.rate, self._watch)
        return self._limiter

    @property
    def _api(self) -> Provider:
        if self._provider is None:
            self._provider = self._open_provider()
        return self._provider

    def _budget(self) -> slots.Budget:
        return slots.budget(self._db, self._scope.rate)

    def _remaining(self) -> float:
        return self._deadline - self._clock.monotonic()


def _end_of(answer: Answer) -> tuple[CallEnd, float]:
    """Return what became of a call, and how many seconds ago one without an answer was sent."""
    if isinstance(answer, NotSent):
        return CallEnd.NOT_SENT, 0.0
    if isinstance(answer, Unanswered):
        return CallEnd.UNANSWERED, answer.sent_seconds_ago
    return (CallEnd.ANSWERED_WELL if is_well(answer) else CallEnd.ANSWERED), 0.0
