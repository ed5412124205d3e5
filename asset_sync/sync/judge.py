"""What an answer means: what to store, what becomes of each item, and what to report.

The functions here are pure: `asset_sync.sync.apply` reads what they need, and writes what they
return. Each feed judges its own answers; this module has what all feeds share.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import NamedTuple, Protocol, TypeAlias

from asset_sync import queue
from asset_sync.hours import Hours
from asset_sync.provider.answers import Bar, BarsAnswer, Quote, SnapshotAnswer
from asset_sync.provider.errors import (
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    TickerUnknown,
    Unavailable,
)
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Item
from asset_sync.spans import Span
from asset_sync.store.ledger import Ledger
from asset_sync.sync.news import Chance
from asset_sync.sync.progress import Progress, PutBack, Synced, Warned

Answer: TypeAlias = BarsAnswer | SnapshotAnswer | bool | ProviderError
"""The result of a call; True or False if it asked whether a ticker exists."""


class Request(Protocol):
    """One call to make."""

    @property
    def endpoint(self) -> str:
        """Path and query of the call, as a dry run shows them."""
        ...

    def call(self, provider: Provider) -> Answer:
        """Make the call. Raises any `ProviderError`."""
        ...


class Fetch(NamedTuple):
    """A call that was made for these items, its answer, and how many seconds it took."""

    items: Sequence[Item]
    request: Request
    answer: Answer
    seconds: float
    asked_at: datetime
    """Before the call, by the database's clock: later bars, and the one that ran, were not over."""

    @property
    def symbols(self) -> list[str]:
        """The symbols of the assets that it was made for."""
        return [item.symbol for item in self.items]


class Known(NamedTuple):
    """What the database has of an asset when its answer is judged."""

    newest: datetime | None
    """The start of its newest stored bar."""
    now: datetime
    """By the database's clock."""
    ledger: Ledger = Ledger()
    """What was asked of its bars."""
    due_weeks: Sequence[date] = ()
    """Mondays of the weeks with empty ranges that are due again, the newest first."""


# --- what becomes of an item ------------------------------------------------------------------


class Finish(NamedTuple):
    """The item is fresh; it is asked again when there is the chance of news."""

    chance: Chance = Chance()


class Idle(NamedTuple):
    """The item has nothing to do for now; how fresh the asset is does not change."""


class Resume(NamedTuple):
    """A call brought a part of the data; the next call continues from there."""

    backfilled_to: datetime | None
    """The end of the window that was asked for, if it had no new bars; else None."""


class Verify(NamedTuple):
    """There was no data; the next call asks whether the ticker exists."""


class Skip(NamedTuple):
    """The key may not use the feed; another feed serves the asset."""

    reason: str


class Release(NamedTuple):
    """The item waits in line again, and nothing is counted."""

    after_seconds: float = 0.0
    reason: str | None = None


class MoveBack(NamedTuple):
    """The item waits behind the items that are due already, and nothing is counted."""

    reason: str


class Strike(NamedTuple):
    """The item's call got a bad answer or none: it backs off."""

    error: str


class Fail(NamedTuple):
    """The asset itself cannot be refreshed: it backs off, and may become dead."""

    error: str
    verify_ticker: bool = False


ItemEnd: TypeAlias = Finish | Idle | Resume | Verify | Skip | Release | MoveBack | Strike | Fail


class Price(NamedTuple):
    """The bar whose close becomes the asset's last price."""

    start: datetime
    """The start of the bar."""
    as_of: datetime
    """The time of the price."""
    running: Bar | None = None
    """The bar itself if it is not over, so that it is not stored."""


class NotIncluded(NamedTuple):
    """What the key's plan turned out not to include."""

    capability: str
    symbols: Sequence[str] = ()
    """The assets concerned; empty for all."""


class Entry(NamedTuple):
    """What the ledger notes of an answer."""

    ledger: Ledger
    """As it is from now on."""
    settled: Span
    hours: Hours
    unasked_until: datetime | None
    """As `ledger.save` has it."""
    tried: bool = False
    """Whether this was a try of weeks with empty ranges."""
    lag_seconds: tuple[float, float] | None = None
    """How long after its end an earlier call lacked a bar, and how long until it was first seen, if
    this answer shows it."""


class Judgement(NamedTuple):
    """What to store, how each item ends, and what to report."""

    ends: Sequence[tuple[Sequence[Item], ItemEnd]]
    outcome: str = "ok"
    """The kind of error, for the history of calls."""
    error: str | None = None
    bars: Sequence[Bar] | None = None
    """Bars to store for the first item, all of them over; None if there is nothing to store."""
    entry: Entry | None = None
    """What to note of the first item in the ledger."""
    price: Price | None = None
    quotes: Sequence[tuple[Item, Quote]] = ()
    """Quotes to store as last prices."""
    missing: Sequence[NotIncluded] = ()
    shows_running_day: bool = False
    """Whether the answer proves that the key sees the running day, against earlier answers."""
    scope_changed: bool = False
    """Whether the key turned out to allow less, so that the run's scope has changed."""
    progress: Sequence[Progress] = ()
    not_in_plan: ProviderError | None = None
    """The error, if the plan does not include this asset's data (and perhaps no asset's)."""
    hopeless: ProviderError | None = None
    """The error, if every further call of the run would fail in the same way."""


# --- what every feed shares -------------------------------------------------------------------


def is_well(answer: Answer) -> bool:
    """Whether the answer shows that the provider works: it has bars or a price, or knows a ticker.

    An empty answer does not show it: a provider that fails may send one.
    """
    match answer:
        case BarsAnswer():
            return bool(answer.bars)
        case SnapshotAnswer():
            return bool(answer.quotes)
    return answer is True


def verified(fetch: Fetch, *, exists: bool, without_data: Judgement) -> Judgement:
    """Judge the answer whether a ticker exists.

    `without_data` is the judgement for a ticker that exists but has no data.
    """
    [item] = fetch.items
    if not exists:
        error = (
            f"The provider knows no ticker {item.ticker}; correct its polygon_ticker in"
            " assets.toml."
        )
        return Judgement(
            [(fetch.items, Fail(error, verify_ticker=True))], TickerUnknown.kind, error
        )
    if not tried_before(item):
        return without_data
    # An earlier call found the ticker unknown, or its run was killed. Now the provider knows it.
    return Judgement([(fetch.items, Resume(backfilled_to=None))])


def refused(fetch: Fetch, error: ProviderError) -> Judgement | None:
    """Judge an error that means the same for every feed; return None for any other error."""
    progress = [PutBack(fetch.symbols, str(error))]
    kind, text = error.kind, str(error)
    match error:
        case NotSent():
            release = Release(queue.TRY_AGAIN_SECONDS, text)
            return Judgement([(fetch.items, release)], kind, text, progress=progress)
        case Unavailable():
            # A single asset is reported as failed when its strike is written.
            shown = progress if len(fetch.items) > 1 else ()
            return Judgement([(fetch.items, Strike(text))], kind, text, progress=shown)
        case RateLimited():
            # Usually the whole account is refused. If only this asset is, it must not stay first in
            # line.
            return Judgement([(fetch.items, MoveBack(text))], kind, text, progress=progress)
        case KeyRefused():
            return Judgement([(fetch.items, MoveBack(text))], kind, text, hopeless=error)
    return None


def failed(fetch: Fetch, error: ProviderError) -> Judgement:
    """Judge an error that concerns this asset only."""
    return Judgement([(fetch.items, Fail(str(error)))], error.kind, str(error))


def nothing_new(fetch: Fetch, chance: Chance) -> Judgement:
    """Judge an answer that brings nothing new for an asset whose ticker exists."""
    [item] = fetch.items
    synced = Synced(item.symbol, item.feed, 0, None, None, fetch.seconds)
    return Judgement([(fetch.items, Finish(chance))], progress=[synced])


def left_out(item: Item, answer: BarsAnswer) -> list[Warned]:
    """Return the warning about bars that cannot be true, if there are any."""
    if not answer.left_out:
        return []
    reasons = ", ".join(map(str, answer.left_out))
    return [Warned(f"{item.symbol}: bars that cannot be true were left out: {reasons}.")]


def tried_before(item: Item) -> bool:
    """Whether an earlier try counts against the asset: it failed, or its run was killed.

    A call without data, after which the next call verifies the ticker, is the same try.
    """
    return item.attempts > 1


def had_failed(item: Item) -> bool:
    """Whether the asset was reported as failing, so that its recovery is reported, too."""
    return tried_before(item) or item.strikes >= queue.FAILING_STRIKES
