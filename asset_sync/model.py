"""The types that every package uses: assets, their types and levels, and feeds."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self


class AssetType(StrEnum):
    """The kind of an asset, which decides in which of the provider's markets it trades."""

    FOREX = "forex"
    CRYPTO = "crypto"


class Level(StrEnum):
    """How important an asset is; the most important level comes first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Lane(StrEnum):
    """Which of the two commands makes a call; QUEUE leaves slots for the next priority run."""

    PRIORITY = "priority"
    QUEUE = "queue"


class Feed(str):
    """How an asset is fetched; the text is its name in the database and in JSON."""

    __slots__ = ("bulk", "rank")

    SNAPSHOT: ClassVar["Feed"]
    """The last quote and the day's figures; paid plans only."""

    BARS: ClassVar["Feed"]
    """Five-minute bars of one asset; every plan."""

    known: ClassVar[dict[str, "Feed"]] = {}
    """Every feed by its name."""

    rank: int
    """The order of several feeds of one asset in the line, the lowest first."""

    bulk: int
    """How many assets one call serves."""

    def __new__(cls, name: str, *, rank: int, bulk: int = 1) -> Self:
        """Return a feed, and register it in `known`."""
        feed = super().__new__(cls, name)
        feed.rank, feed.bulk = rank, bulk
        cls.known[name] = feed
        return feed

    @classmethod
    def named(cls, name: str) -> "Feed":
        """Return the feed of that name, as the database has it.

        A newer version on another host may use a feed that this version does not know. Commands
        show such a feed, but no run of this version claims its items.
        """
        feed = cls.known.get(name)
        if feed is None:
            feed = str.__new__(cls, name)
            feed.rank, feed.bulk = 0, 1
        return feed

    def __reduce__(self) -> tuple[Callable[[str], "Feed"], tuple[str]]:
        # `dataclasses.asdict` makes copies; a copy must be the same feed.
        return self.named, (str(self),)


# `/v3/snapshot` takes 250 tickers in one call (its API page).
Feed.SNAPSHOT = Feed("snapshot", rank=1, bulk=250)
Feed.BARS = Feed("bars", rank=2)


@dataclass(frozen=True, slots=True)
class Asset:
    """One asset to keep fresh, as the settings file names it."""

    symbol: str
    """The user's name for it: `EURUSD`."""

    ticker: str
    """The provider's name for it: `C:EURUSD`."""

    asset_type: AssetType
    name: str
    level: Level
    position: int
    """The order among critical assets, 1 first; 0 for the others, whose order comes from aging."""

    update_frequency_seconds: int
    hours: str | tuple[str, ...] | None = None
    """When it trades, as the settings say it: a name or lines; None means as its market does.

    `provider.current.hours_of` makes the `Hours` of it.
    """
