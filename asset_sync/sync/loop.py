"""One run: take a slot, claim an item, call, store; repeat until nothing is due or time is up.

`sync priority` and `sync queue` are this loop with different assets. With several calls in flight
the same loop runs in several workers (`asset_sync.sync.team`). A run may be killed at any
instruction: each answer is stored in one transaction, a slot frees itself, and a lease ends.
`asset_sync.sync.judge` decides what an answer means, `asset_sync.sync.apply` writes it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.budget.turn import INTERRUPTED_SECONDS, POLL_SECONDS, Turn
from asset_sync.clock import Clock
from asset_sync.database import (
    SERVER_ERRORS,
    Connection,
    DriverError,
    is_transient,
    statement_timeout,
    transaction,
)
from asset_sync.model import Asset, Feed, Lane
from asset_sync.provider.protocol import Provider
from asset_sync.queue import LINE_LENGTH, TRY_AGAIN_SECONDS
from asset_sync.secret import Secret
from asset_sync.settings import ProviderSettings, Settings
from asset_sync.spans import Span
from asset_sync.store import existing_tables, expected, months, runs
from asset_sync.sync.apply import recount
from asset_sync.sync.backfill import Backfill
from asset_sync.sync.caller import Caller
from asset_sync.sync.line import LEASE_MARGIN_SECONDS, SECOND_TRY_SECONDS
from asset_sync.sync.progress import Failed, Listener, Noted, Started, Waiting, Warned
from asset_sync.sync.report import NOT_SERVED, Ended, Report
from asset_sync.sync.scope import key_of, open_provider
from asset_sync.sync.state import IDLE_SECONDS, Held, Leave, Shared, State
from asset_sync.sync.streaks import Stop

if TYPE_CHECKING:
    from asset_sync.sync.team import Team

# A database may accept connections but fail each time. After so many calls whose answers it did not
# store, the run ends.
WASTED_CALLS = 3

# A run for history ends when nothing is left; this only bounds how long it waits for a database.
_FILL_SECONDS = 7 * 86_400


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
    shared = Shared(db, settings, lane, max_runtime_seconds, tell, clock or Clock())

    def worker(state: State) -> Worker:
        return _Refresh(state, Caller(state, provider), limit)

    return _Run(shared, db, worker, limit).work()


def fill(
    db: Connection,
    settings: Settings,
    symbols: Sequence[str],
    *,
    only: Span | None = None,
    tell: Listener = lambda _: None,
    clock: Clock | None = None,
    connect_to: Callable[[ProviderSettings, Secret], Provider] = open_provider,
) -> Report:
    """Ask for the history of these assets until nothing is left, with calls that delay no asset.

    `only` bounds the past that is asked for. Raises as `run` does.
    """
    provider = partial(connect_to, settings.provider, key_of(settings))
    shared = Shared(
        db,
        settings,
        Lane.QUEUE,
        _FILL_SECONDS,
        tell,
        clock or Clock(),
        command="history",
        only=only,
    )
    assets = [asset for asset in settings.assets if asset.symbol in set(symbols)]

    def worker(state: State) -> Worker:
        return _Fill(state, Caller(state, provider), assets)

    return _Run(shared, db, worker).work()


def _team(
    shared: Shared, make_worker: "Callable[[State], Worker]", limit: int | None
) -> "Team | None":
    """Return the team of a run that may have several calls in flight."""
    calls = min(shared.settings.provider.calls_in_flight, shared.scope.rate.calls)
    calls = calls if limit is None else min(calls, limit)
    if calls == 1:
        return None
    from asset_sync.sync.team import Team  # noqa: PLC0415  # most runs need none

    return Team(shared, make_worker, calls)


class _Run:
    """One run: its workers, and what happens once."""

    def __init__(
        self,
        shared: Shared,
        db: Connection,
        make_worker: "Callable[[State], Worker]",
        limit: int | None = None,
    ) -> None:
        """Begin with one worker, on the given connection."""
        self._shared = shared
        self._team = _team(shared, make_worker, limit)
        self._state = State(shared, db)
        self._first = make_worker(self._state)

    def work(self) -> Report:
        """Let the workers serve and record how the run ended, in every case."""
        first, report = self._first, self._shared.report
        report.reason_ended = Ended.BROKEN
        try:
            self._shared.tell(Started(report.run_id))
            reason = first.serve() if self._team is None else self._team.serve(first)
            report.reason_ended = first.persistently(lambda: first.conclude(reason))
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

    def _compare_with_run_before(self) -> None:
        """Note whether the run ended differently from the previous one: cron mails only changes."""
        before, report = None, self._shared.report
        with contextlib.suppress(*SERVER_ERRORS):
            before = runs.reason_before(self._state.db, report.run_id)
        report.is_news = before != report.reason_ended
        if before in NOT_SERVED and report.updated:
            self._shared.tell(Warned("The API serves this key again."))

    def _close(self) -> None:
        """Give back what is held and note how the run ended, as far as the database allows."""
        first, report = self._first, self._shared.report
        report.left_out = self._shared.reading.left_out
        interrupted = report.reason_ended is Ended.INTERRUPTED
        seconds = INTERRUPTED_SECONDS if interrupted else None
        with contextlib.suppress(Exception), statement_timeout(seconds):
            for step in (first.give_back, self._reserve_for_next_run, self._note_end):
                self._state.connection.try_twice(step)
        first.close()
        if self._shared.bus is not None:
            self._shared.bus.close()

    def _reserve_for_next_run(self) -> None:
        so_far = self._shared.clock.monotonic() - self._shared.started
        interval = self._shared.settings.batch.interval_seconds
        self._state.reserve(in_seconds=interval - so_far)

    def _note_end(self) -> None:
        report = self._shared.report
        runs.end(
            self._state.db,
            report.run_id,
            report.reason_ended.value,
            updated=len(report.updated),
            failed=len(report.failed),
            waited_seconds=report.waited_seconds,
        )


class Worker:
    """Makes one call after another; a subclass says which."""

    def __init__(self, state: State, caller: Caller, backfill: Backfill | None) -> None:
        """Hold nothing yet."""
        self._state = state
        self._caller = caller
        self._backfill = backfill
        self._held: Held | None = None

    def _loop(self) -> Ended:
        """Serve until there is nothing more to do; return why."""
        raise NotImplementedError

    def conclude(self, reason: Ended) -> Ended:
        """Return how the run ended if its last worker ended for this reason."""
        raise NotImplementedError

    # --- the loop -----------------------------------------------------------------------------

    def serve(self) -> Ended:
        """Run the loop until there is nothing more to do; return why."""
        try:
            return self.persistently(self._loop)
        finally:
            self._state.end()

    def persistently(self, step: Callable[[], Ended]) -> Ended:
        """Take this step; after a database failure take it again, until the run's end."""
        streaks = self._state.streaks
        while True:
            calls, progress = self._state.calls, self._state.report.progress
            try:
                self.give_back(after_seconds=TRY_AGAIN_SECONDS)
                return step()
            except SERVER_ERRORS as error:
                streaks.wasted += self._state.calls > calls
                if self._state.report.progress > progress:
                    streaks.wasted = 0
                if not is_transient(error) or streaks.wasted > WASTED_CALLS:
                    raise
                self._state.connection.reconnect(error)
                self._state.shared.begun = False

    def _serve_history(self) -> float | None:
        """Make a call for history if it delays nobody: return 0, else how long to wait for one.

        None means that there is no history to ask for.
        """
        self._state.check()
        if self._backfill is None:
            return None
        turn = self._backfill.next_turn()
        if isinstance(turn, Turn):
            with self._holding(Held(turn)) as held:
                self._backfill.serve(held)
            return 0
        return turn

    # --- waiting ------------------------------------------------------------------------------

    def _paused_after_bad_answers(self) -> bool:
        """Wait half a window between two calls while the provider answers badly.

        Returns False if the run would end before the next call. Once the provider answers well
        again, no run waits longer than half a window. One worker of the run waits; others end.
        """
        if not self._state.streaks.is_bad or self._state.shared.called_at is None:
            return True
        if not self._state.may_wait():
            raise Leave
        again_at = self._state.shared.called_at + self._state.scope.rate.period_seconds / 2
        while (left := again_at - self._state.clock.monotonic()) > 0:
            if left > self._state.remaining():
                return False
            self._state.reserve(left)
            self._state.tell(Waiting("the provider to recover", left))
            self._state.clock.sleep(min(left, POLL_SECONDS))
        return True

    def _unless_unavailable(self, reason: Ended) -> Ended:
        """Return the reason; UNAVAILABLE if nothing was refreshed and the last call failed."""
        if self._state.report.updated or not self._state.streaks.unavailable:
            return reason
        self._state.report.message = self._state.streaks.unavailable
        return Ended.UNAVAILABLE

    # --- what is held -------------------------------------------------------------------------

    @property
    def is_in_flight(self) -> bool:
        """Whether its call is under way, so that the worker does nothing else."""
        return self._caller.is_in_flight

    @contextlib.contextmanager
    def _holding(self, held: Held) -> Iterator[Held]:
        """Remember what the worker holds, so that it can be released however the run ends.

        After an unexpected error the lease of the items is kept, so that the attempt counts: they
        may have caused the error.
        """
        self._state.stop_waiting()
        self._held = held
        try:
            yield held
        except (KeyboardInterrupt, SystemExit, DriverError):
            raise  # the end of the run, or the loop once it has reconnected, puts the items back
        except queue.LostLeaseError as error:
            self._state.tell(Warned(str(error)))
            held.items = ()
            self.give_back()
        except Exception:
            held.items = ()
            raise
        self._held = None

    def give_back(self, *, after_seconds: float = 0) -> None:
        """Return the slot and the items that are held, if their tokens are still valid."""
        held = self._held
        if held is None:
            return
        self._state.turns.stamp(held.turn)
        with contextlib.suppress(queue.LostLeaseError), transaction(self._state.db) as cursor:
            wait = after_seconds if held.turn.called else 0
            queue.release(cursor, held.items, after_seconds=wait)
        self._held = None

    def leave(self) -> None:
        """Give back what is held, if the database allows it, and close what was opened."""
        with contextlib.suppress(Exception):
            self._state.connection.try_twice(self.give_back)
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        self._caller.close()
        self._state.connection.close()


class _Refresh(Worker):
    """Refreshes the due assets of a lane; a queue run also asks for history meanwhile."""

    def __init__(self, state: State, caller: Caller, limit: int | None) -> None:
        history = state.settings.history.enabled and state.lane is Lane.QUEUE and limit is None
        assets = state.settings.assets
        super().__init__(state, caller, Backfill(state, caller, assets) if history else None)
        self._limit = limit

    def _loop(self) -> Ended:
        if self._state.scope.switched_off:
            return Ended.DISABLED
        if not self._state.shared.begun:
            self._begin()
        while True:
            self._state.check()
            if self._left() == 0:
                return Ended.LIMIT
            if not self._state.line.has_work(self._state.patience, self._serve_history):
                return Ended.DONE
            if self._state.remaining() <= 0 or not self._paused_after_bad_answers():
                return Ended.TIME
            if not self._state.report.api_calls_used:
                existing_tables.require_usable(self._state.db, self._state.settings.assets)
            turn = self._state.turns.take(self._state.remaining())
            if not isinstance(turn, Turn):
                return Ended.BUDGET
            with self._holding(Held(turn)) as held, self._claiming(held):
                if held.items:
                    self._state.ask_for_worker(self._state.line.can_claim)
                    self._caller.serve(held)
                else:
                    self._state.turns.give_back(turn)
                    self._state.leave_to_others()

    def _begin(self) -> None:
        """Enqueue what is due, and reserve this run's calls."""
        runs.prune(self._state.db, self._state.settings.history)
        months.make_missing_quietly(self._state.db)
        settings = self._state.settings
        expected.keep_quietly(
            self._state.db,
            settings.assets,
            settings.provider.plan.history_days,
            partial(recount, self._state.scope),
        )
        # A queue run that has work also waits for assets that become due. If it refreshed these
        # early, it would take calls from assets that are due already: in a simulation with a long
        # queue, a high asset was refreshed every 539 s instead of every 410 s.
        ahead = None if self._state.tried else self._state.settings.batch.interval_seconds
        self._state.line.read(ahead if self._state.lane is Lane.PRIORITY else None)
        if ahead is not None and self._state.line.empty:
            self._state.line.enqueue(ahead)
        if said := self._state.scope.bars_end_yesterday(self._state.db):
            self._state.tell(Noted(said))
        self._state.reserve(in_seconds=0)
        self._state.connection.report_recovery()
        self._state.shared.begun = True

    def _left(self) -> int | None:
        """Return how many more assets may be refreshed, None if there is no limit."""
        if self._limit is None:
            return None
        return max(0, self._limit - self._state.report.served - self._state.shared.in_work)

    @contextlib.contextmanager
    def _claiming(self, held: Held) -> Iterator[None]:
        """Claim the items of the next call, no more than the limit leaves."""
        if self._limit is None:
            held.items = self._state.line.claim(None)
            yield
            return
        shared = self._state.shared
        with shared.lock:  # the limit counts what all workers have claimed
            left = self._left()
            held.items = self._state.line.claim(left) if left else ()
            claimed = len(held.items)
            shared.in_work += claimed
        try:
            yield
        finally:
            with shared.lock:
                shared.in_work -= claimed

    def conclude(self, reason: Ended) -> Ended:
        """Return how the run ended; nothing may have been due."""
        if reason in {Ended.TIME, Ended.BUDGET}:
            return self._unless_unavailable(reason)
        if reason is not Ended.DONE:
            return reason
        if self._state.streaks.not_in_plan and not self._state.report.updated:
            self._state.report.message = next(iter(self._state.streaks.not_in_plan.values()))
            return Ended.PLAN_REFUSED
        reason = self._unless_unavailable(Ended.DONE if self._state.tried else Ended.NOTHING_DUE)
        if reason is not Ended.UNAVAILABLE and not self._state.report.served:
            self._state.report.closed_until = self._state.scope.closed_until(self._state.db)
        return reason


class _Fill(Worker):
    """Asks for history only."""

    def __init__(self, state: State, caller: Caller, assets: Sequence[Asset]) -> None:
        super().__init__(state, caller, Backfill(state, caller, assets))
        self._symbols = [asset.symbol for asset in assets]
        self._explained = False

    def _loop(self) -> Ended:
        self._state.connection.report_recovery()
        while True:
            queue.reclaim(self._state.db, self._state.settings.queue)
            if not self._paused_after_bad_answers():
                return Ended.TIME
            if (due := self._first_due()) is not None:
                reason, seconds = f"{due}, which is due", float(POLL_SECONDS)
            elif (pause := self._serve_history()) is not None:
                reason, seconds = "a call for history", pause
            elif (next_try := self._until_next_try()) is not None:
                reason, seconds = "the next try", next_try
            else:
                return Ended.DONE
            if seconds and not self._waited(reason, seconds, due):
                return Ended.DONE

    def _first_due(self) -> str | None:
        """Return the first asset that is due and that the jobs of cron will refresh: it goes first.

        None if there is none, or if no run has started for two intervals of cron.
        """
        db, settings = self._state.db, self._state.settings
        ago = runs.seconds_since_start(db, [lane.value for lane in Lane])
        if ago is None or ago > 2 * settings.batch.interval_seconds:
            return None
        waiting = queue.line(db, settings.assets, LINE_LENGTH)
        return next((one.symbol for one in waiting if not one.wait_seconds), None)

    def _explain_wait(self, due: str | None) -> None:
        """Say once why nothing happens while an asset is due."""
        if due is None:
            self._explained = False
        elif not self._explained:
            self._explained = True
            minutes = 2 * self._state.settings.batch.interval_minutes
            self._state.tell(
                Noted(
                    f"{due} is due, so history waits until a run has refreshed it, or until no run"
                    f" has started for {minutes:g} minutes."
                )
            )

    def _until_next_try(self) -> float | None:
        """Return in how many seconds a held asset can be asked, None if that takes too long."""
        held = queue.held_history(self._state.db, self._symbols)
        waits = [one.wait_seconds for one in held if one.wait_seconds is not None]
        longest = LEASE_MARGIN_SECONDS + self._state.settings.provider.call_timeout_seconds
        return min(
            (wait for wait in waits if wait <= max(longest, SECOND_TRY_SECONDS)), default=None
        )

    def _waited(self, reason: str, seconds: float, due: str | None) -> bool:
        """Wait; return False at once if another worker does and it takes longer."""
        if seconds > IDLE_SECONDS and not self._state.may_wait():
            return False
        self._explain_wait(due)
        budget = slots.budget(self._state.db, self._state.scope.rate)
        self._state.tell(Waiting(reason, seconds, budget))
        self._state.clock.sleep(min(max(seconds, 0.05), POLL_SECONDS))
        return True

    def conclude(self, reason: Ended) -> Ended:
        """Return how the run ended; report the assets that it could not ask for."""
        if reason is not Ended.DONE:
            return reason
        report = self._state.report
        told = {failure.symbol for failure in report.history_failed}
        held = [one for one in queue.held_history(self._state.db, self._symbols) if one.error]
        self._state.say(
            [
                Failed(one.symbol, Feed.HISTORY, one.error or "")
                for one in held
                if one.symbol not in told
            ]
        )
        report.failed = report.history_failed  # nothing else was to be asked
        if held and self._state.streaks.unavailable:
            report.message = self._state.streaks.unavailable
            return Ended.UNAVAILABLE
        return Ended.DONE if report.api_calls_used else Ended.NOTHING_DUE
