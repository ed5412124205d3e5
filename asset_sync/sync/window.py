"""How much history one call of bars asks for."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asset_sync.hours import BAR_LENGTH
from asset_sync.model import AssetType
from asset_sync.provider.current import MARKETS

# The provider corrects its history, so the last few bars are read again.
OVERLAP = 6 * BAR_LENGTH

SAFE_HISTORY = timedelta(days=720)
"""The history that every plan has; the API rejects a range that starts earlier (403)."""


@dataclass(frozen=True, slots=True)
class Window:
    """The range that one call asks for, both ends included; starts of bars, UTC."""

    start: datetime
    end: datetime
    last: bool
    """Whether it ends with the newest data; otherwise another call continues from its end."""


def next_window(
    now: datetime,
    newest: datetime | None,
    *,
    asset_type: AssetType,
    history_days: int,
    settled_until: datetime | None = None,
    reread_from: datetime | None = None,
    backfilled_to: datetime | None = None,
    today_denied: bool = False,
    past_denied: bool = False,
    newest_first: bool = False,
) -> Window | None:
    """Return the window of the next call, None when there can be nothing new.

    The window begins a few bars before the newest stored one, at `settled_until` or `reread_from`
    if that is earlier, on the first sync as far back as one call reaches; it ends now.
    `backfilled_to` is up to when earlier calls of the same catch-up have asked without finding new
    bars: then the window begins there. With `today_denied` it ends with yesterday (UTC). With
    `past_denied` it begins within the history that every plan has. With `newest_first` a gap that
    is longer than one call reaches is left to the calls for history.
    """
    end = now
    if today_denied:
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        end = midnight - timedelta(milliseconds=1)
        if newest is not None and newest + BAR_LENGTH > end:
            return None
    longest = MARKETS[asset_type].window
    start = end - longest
    if newest is not None:
        start = min(filter(None, (newest - OVERLAP, settled_until, reread_from)))
    history = timedelta(days=history_days)
    earliest = now - (min(history, SAFE_HISTORY) if past_denied else history)
    start = max(start, backfilled_to or start, earliest)
    start = start_of_bar(min(start, end))
    if end - start <= longest + BAR_LENGTH:
        return Window(start, end, last=True)
    if newest_first:
        return Window(start_of_bar(end - longest), end, last=True)
    return Window(start, start + longest, last=False)


def start_of_bar(moment: datetime) -> datetime:
    """Return the start of the bar that contains the moment, so that the API sends the whole bar."""
    return moment - (moment - datetime(1970, 1, 1, tzinfo=UTC)) % BAR_LENGTH
