"""What a run has to do: the settings and what is known of the key, in the other rooms' words."""

from dataclasses import dataclass, replace
from datetime import datetime

from asset_sync import runs
from asset_sync.assets import AssetType, Feed, Level
from asset_sync.database import Connection
from asset_sync.queue import Wanted
from asset_sync.reach import Reach, reach
from asset_sync.settings import Settings
from asset_sync.slots import Lane, Rate, rate_of

PRIORITY_SECONDS = 60
# Cron starts the next run on the minute; this one should be out of its way.
QUEUE_MARGIN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Job:
    """One command's part of the work."""

    settings: Settings
    lane: Lane
    denials: runs.Denials

    @property
    def switched_off(self) -> bool:
        """Whether there are to be no such runs."""
        return self.lane is Lane.PRIORITY and not self.settings.batch.priority_assets_enabled

    @property
    def runtime_seconds(self) -> float:
        """How long a run works unless told otherwise."""
        if self.lane is Lane.PRIORITY:
            return PRIORITY_SECONDS
        interval = self.settings.batch.interval_seconds
        return max(interval - QUEUE_MARGIN_SECONDS, interval / 2)

    @property
    def rate(self) -> Rate:
        """The budget of calls, and how long one can last."""
        return rate_of(self.settings)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The assets and feeds of the lane, less what the key may not do."""
        settings = self.settings
        assets = settings.critical if self.lane is Lane.PRIORITY else settings.others
        if not settings.batch.priority_assets_enabled:
            # Without priority runs the queue serves their assets, before the others.
            first = [replace(asset, level=Level.HIGH) for asset in settings.critical]
            assets = () if self.lane is Lane.PRIORITY else (*first, *settings.others)
        return tuple(
            Wanted(asset, feed)
            for feed in settings.provider.plan.feeds
            for asset in assets
            if feed is Feed.BARS or self.has_quotes(asset.symbol)
        )

    def has_quotes(self, symbol: str) -> bool:
        """Whether the asset's price comes with bid and ask."""
        plan = self.settings.provider.plan
        return Feed.SNAPSHOT in plan.feeds and not (
            self.denials.snapshot or symbol in self.denials.snapshot_symbols
        )

    def reach(
        self,
        asset_type: AssetType,
        newest: datetime | None,
        now: datetime,
        asked_until: datetime | None = None,
    ) -> Reach | None:
        """Return what the next call for bars has to ask for, None if there is nothing new."""
        return reach(
            now,
            newest,
            asset_type=asset_type,
            history_days=self.settings.provider.plan.history_days,
            asked_until=asked_until,
            today_denied=self.denials.today,
        )


def account(settings: Settings) -> tuple[str, str]:
    """Return by what the database remembers a key: its fingerprint, and the plan's name."""
    key = settings.provider.api_key
    return (key.fingerprint() if key else ""), settings.provider.plan.name


def job_of(db: Connection, settings: Settings, lane: Lane) -> Job:
    """Return the job of a command, with what the database knows of the key."""
    return Job(settings, lane, runs.denials(db, *account(settings)))
