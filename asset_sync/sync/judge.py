"""What an answer means: what to store, what becomes of each item, and what to report.

The judgement is pure: whatever has to be known of an asset is read before, and
`asset_sync.sync.apply` writes what is decided. The feeds judge the answers that are theirs; what
every feed shares is here.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias

from asset_sync import queue
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
from asset_sync.sync.progress import Progress, PutBack, Synced

Answer: TypeAlias = BarsAnswer | SnapshotAnswer | bool | ProviderError
"""Whatever a call can bring; True or False where it asked whether a ticker exists."""


class Request(Protocol):
    """One call that is to be made."""

    @property
    def endpoint(self) -> str:
        """What is asked, as a dry run shows it."""
        ...

    def call(self, provider: Provider) -> Answer:
        """Make the call. Raises any `ProviderError`."""
        ...


class Fetch(NamedTuple):
    """A call that was made, for these items, and what came back after so many seconds."""

    items: Sequence[Item]
    request: Request
    answer: Answer
    seconds: float

    @property
    def symbols(self) -> list[str]:
        """The assets it was made for."""
        return [item.symbol for item in self.items]


class Known(NamedTuple):
    """What is known of an asset before its answer is judged."""

    newest: datetime | None
    """The start of its newest stored bar."""
    now: datetime
    """By the database's clock."""


# --- what becomes of an item ------------------------------------------------------------------


class Finish(NamedTuple):
    """It is fresh."""


class Resume(NamedTuple):
    """A call brought a part; the next one goes on from there."""

    backfilled_to: datetime | None


class Verify(NamedTuple):
    """There was no data; the next call asks whether the ticker exists."""


class Skip(NamedTuple):
    """The key may not use the feed; another feed serves the asset."""

    reason: str


class Release(NamedTuple):
    """It waits in line again, and nothing is counted."""

    after_seconds: float = 0.0
    reason: str | None = None


class MoveBack(NamedTuple):
    """It waits behind those that are due already, and nothing is counted."""

    reason: str


class Strike(NamedTuple):
    """It was answered badly or not at all: it backs off."""

    error: str


class Fail(NamedTuple):
    """The asset itself cannot be refreshed: it backs off, and may be given up."""

    error: str
    verify_ticker: bool = False


End: TypeAlias = Finish | Resume | Verify | Skip | Release | MoveBack | Strike | Fail


class Price(NamedTuple):
    """The close of a stored bar is the asset's price."""

    start: datetime
    """Of the bar."""
    as_of: datetime


class Missing(NamedTuple):
    """What the key's plan turned out not to include."""

    capability: str
    symbols: Sequence[str] = ()
    """The assets that it is missing for; none stands for all."""


class Judgement(NamedTuple):
    """What an answer asks for."""

    ends: Sequence[tuple[Sequence[Item], End]]
    outcome: str = "ok"
    """The kind of error, for the history of calls."""
    error: str | None = None
    bars: Sequence[Bar] | None = None
    """To be stored, of the first item; None where there is nothing to store."""
    price: Price | None = None
    quotes: Sequence[tuple[Item, Quote]] = ()
    """To be stored as last prices."""
    missing: Sequence[Missing] = ()
    scope_changed: bool = False
    """Whether the key may do less than was thought, so that the run's scope is another one now."""
    told: Sequence[Progress] = ()
    not_in_plan: ProviderError | None = None
    """What the plan does not include for this asset, and maybe for every other."""
    hopeless: ProviderError | None = None
    """What every call of the run would bring again."""


# --- what every feed shares -------------------------------------------------------------------


def is_well(answer: Answer) -> bool:
    """Whether the answer shows that the provider is well: it brought bars or a price.

    So does a ticker that exists. Nothing at all may be what a provider in trouble says.
    """
    match answer:
        case BarsAnswer():
            return bool(answer.bars)
        case SnapshotAnswer():
            return bool(answer.quotes)
    return answer is True


def verified(fetch: Fetch, *, exists: bool, silent: Judgement) -> Judgement:
    """Judge the answer to whether a ticker exists; `silent` is what to do if it has no data."""
    [item] = fetch.items
    if not exists:
        error = (
            f"The provider knows no ticker {item.ticker}; correct its polygon_ticker in"
            " assets.toml."
        )
        return Judgement(
            [(fetch.items, Fail(error, verify_ticker=True))], TickerUnknown.kind, error
        )
    if item.attempts == 1:
        return silent
    # It was unknown, and now it is not.
    return Judgement([(fetch.items, Resume(backfilled_to=None))])


def refused(fetch: Fetch, error: ProviderError) -> Judgement | None:
    """Judge what no feed has to say anything about; None where the feed decides."""
    told = [PutBack(fetch.symbols, str(error))]
    kind, text = error.kind, str(error)
    match error:
        case NotSent():
            release = Release(queue.TRY_AGAIN_SECONDS, text)
            return Judgement([(fetch.items, release)], kind, text, told=told)
        case Unavailable():
            # A single one is reported as failed, with what the queue makes of it.
            many = len(fetch.items) > 1
            return Judgement([(fetch.items, Strike(text))], kind, text, told=told if many else ())
        case RateLimited():
            # As a rule this is the account's. But should one asset alone be answered so, it must
            # not be the first in line for ever.
            return Judgement([(fetch.items, MoveBack(text))], kind, text, told=told)
        case KeyRefused():
            return Judgement([(fetch.items, MoveBack(text))], kind, text, hopeless=error)
    return None


def failed(fetch: Fetch, error: ProviderError) -> Judgement:
    """Judge a refusal that is the asset's own."""
    return Judgement([(fetch.items, Fail(str(error)))], error.kind, str(error))


def quiet(fetch: Fetch) -> Judgement:
    """Judge an answer that brings nothing new to an asset whose ticker exists."""
    [item] = fetch.items
    told = Synced(item.symbol, item.feed, 0, None, None, fetch.seconds)
    return Judgement([(fetch.items, Finish())], told=[told])


def had_failed(item: Item) -> bool:
    """Whether it was reported that the asset fails, so that its recovery is worth a word."""
    return item.attempts > 1 or item.strikes >= queue.WORTH_A_WORD
