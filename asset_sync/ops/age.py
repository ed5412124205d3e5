"""How old the data is, beside how long ago it was asked for.

A market that is closed makes no data old. So the age that counts is the time for which the market
has been open since the newest bar ended.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from asset_sync.database import Connection
from asset_sync.model import Asset
from asset_sync.provider.current import hours_of
from asset_sync.store import market
from asset_sync.sync.window import BAR_LENGTH

# In hours of trade a bar may fail to come for so long before the data counts as old: a silent
# market is asked once an hour.
_LEAST_SILENCE = timedelta(hours=2)


class DataAge(NamedTuple):
    """The age of an asset's newest bar."""

    newest_end: datetime | None
    """When its newest bar ended; None if it has none."""
    age: timedelta | None
    """How long ago that was."""
    open_time: timedelta | None
    """For how much of that time its market was open."""
    opens_at: datetime | None
    """When its market opens; None if it is open."""

    def is_old(self, allowed: timedelta) -> bool:
        """Whether the data is older than expected while the market is open."""
        return self.open_time is not None and self.open_time > max(allowed, _LEAST_SILENCE)


def ages(db: Connection, assets: Sequence[Asset]) -> dict[str, DataAge]:
    """Return the age of each asset's data, by symbol."""
    newest, now = market.newest_bars(db, [asset.symbol for asset in assets])
    return {asset.symbol: _age(asset, newest.get(asset.symbol), now) for asset in assets}


def _age(asset: Asset, newest: datetime | None, now: datetime) -> DataAge:
    hours = hours_of(asset)
    opening = hours.next_open(now)
    opens_at = None if opening <= now else opening
    if newest is None:
        return DataAge(None, None, None, opens_at)
    end = min(newest + BAR_LENGTH, now)
    return DataAge(end, now - end, hours.open_time(end, now), opens_at)
