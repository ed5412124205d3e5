"""The scope of a run: the assets and feeds that its settings want and that its key may use."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from asset_sync.budget.slots import Rate, effective_rate, rate_of
from asset_sync.database import Connection, query
from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.provider.access import Access
from asset_sync.provider.current import connect, hours_of
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Wanted, calls_for
from asset_sync.secret import Secret
from asset_sync.settings import ProviderSettings, Settings, SettingsError
from asset_sync.spans import Span
from asset_sync.store import entitlements, ledger, market
from asset_sync.store.entitlements import Missing
from asset_sync.store.ledger import UNKNOWN_LAG, Lag, Ledger
from asset_sync.sync.coverage import REREAD_EVERY, reread_from
from asset_sync.sync.news import END_OF_DAY_EVERY
from asset_sync.sync.progress import Warned
from asset_sync.sync.window import SAFE_HISTORY, Window, next_window, start_of_bar

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
    lags: Mapping[str, Lag] = field(default_factory=dict)
    """How late bars are, by asset type."""
    only: Span | None = None
    """The part of the past that the run asks for; None for all that is wanted."""
    _by_symbol: dict[str, Asset] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_symbol = {asset.symbol: asset for asset in self.settings.assets}
        object.__setattr__(self, "_by_symbol", by_symbol)

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
        if feed not in (*self.settings.provider.plan.feeds, Feed.HISTORY):
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
        self, target: Target, newest: datetime | None, now: datetime, ledger: Ledger
    ) -> Window | None:
        """Return the window of the next call for bars, None if there can be nothing new."""
        reread = newest is not None and (
            ledger.reread_at is None or now - ledger.reread_at >= REREAD_EVERY
        )
        return next_window(
            now,
            newest,
            asset_type=target.asset_type,
            history_days=self.settings.provider.plan.history_days,
            settled_until=ledger.tail.end if ledger.tail else None,
            reread_from=reread_from(self.hours(target.symbol), now) if reread else None,
            backfilled_to=target.backfilled_to,
            today_denied=self.missing.today,
            past_denied=self.missing.past,
            newest_first=self.settings.history.enabled,
        )

    def hours(self, symbol: str) -> Hours:
        """Return when the asset trades."""
        return hours_of(self._asset(symbol))

    @property
    def is_end_of_day(self) -> bool:
        """Whether the key shows nothing of the running day, by what it showed."""
        return self.missing.is_end_of_day(self._by_symbol)

    def bars_end_yesterday(self, db: Connection) -> str | None:
        """Return what to say of a key that shows nothing of the running day; None for any other."""
        if not (self.missing.today or self.is_end_of_day):
            return None
        newest, now = market.newest_bars(db, list(self._by_symbol))
        said = "This key's bars end yesterday"
        if newest:
            hours = (now - max(newest.values()) - BAR_LENGTH) / timedelta(hours=1)
            said += f": the newest is {max(hours, 0):.0f} h old"
        if self.missing.today:
            return f"{said}. The API refuses those of the running day; they are tried once a day."
        rest = ", and the other calls go to history" if self.settings.history.enabled else ""
        often = timedelta(days=1) // END_OF_DAY_EVERY
        return f"{said}. Each asset is asked {often} times a day{rest}."

    def closed_until(self, db: Connection) -> datetime | None:
        """Return when the first market of the lane opens; None if one is open, or without any."""
        [(now,)] = query(db, "select clock_timestamp()")
        markets = {hours_of(wanted.asset) for wanted in self.wanted}
        openings = [hours.next_open(now) for hours in markets]
        return min(openings) if openings and min(openings) > now else None

    def frequency(self, symbol: str) -> timedelta:
        """Return how old the asset's data may get."""
        return timedelta(seconds=self._asset(symbol).update_frequency_seconds)

    def lag(self, asset_type: AssetType) -> Lag:
        """Return how late bars of this market are on this plan."""
        return self.lags.get(asset_type, UNKNOWN_LAG)

    @property
    def market_lags(self) -> dict[AssetType, Lag]:
        """How late bars are on this plan, for each market that the settings have assets of."""
        kinds = dict.fromkeys(asset.asset_type for asset in self.settings.assets)
        return {kind: self.lag(kind) for kind in kinds}

    def past_begins(self, symbol: str, now: datetime, ledger: Ledger) -> datetime:
        """Return the earliest moment of an asset's history that is wanted and in the plan."""
        wanted = self.wanted_since(symbol, now)
        return max(wanted, self.refused_until(symbol, now, ledger) or wanted)

    def wanted_since(self, symbol: str, now: datetime) -> datetime:
        """Return the earliest moment of an asset's history that the settings want."""
        days = history_days(self.settings, self._asset(symbol))
        return start_of_bar(now - timedelta(days=days))

    def refused_until(self, symbol: str, now: datetime, ledger: Ledger) -> datetime | None:
        """Return the moment before which the API refuses this asset's past to the key.

        None if it refused nothing within the last day.
        """
        refused = ledger.past_begins if symbol in self.missing.past_symbols else None
        safe = start_of_bar(now - SAFE_HISTORY) if self.missing.past else None
        return max(filter(None, (refused, safe)), default=None)

    def past_days(self, asset: Asset) -> int:
        """Return how many days of an asset's past are wanted and not refused to the key."""
        days = history_days(self.settings, asset)
        return min(days, SAFE_HISTORY.days) if self.missing.past else days

    def past(self, symbol: str, now: datetime, ledger: Ledger) -> Span:
        """Return the part of an asset's past that the run asks for, as far as the plan has it."""
        if self.only is None:
            begins = self.past_begins(symbol, now, ledger)
            return Span(begins, max(begins, now))
        included = now - timedelta(days=included_days(self.settings))
        refused = self.refused_until(symbol, now, ledger) or included
        begins = max(self.only.start, included, refused)
        return Span(begins, max(begins, self.only.end))

    def _asset(self, symbol: str) -> Asset:
        return self._by_symbol[symbol]


def history_days(settings: Settings, asset: Asset) -> int:
    """Return how many days of an asset's past are wanted and in the plan.

    Every plan includes at least two years; a call that begins a few hours too early is refused.
    """
    wanted = asset.history_days or settings.history.days
    included = included_days(settings)
    return included if wanted is None else min(wanted, included)


def included_days(settings: Settings) -> int:
    """Return how many days of the past the plan surely includes."""
    if settings.provider.plan.history_days <= 731:  # noqa: PLR2004
        return SAFE_HISTORY.days
    return max(settings.provider.plan.history_days - 1, SAFE_HISTORY.days)


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


def scope_of(db: Connection, settings: Settings, lane: Lane, only: Span | None = None) -> Scope:
    """Return the scope of a run, with what the database knows of the key."""
    rate = effective_rate(db, rate_of(settings))
    known_lags = ledger.lags(db, settings.provider.plan.name)
    missing = entitlements.missing(db, *account(settings))
    return Scope(settings, lane, missing, rate, known_lags, only)


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
