"""How much history one call of bars asks for."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asset_sync.model import AssetType
from asset_sync.provider.current import MARKETS

BAR_LENGTH = timedelta(minutes=5)

# The provider repairs its history: equal calls may differ.
OVERLAP = 6 * BAR_LENGTH

SAFE_HISTORY = timedelta(days=720)
"""How far back every plan goes; a range that starts before a plan's floor is refused (403)."""


@dataclass(frozen=True, slots=True)
class Window:
    """The range that one call asks for, both ends included; starts of bars, UTC."""

    start: datetime
    end: datetime
    last: bool
    """Whether it ends where the data does; otherwise another call goes on from there."""


def next_window(
    now: datetime,
    newest: datetime | None,
    *,
    asset_type: AssetType,
    history_days: int,
    backfilled_to: datetime | None = None,
    today_denied: bool = False,
    past_denied: bool = False,
) -> Window | None:
    """Return what the next call has to ask for, None when there can be nothing new.

    From the newest bar stored less a few, or on the first sync as far back as one call reaches,
    to now. `backfilled_to` is how far earlier calls of the same catch-up came, where they found
    nothing. A key that may not see the running day gets a range that ends with yesterday, UTC; one
    that may not see more of the past than the smallest plan, a range that starts within that.
    """
    end = now
    if today_denied:
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight - timedelta(milliseconds=1)
        if newest is not None and newest + BAR_LENGTH > end:
            return None
    longest = MARKETS[asset_type].window
    start = end - longest if newest is None else newest - OVERLAP
    history = timedelta(days=history_days)
    floor = now - (min(history, SAFE_HISTORY) if past_denied else history)
    start = max(start, backfilled_to or start, floor)
    start = _floor(min(start, end))
    if end - start <= longest + BAR_LENGTH:
        return Window(start, end, last=True)
    return Window(start, start + longest, last=False)


def _floor(moment: datetime) -> datetime:
    """Return the start of the bar that holds the moment, or its bar would come cut."""
    return moment - (moment - datetime(1970, 1, 1, tzinfo=UTC)) % BAR_LENGTH
