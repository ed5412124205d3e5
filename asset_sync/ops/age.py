"""How old the data is, beside how long ago it was asked for.

A market that is closed makes no data old. So the age that counts is the time for which the market
has been open since the newest bar ended.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from asset_sync.database import Connection
from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.model import Asset
from asset_sync.provider.current import hours_of
from asset_sync.store import market

# In an open market a bar may fail to come for so long before the data counts as old: a silent
# market is asked once an hour.
_LEAST_SILENCE_SECONDS = 7200


class DataAge(NamedTuple):
    """The age of an asset's newest bar."""

    newest_bar_end: datetime | None
    """None if it has no bars."""
    age_seconds: float | None
    """How long ago that was."""
    open_seconds: float | None
    """For how much of that time its market was open."""
    opens_at: datetime | None
    """When its market opens; None if it is open."""

    def is_old(self, allowed_seconds: float) -> bool:
        """Whether the data is older than expected while the market is open."""
        allowed = max(allowed_seconds, _LEAST_SILENCE_SECONDS)
        return self.open_seconds is not None and self.open_seconds > allowed


def ages(db: Connection, assets: Sequence[Asset]) -> dict[str, DataAge]:
    """Return the age of each asset's data, by symbol."""
    newest, now = market.newest_bars(db, [asset.symbol for asset in assets])

    @cache  # many assets share their hours and the time of their newest bar
    def age(hours: Hours, start: datetime | None) -> DataAge:
        return _age(hours, start, now)

    return {asset.symbol: age(hours_of(asset), newest.get(asset.symbol)) for asset in assets}


def _age(hours: Hours, newest: datetime | None, now: datetime) -> DataAge:
    opening = hours.next_open(now)
    opens_at = None if opening <= now else opening
    if newest is None:
        return DataAge(None, None, None, opens_at)
    end = min(newest + BAR_LENGTH, now)
    opened = hours.open_time(end, now)
    return DataAge(end, (now - end).total_seconds(), opened.total_seconds(), opens_at)
