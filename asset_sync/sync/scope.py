"""The scope of a run: the assets and feeds that its settings want and that its key may use."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from asset_sync.budget.slots import Rate, effective_rate, rate_of
from asset_sync.database import Connection
from asset_sync.model import AssetType, Feed, Lane, Level
from asset_sync.provider.access import Access
from asset_sync.provider.current import connect
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Wanted, calls_for
from asset_sync.secret import Secret
from asset_sync.settings import ProviderSettings, Settings, SettingsError
from asset_sync.store import entitlements
from asset_sync.store.entitlements import Missing
from asset_sync.sync.progress import Warned
from asset_sync.sync.window import Window, next_window

PRIORITY_SECONDS = 60
# Cron starts the next run on the minute; this one should have ended by then.
QUEUE_MARGIN_SECONDS = 10
NO_SNAPSHOTS = "The key's plan has no snapshots; bars serve it."


class Target(Protocol):
    """An asset that a call is made for, as a run holds it or a dry run shows it."""

    @property
    def symbol(self) -> str:
        """The user's name for it."""
        ...

    @property
    def feed(self) -> Feed:
        """The feed that serves it."""
        ...

    @property
    def ticker(self) -> str:
        """The provider's name for it."""
        ...

    @property
    def asset_type(self) -> AssetType:
        """The kind of the asset."""
        ...

    @property
    def verify_ticker(self) -> bool:
        """Whether the call only asks if the ticker exists."""
        ...

    @property
    def backfilled_to(self) -> datetime | None:
        """Up to when earlier calls of a catch-up have asked without finding new bars; else None."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """What one run has to do."""

    settings: Settings
    lane: Lane
    missing: Missing
    rate_now: Rate | None = None
    """The rate that holds now, which may be lowered; None for the settings' rate."""

    @property
    def switched_off(self) -> bool:
        """Whether the settings switch off the runs of this lane."""
        return self.lane is Lane.PRIORITY and not self.settings.batch.priority_assets_enabled

    @property
    def runtime_seconds(self) -> float:
        """How long a run works by default.

        A priority run gets one more window for each full budget of calls. Otherwise its last
        assets would never be served, because each run begins with the first asset.
        """
        interval = self.settings.batch.interval_seconds
        longest = max(interval - QUEUE_MARGIN_SECONDS, interval / 2)
        if self.lane is Lane.QUEUE:
            return longest
        calls = calls_for(Counter(wanted.feed for wanted in self.wanted))
        windows_to_wait = (calls - 1) // self.rate.calls
        seconds = PRIORITY_SECONDS + windows_to_wait * self.rate.period_seconds
        return max(PRIORITY_SECONDS, min(seconds, longest))

    @property
    def rate(self) -> Rate:
        """The budget of calls, and how long one call can last."""
        return self.rate_now or rate_of(self.settings)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The assets and feeds of the lane, without those that the key may not use."""
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
            if self.may_use(feed, asset.symbol)
        )

    def may_use(self, feed: Feed, symbol: str) -> bool:
        """Whether the plan has the feed, and the API did not refuse it for this asset."""
        if feed not in self.settings.provider.plan.feeds:
            return False
        return feed is not Feed.SNAPSHOT or not (
            self.missing.snapshot or symbol in self.missing.snapshot_symbols
        )

    def has_quotes(self, symbol: str) -> bool:
        """Whether the asset's price comes with bid and ask."""
        return self.may_use(Feed.SNAPSHOT, symbol)

    def not_included(self, what: str, instead: str) -> Warned:
        """Return the warning that the key's plan does not include something."""
        return Warned(
            f"The key's plan ({self.settings.provider.plan.name}) does not include {what}; using "
            f"{instead}. This is tried again after a day."
        )

    def window(
        self,
        asset_type: AssetType,
        newest: datetime | None,
        now: datetime,
        backfilled_to: datetime | None = None,
    ) -> Window | None:
        """Return the window of the next call for bars, None if there can be nothing new."""
        return next_window(
            now,
            newest,
            asset_type=asset_type,
            history_days=self.settings.provider.plan.history_days,
            backfilled_to=backfilled_to,
            today_denied=self.missing.today,
            past_denied=self.missing.past,
        )


def key_of(settings: Settings) -> Secret:
    """Return the key; raises SettingsError if there is none."""
    if settings.provider.api_key is None:
        raise SettingsError(
            (
                (
                    "POLYGON_API_KEY is not set: put your key into the environment, or its file's "
                    "path into POLYGON_API_KEY_FILE. Without a key, `asset-sync demo` shows the "
                    "job on replayed data."
                ),
            )
        )
    return settings.provider.api_key


def account(settings: Settings) -> tuple[str, str]:
    """Return how the database identifies a key: its fingerprint and the plan's name."""
    key = settings.provider.api_key
    return (key.fingerprint() if key else ""), settings.provider.plan.name


def scope_of(db: Connection, settings: Settings, lane: Lane) -> Scope:
    """Return the scope of a run, with what the database knows of the key."""
    rate = effective_rate(db, rate_of(settings))
    return Scope(settings, lane, entitlements.missing(db, *account(settings)), rate)


def open_provider(settings: ProviderSettings, key: Secret) -> Provider:
    """Return the provider's client; it connects with the first call."""
    return connect(
        Access(
            settings.base_url,
            key,
            settings.connect_timeout_seconds,
            settings.read_timeout_seconds,
            settings.call_timeout_seconds,
        )
    )
