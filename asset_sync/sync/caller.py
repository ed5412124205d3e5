"""Makes one call of a run, stamps its slot, stores its answer and reports it."""

from collections.abc import Callable, Sequence
from datetime import datetime

from asset_sync import bus, queue
from asset_sync.budget import slots
from asset_sync.budget.turn import Turn
from asset_sync.database import SERVER_ERRORS, DriverError, is_transient, refuses_data
from asset_sync.model import Feed
from asset_sync.provider.errors import NotSent, ProviderError
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Item
from asset_sync.store import market, publish
from asset_sync.sync import feeds
from asset_sync.sync.apply import Result, apply, known_of, no_history_left, refused_by_database
from asset_sync.sync.judge import Answer, Fetch, Request, is_well
from asset_sync.sync.progress import Calling, Synced, Warned
from asset_sync.sync.scope import NO_SNAPSHOTS, Scope
from asset_sync.sync.state import Held, State

LEAST_CALL_SECONDS = 2.0
# An answer has cost a call, so storing it is tried so many times; other runs wait meanwhile.
STORE_TRIES = 3


class Caller:
    """Serves items, one call at a time."""

    def __init__(self, run: State, open_provider: Callable[[], Provider]) -> None:
        """Open nothing yet; `open_provider` is called before the first call."""
        self._run = run
        self._open_provider = open_provider
        self._provider: Provider | None = None
        self.is_in_flight = False
        """Whether the call is under way."""

    def serve(self, held: Held) -> None:
        """Make the one call that these items need, and store its answer."""
        items, scope = held.items, self._run.scope
        if not scope.may_use(items[0].feed, items[0].symbol):
            self._run.turns.give_back(held.turn)
            with self._run.connection.transaction() as cursor:
                queue.skip(cursor, items, NO_SNAPSHOTS)
            return
        known = known_of(self._run.db, items[0])
        request = feeds.request_of(scope, items, known)
        if request is None:
            self._run.turns.give_back(held.turn)
            self._finish_without_call(items[0])
            return
        budget = slots.budget(self._run.db, scope.rate)
        if not self._run.turns.in_time(held.turn):
            self._run.turns.give_back(held.turn)
            with self._run.connection.transaction() as cursor:
                queue.release(cursor, items)
            return
        self._run.tell(Calling([item.symbol for item in items], items[0].feed, budget))
        fetch = self._fetch(held, request, known.now)
        result = self._store(held, scope, fetch)
        self._run.connection.report_recovery()
        with self._run.shared.lock:
            self._run.streaks.note(fetch, result)
        self._follow(result)

    def _finish_without_call(self, item: Item) -> None:
        """Finish an item that needs no call.

        The key gets its newer bars only tomorrow, or there is no history left to ask for.
        """
        if item.feed is Feed.HISTORY:
            with self._run.connection.transaction() as cursor:
                no_history_left(cursor, self._run.scope, item)
            return
        with self._run.connection.transaction() as cursor:
            market.save_status(cursor, [item.symbol])
            queue.finish(cursor, [item])
        self._run.say([Synced(item.symbol, item.feed, 0, None, None, 0.0)])

    def _fetch(self, held: Held, request: Request, asked_at: datetime) -> Fetch:
        """Make the call; a provider error is returned as a value, like any answer."""
        if self._provider is None:
            self._provider = self._open_provider()
        started = self._run.shared.called_at = self._run.clock.monotonic()
        self._run.count_calls(1)
        answer: Answer
        self.is_in_flight = True
        try:
            answer = self._run.turns.call(
                held.turn,
                self._provider,
                request.call,
                is_well=is_well,
                most_seconds=max(self._run.remaining(), LEAST_CALL_SECONDS),
            )
        except ProviderError as error:
            answer = error
        ended = self._run.shared.called_at = self._run.clock.monotonic()
        if isinstance(answer, NotSent):
            self._run.count_calls(-1)
        self.is_in_flight = False  # first, because whoever abandons the run looks here
        self._run.check_abandoned()
        return Fetch(held.items, request, answer, ended - started, asked_at)

    def _store(self, held: Held, scope: Scope, fetch: Fetch) -> Result:
        """Stamp the slot and store the answer, on a new connection if this one is lost.

        The answer is judged with the scope of its request: another call in flight may have shown
        meanwhile that the key allows less.
        """
        tries = 1
        while True:
            try:
                self._stamp(held.turn, fetch.answer)
                with self._run.connection.transaction() as cursor:
                    result = apply(cursor, scope, self._run.report.run_id, fetch)
            except SERVER_ERRORS as error:
                if not is_transient(error) or tries == STORE_TRIES:
                    raise
                tries += 1
                self._run.connection.reconnect(error)
            except DriverError as error:
                if not refuses_data(error):
                    raise
                return self._record_refusal(scope, fetch, error)
            else:
                self._run.streaks.refused_by_database = None
                return result

    def _stamp(self, turn: Turn, answer: Answer) -> None:
        lowered = self._run.turns.stamp(turn, answer if isinstance(answer, ProviderError) else None)
        if lowered is not None:
            self._run.tell(Warned(str(lowered)))

    def _record_refusal(self, scope: Scope, fetch: Fetch, error: DriverError) -> Result:
        """Record that the database refuses an asset's data; raise if the data is not the cause."""
        with self._run.connection.transaction() as cursor:
            result = refused_by_database(cursor, scope, self._run.report.run_id, fetch, error)
        with self._run.shared.lock:
            database_refuses_all = self._run.streaks.refused(fetch.symbols[0], error)
        if database_refuses_all:
            self._run.say(result.progress)
            raise error
        return result

    def _follow(self, result: Result) -> None:
        """Publish and report a stored answer; raise Stop if it shows that the run should end."""
        self._publish(result.prices)
        progress = result.progress
        if result.scope_changed:  # another feed serves its items now
            self._run.read_scope()
            # Another call in flight may have told it.
            progress = [
                step
                for step in progress
                if not isinstance(step, Warned) or self._run.is_new(step.text)
            ]
        self._run.say(progress)
        self._run.streaks.check(result)

    def _publish(self, prices: Sequence[market.LastPrice]) -> None:
        if self._run.shared.bus is None or not prices:
            return
        try:
            publish.send(self._run.shared.bus, prices)
        except bus.EventsError as error:
            self._run.tell(Warned(str(error)))

    def close(self) -> None:
        """Close what was opened."""
        if self._provider is not None:
            self._provider.close()
