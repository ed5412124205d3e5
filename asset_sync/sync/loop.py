"""One run: take a slot, claim an item, call, store; repeat until nothing is due or time is up.

`sync priority` and `sync queue` are this loop with two filters. A run may be killed at any
instruction: each answer is stored in one transaction, a slot frees itself, and a lease ends.
`asset_sync.sync.judge` decides what an answer means, `asset_sync.sync.apply` writes it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.budget.slots import Lane
from asset_sync.budget.turn import POLL_SECONDS, Turn, Turns
from asset_sync.clock import Clock
from asset_sync.database import (
    SERVER_ERRORS,
    Connection,
    ServerError,
    may_pass,
    refuses_data,
    statement_timeout,
    transaction,
)
from asset_sync.provider.errors import NotSent, ProviderError
from asset_sync.provider.protocol import Provider
from asset_sync.queue import TRY_AGAIN_SECONDS, Item
from asset_sync.settings import ProviderSettings, Secret, Settings
from asset_sync.store import existing_tables, market, publish, runs
from asset_sync.sync import feeds
from asset_sync.sync.apply import Result, apply, refused_by_database
from asset_sync.sync.connection import LastingConnection
from asset_sync.sync.judge import Answer, Fetch, Known, Request, is_well
from asset_sync.sync.line import Line, Patience
from asset_sync.sync.progress import Calling, Listener, Progress, Started, Synced, Waiting, Warned
from asset_sync.sync.report import NO_WAY_IN, Ended, Report
from asset_sync.sync.scope import NO_SNAPSHOTS, key_of, open_provider, scope_of
from asset_sync.sync.streaks import Stop, Streaks

LEAST_CALL_SECONDS = 2.0
# An answer has cost a call, so storing it is tried again; but other runs wait meanwhile.
STORE_TRIES = 3
# A database that accepts connections but fails each time must not cost a call each time.
WASTED_CALLS = 3
# A user who interrupts a run does not want to wait for a server that may be gone.
INTERRUPTED_SECONDS = 1.0


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
    """Refresh the due assets of a lane until none is left, or time or budget is used up.

    `connect_to` opens the provider when the first call is made. Raises SettingsError without a key,
    and DatabaseError; the provider's errors are in the report.
    """
    provider = partial(connect_to, settings.provider, key_of(settings))
    return _Run(
        db, settings, lane, provider, max_runtime_seconds, limit, tell, clock or Clock()
    ).work()


@dataclass(slots=True)
class _Held:
    """What the run has taken and has to give back."""

    turn: Turn
    items: Sequence[Item] = ()


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
        self._streaks = Streaks()
        self._connection = LastingConnection(db, settings.conninfo, clock, self._remaining, tell)
        self._turns = Turns(lambda: self._db, self._scope.rate, lane, clock, self._wait_for_a_slot)
        self._line = Line(lambda: self._db, self._scope, clock, self._turns.watch, tell)
        self._called_at: float | None = None
        self._held: _Held | None = None
        self._provider: Provider | None = None
        self._redis = publish.RedisPublisher(settings.redis_url) if settings.redis_url else None

    # --- the loop -----------------------------------------------------------------------------

    def work(self) -> Report:
        """Run the loop and record how it ended, in every case."""
        report = self._report
        report.reason_ended = Ended.BROKEN
        try:
            self._tell(Started(report.run_id))
            report.reason_ended = self._loop_persistently()
            self._compare_with_run_before()
        except Stop as stop:
            report.reason_ended, report.message = stop.reason, str(stop)
            self._compare_with_run_before()
        except (KeyboardInterrupt, SystemExit):
            report.reason_ended = Ended.INTERRUPTED
            raise
        finally:
            self._close()
        return report

    def _loop_persistently(self) -> Ended:
        """Run the loop; after a database failure run it again, until the run's end."""
        wasted = 0
        while True:
            calls, progress = self._report.api_calls_used, self._report.progress
            try:
                self._release_held(after_seconds=TRY_AGAIN_SECONDS)
                return self._loop()
            except SERVER_ERRORS as error:
                wasted += self._report.api_calls_used > calls
                if self._report.progress > progress:
                    wasted = 0
                if not may_pass(error) or wasted > WASTED_CALLS:
                    raise
                self._connection.reconnect(error)

    def _loop(self) -> Ended:
        if self._scope.switched_off:
            return Ended.DISABLED
        self._begin()
        while True:
            if self._limit is not None and self._report.served >= self._limit:
                return Ended.LIMIT
            if not self._line.has_work(self._patience):
                return self._nothing_left()
            if self._remaining() <= 0 or not self._bad_answers_waited_out():
                return self._unless_unavailable(Ended.TIME)
            if not self._report.api_calls_used:
                existing_tables.require_usable(self._db, self._settings.assets)
            turn = self._turns.take(self._remaining())
            if not isinstance(turn, Turn):
                return self._unless_unavailable(Ended.BUDGET)
            with self._holding(_Held(turn)) as held:
                held.items = self._line.claim(
                    None if self._limit is None else self._limit - self._report.served
                )
                if held.items:
                    self._serve(held)
                else:  # another run was quicker
                    self._turns.give_back(turn)

    def _begin(self) -> None:
        """Enqueue what is due, and reserve this run's calls."""
        runs.prune(self._db)
        # A queue run that has work also waits for assets that become due. Refreshing those early
        # would take calls from assets that are due already (simulated: 539 s instead of 410 s
        # between refreshes of a high asset, beside a long queue).
        ahead = None if self._tried else self._settings.batch.interval_seconds
        self._line.read(ahead if self._lane is Lane.PRIORITY else None)
        if ahead is not None and self._line.empty:
            self._line.read(ahead)
        self._reserve(in_seconds=0)
        self._connection.report_recovery()

    def _nothing_left(self) -> Ended:
        """Return how the run ends when it has nothing left to do."""
        if self._streaks.not_in_plan and not self._report.updated:
            self._report.message = next(iter(self._streaks.not_in_plan.values()))
            return Ended.PLAN_REFUSED
        return self._unless_unavailable(Ended.DONE if self._tried else Ended.NOTHING_DUE)

    def _unless_unavailable(self, reason: Ended) -> Ended:
        """Return the reason, or UNAVAILABLE if the run refreshed nothing and got no answer last."""
        if self._report.updated or not self._streaks.unavailable:
            return reason
        self._report.message = self._streaks.unavailable
        return Ended.UNAVAILABLE

    def _compare_with_run_before(self) -> None:
        """Note whether the run ended differently from the one before: cron mails only changes."""
        before = None
        with contextlib.suppress(*SERVER_ERRORS):
            before = runs.reason_before(self._db, self._report.run_id)
        self._report.is_news = before != self._report.reason_ended
        if before in NO_WAY_IN and self._report.updated:
            self._tell(Warned("The API serves this key again."))

    # --- waiting ------------------------------------------------------------------------------

    def _bad_answers_waited_out(self) -> bool:
        """Wait between two calls while the provider answers badly; False if the run is too short.

        An hour of such answers costs no more than two calls a window. Once the provider is well,
        no run waits longer than half a window.
        """
        if not self._streaks.is_bad or self._called_at is None:
            return True
        again_at = self._called_at + self._scope.rate.period_seconds / 2
        while (left := again_at - self._clock.monotonic()) > 0:
            if left > self._remaining():
                return False
            self._reserve(left)
            self._tell(Waiting("the provider to be well again", left))
            self._clock.sleep(min(left, POLL_SECONDS))
        return True

    def _wait_for_a_slot(self, seconds: float) -> None:
        self._reserve(seconds)
        self._tell(Waiting("a slot", seconds, slots.budget(self._db, self._scope.rate)))

    def _reserve(self, in_seconds: float) -> None:
        """Reserve slots for a priority run: this one, now or after its wait, or the next one."""
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

    # --- one call -----------------------------------------------------------------------------

    def _serve(self, held: _Held) -> None:
        """Make the one call that these items need, and store its answer."""
        items = held.items
        if not self._scope.may_use(items[0].feed, items[0].symbol):
            self._turns.give_back(held.turn)
            with self._connection.transaction() as cursor:
                queue.skip(cursor, items, NO_SNAPSHOTS)
            return
        known = Known(*market.newest_bar(self._db, items[0].symbol))
        request = feeds.request_of(self._scope, items, known)
        if request is None:
            self._turns.give_back(held.turn)
            self._nothing_new(items[0])
            return
        budget = slots.budget(self._db, self._scope.rate)
        if not self._turns.in_time(held.turn):
            self._turns.give_back(held.turn)
            with self._connection.transaction() as cursor:
                queue.release(cursor, items)
            return
        self._tell(Calling([item.symbol for item in items], items[0].feed, budget))
        fetch = self._fetch(held, request)
        result = self._applied(held, fetch)
        self._connection.report_recovery()
        self._streaks.note(fetch, result)
        self._follow(result)

    def _nothing_new(self, item: Item) -> None:
        """Finish an item whose newer bars this key may see only tomorrow."""
        with self._connection.transaction() as cursor:
            market.save_status(cursor, [item.symbol])
            queue.finish(cursor, [item])
        self._say([Synced(item.symbol, item.feed, 0, None, None, 0.0)])

    def _fetch(self, held: _Held, request: Request) -> Fetch:
        """Make the call; a provider error is returned as a value, like any answer."""
        if self._provider is None:
            self._provider = self._open_provider()
        started = self._clock.monotonic()
        self._called_at = started
        self._report.api_calls_used += 1
        answer: Answer
        try:
            answer = self._turns.call(
                held.turn,
                self._provider,
                request.call,
                is_well=is_well,
                most_seconds=max(self._remaining(), LEAST_CALL_SECONDS),
            )
        except ProviderError as error:
            answer = error
        self._called_at = self._clock.monotonic()
        if isinstance(answer, NotSent):
            self._report.api_calls_used -= 1
        return Fetch(held.items, request, answer, self._called_at - started)

    def _applied(self, held: _Held, fetch: Fetch) -> Result:
        """Stamp the slot and store the answer, on a new connection if this one is lost."""
        tries = 1
        while True:
            try:
                self._end_turn(held.turn, fetch.answer)
                with self._connection.transaction() as cursor:
                    result = apply(cursor, self._scope, self._report.run_id, fetch)
            except SERVER_ERRORS as error:
                if not may_pass(error) or tries == STORE_TRIES:
                    raise
                tries += 1
                self._connection.reconnect(error)
            except ServerError as error:
                if not refuses_data(error):
                    raise
                return self._refused_by_database(fetch, error)
            else:
                self._streaks.refused_by_database = None
                return result

    def _end_turn(self, turn: Turn, answer: Answer) -> None:
        lowered = self._turns.end(turn, answer if isinstance(answer, ProviderError) else None)
        if lowered is not None:
            self._tell(Warned(str(lowered)))

    def _refused_by_database(self, fetch: Fetch, error: ServerError) -> Result:
        """Record that the database refuses an asset's data; raise if the data is not to blame."""
        with self._connection.transaction() as cursor:
            result = refused_by_database(cursor, self._scope, self._report.run_id, fetch, error)
        if self._streaks.refused(fetch.symbols[0], error):
            self._say(result.progress)
            raise error
        return result

    def _follow(self, result: Result) -> None:
        """Publish and report an answer that is stored, and end the run if it calls for that."""
        self._publish(result.prices)
        self._say(result.progress)
        if result.scope_changed:  # another feed serves its items now
            self._scope = self._line.scope = scope_of(self._db, self._settings, self._lane)
            self._line.read()
        self._streaks.check(result)

    def _publish(self, prices: Sequence[market.LastPrice]) -> None:
        if self._redis is None or not prices:
            return
        try:
            self._redis.publish(prices)
        except publish.EventsError as error:
            self._tell(Warned(str(error)))

    def _say(self, progress: Sequence[Progress]) -> None:
        """Note everything in the report first, then tell it."""
        for step in progress:
            self._report.note(step)
        for step in progress:
            self._tell(step)

    # --- what is held -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _holding(self, held: _Held) -> Iterator[_Held]:
        """Remember what the run holds, so that it can be released however the run ends.

        If the items may have caused the crash, their lease is kept so that the attempt counts.
        """
        self._held = held
        try:
            yield held
        except (KeyboardInterrupt, SystemExit, ServerError):
            raise  # `_close` puts the items back
        except queue.LostLeaseError as error:
            self._tell(Warned(str(error)))
            held.items = ()
            self._release_held()
        except Exception:
            held.items = ()
            raise
        self._held = None

    def _release_held(self, *, after_seconds: float = 0) -> None:
        """Return the slot and the items that the run holds, if they are still ours."""
        held = self._held
        if held is None:
            return
        self._turns.end(held.turn)
        with contextlib.suppress(queue.LostLeaseError), transaction(self._db) as cursor:
            wait = after_seconds if held.turn.called else 0
            queue.release(cursor, held.items, after_seconds=wait, reason="The run was interrupted.")
        self._held = None

    # --- the end ------------------------------------------------------------------------------

    def _close(self) -> None:
        """Give back what is held and note how the run ended, as far as the database allows."""
        self._report.waited_seconds = self._turns.waited_seconds
        self._report.left_out = self._line.left_out
        interrupted = self._report.reason_ended is Ended.INTERRUPTED
        seconds = INTERRUPTED_SECONDS if interrupted else None
        with contextlib.suppress(Exception), statement_timeout(seconds):
            for step in (self._release_held, self._reserve_for_next_run, self._note_end):
                self._connection.try_twice(step)
        if self._provider is not None:
            self._provider.close()
        if self._redis is not None:
            self._redis.close()
        self._connection.close()

    def _reserve_for_next_run(self) -> None:
        so_far = self._clock.monotonic() - self._started
        self._reserve(in_seconds=self._settings.batch.interval_seconds - so_far)

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
    def _db(self) -> Connection:
        return self._connection.db

    @property
    def _tried(self) -> bool:
        """Whether the run has made a call, or tried to."""
        return self._called_at is not None

    def _patience(self) -> Patience:
        return Patience(self._remaining(), self._tried)

    def _remaining(self) -> float:
        return self._deadline - self._clock.monotonic()
