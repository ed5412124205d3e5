"""History, from the calls that nothing else needs."""

from collections.abc import Sequence

from asset_sync import queue
from asset_sync.budget.slots import Spare
from asset_sync.budget.turn import Turn
from asset_sync.model import Asset, Feed, Level
from asset_sync.store import existing_tables, ledger, market, runs
from asset_sync.store.ledger import Wish
from asset_sync.sync import coverage
from asset_sync.sync.caller import LEAST_CALL_SECONDS, Caller
from asset_sync.sync.line import LEASE_MARGIN_SECONDS
from asset_sync.sync.scope import Scope
from asset_sync.sync.state import Held, State

# Among so many assets there is nearly always one that no other run holds.
_CANDIDATES = 8
_RANKS = {level: rank for rank, level in enumerate(Level)}
# 0 would mean that a call was made.
_LEAST_WAIT_SECONDS = 0.02


class Backfill:
    """Makes the calls for history of one run, each only if it delays no asset."""

    def __init__(self, run: State, caller: Caller, assets: Sequence[Asset]) -> None:
        """Ask nothing yet."""
        self._run = run
        self._caller = caller
        self._assets = {asset.symbol: asset for asset in assets}
        self._spare: Spare | None = None

    def next_turn(self) -> Turn | float | None:
        """Take a slot for history; return the seconds to wait for one, None without any history."""
        run = self._run
        if run.remaining() < LEAST_CALL_SECONDS or run.streaks.is_bad:
            return None
        if not self._next_symbols(1):
            return None
        if not run.report.api_calls_used:
            existing_tables.require_usable(run.db, run.settings.assets)
        if self._spare is None:
            seconds = runs.usual_seconds(run.db, Feed.HISTORY)
            self._spare = Spare(seconds, {feed: feed.bulk for feed in run.live_feeds})
        turn = run.turns.take(0, spare=self._spare)
        return turn if isinstance(turn, Turn) else max(turn.seconds, _LEAST_WAIT_SECONDS)

    def serve(self, held: Held) -> None:
        """Make one call with the slot that is held, for the asset whose turn it is."""
        run = self._run
        lease = run.settings.provider.call_timeout_seconds + LEASE_MARGIN_SECONDS
        symbols = self._next_symbols(_CANDIDATES)
        for place, symbol in enumerate(symbols, start=1):
            item = queue.claim_history(run.db, self._assets[symbol], lease_seconds=lease)
            if item is not None:
                held.items = (item,)
                if place < len(symbols):
                    run.ask_for_worker(lambda: True)
                self._caller.serve(held)
                return
        run.turns.give_back(held.turn)
        run.leave_to_others()

    def _wishes(self, scope: Scope) -> list[Wish]:
        refused = scope.missing.past_symbols
        return [
            Wish(asset.symbol, asset.ticker, _RANKS[asset.level], days, asset.symbol in refused)
            for asset in self._assets.values()
            if (days := scope.past_days(asset))
        ]

    def _next_symbols(self, most: int) -> list[str]:
        """Return the assets whose past is to be asked next, in the order of the calls."""
        db, scope = self._run.db, self._run.scope
        if scope.only is None:
            return ledger.next_symbols(db, self._wishes(scope), most)
        # The ledger's table has the end of the newest unasked range, which may be out of bounds.
        held = {one.symbol for one in queue.held_history(db, list(self._assets))}
        tickers = {
            one.symbol: one.ticker for one in self._assets.values() if one.symbol not in held
        }
        _, now = market.newest_bars(db, ())
        ends = [
            (end, symbol)
            for symbol, known in ledger.read(db, Feed.BARS, tickers).items()
            if (
                end := coverage.unasked_until(
                    scope.hours(symbol), known, *scope.past(symbol, now, known)
                )
            )
        ]
        return [symbol for _, symbol in sorted(ends, reverse=True)][:most]
