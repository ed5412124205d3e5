"""All that is known of one asset: price, market, data, calls, history."""

from datetime import datetime
from typing import NamedTuple

from asset_sync import queue
from asset_sync.database import Connection
from asset_sync.model import Asset, Feed, Lane
from asset_sync.ops import age, history
from asset_sync.ops.age import DataAge
from asset_sync.ops.history import AssetHistory
from asset_sync.provider.current import hours_of
from asset_sync.queue import FeedStatus
from asset_sync.settings import Settings
from asset_sync.store import ledger, market
from asset_sync.store.ledger import Lag
from asset_sync.store.market import Stored
from asset_sync.sync.scope import scope_of


class AssetStatus(NamedTuple):
    """What the database knows of an asset."""

    now: datetime
    """The database's time for which all of this holds."""
    data: DataAge
    closes_at: datetime | None
    """When its market closes; None if it is closed, or never closes."""
    stored: Stored
    last_success_at: datetime | None
    feeds: tuple[FeedStatus, ...]
    """The feeds that serve it on the settings' plan, history last; without those never asked."""
    history: AssetHistory | None
    """None if the settings switch the asset off."""
    past_begins: datetime | None
    """From when on its past is wanted; None as above."""
    next_try_at: datetime | None
    """When ranges that were asked and are empty are asked next."""
    revisions: int
    """Bars that the provider changed after they were stored, as far as they are kept."""
    lag: Lag
    """How late the bars of its market are on the settings' plan."""

    @property
    def next_call_at(self) -> datetime | None:
        """When it can be refreshed next; None if it is dead or switched off, or new."""
        moments = [one.next_at for one in self.feeds if one.feed is not Feed.HISTORY]
        return min((moment for moment in moments if moment is not None), default=None)


def status_of(db: Connection, settings: Settings, asset: Asset) -> AssetStatus:
    """Return what the database knows of an asset of the settings."""
    _, now = market.newest_bars(db, ())
    data = age.ages(db, [asset])[asset.symbol]
    scope = scope_of(db, settings, Lane.QUEUE)
    live = (*settings.provider.plan.feeds, Feed.HISTORY)
    known = ledger.read(db, Feed.BARS, {asset.symbol: asset.ticker}).get(asset.symbol)
    wanted = asset in settings.assets
    tries = ledger.next_tries(db, asset.symbol).values()
    return AssetStatus(
        now=now,
        data=data,
        closes_at=None if data.opens_at else hours_of(asset).next_close(now),
        stored=market.stored(db, asset.symbol),
        last_success_at=queue.last_success(db, [asset.symbol]).get(asset.symbol),
        feeds=tuple(
            one if wanted else one._replace(next_at=None)
            for one in queue.feeds_of(db, asset)
            if one.feed in live
        ),
        history=history.history_of_asset(db, settings, asset.symbol) if wanted else None,
        past_begins=scope.past_begins(asset.symbol, now, known or ledger.Ledger())
        if wanted
        else None,
        next_try_at=max(min(tries), now) if tries else None,
        revisions=ledger.count_revisions(db, asset.symbol),
        lag=scope.lag(asset.asset_type),
    )
