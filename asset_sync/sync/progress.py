"""The events that a run emits. The command line shows them; the loop prints nothing."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from asset_sync.budget.slots import Budget
from asset_sync.model import Feed
from asset_sync.spans import Span


class Started(NamedTuple):
    """The run has its number in the history; this is the first event."""

    run_id: int


class Waiting(NamedTuple):
    """The run sleeps, for a slot or for an asset to become due."""

    reason: str
    seconds: float
    budget: Budget | None = None


class Calling(NamedTuple):
    """A call is on its way."""

    symbols: Sequence[str]
    feed: Feed
    budget: Budget


class Synced(NamedTuple):
    """An asset was refreshed."""

    symbol: str
    feed: Feed
    bars_written: int
    last_price: float | None
    as_of: datetime | None
    seconds: float
    more: bool = False
    """Whether this was only a part of the data, and another call continues."""
    recovered: bool = False
    """Whether the asset was reported as failing before; a quiet run reports the recovery."""


class Filled(NamedTuple):
    """A range of an asset's past was asked and answered."""

    symbol: str
    settled: Span
    """The range; empty if the plan does not include it."""
    bars_written: int
    seconds: float


class Failed(NamedTuple):
    """An asset could not be refreshed."""

    symbol: str
    feed: Feed
    error: str
    is_news: bool = True
    """Whether it is the asset's first failure, its third or its last.

    A quiet run reports only these, so that cron does not mail the same failure in each cycle.
    """


class PutBack(NamedTuple):
    """A call failed, but not because of its assets; they wait in line again."""

    symbols: Sequence[str]
    reason: str


class Noted(NamedTuple):
    """Something that explains what the run does; nothing is wrong."""

    text: str


class Warned(NamedTuple):
    """Something the user should know; the run continues."""

    text: str


class Recovered(NamedTuple):
    """Something that a warning named works again."""

    what: str
    """Its name with the article: `the database`."""
    seconds: float
    """How long it failed."""


Progress: TypeAlias = (
    Started | Waiting | Calling | Synced | Filled | Failed | PutBack | Noted | Warned | Recovered
)
Listener: TypeAlias = Callable[[Progress], None]
