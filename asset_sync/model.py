"""What is kept fresh, and the words in which the other rooms speak of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self


class AssetType(StrEnum):
    """What kind of thing it is, which decides in which of the provider's markets it trades."""

    FOREX = "forex"
    CRYPTO = "crypto"


class Level(StrEnum):
    """How much an asset matters; members are declared from first to last served."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Feed(str):
    """How an asset is fetched; the text is its name, as the database and JSON have it."""

    __slots__ = ("bulk", "rank")

    SNAPSHOT: ClassVar["Feed"]
    """The last quote and the day's figures; paid plans only."""

    BARS: ClassVar["Feed"]
    """Five-minute bars of one asset; every plan."""

    known: ClassVar[dict[str, "Feed"]] = {}
    """Every feed by its name."""

    rank: int
    """Its place where several feeds of an asset stand in line together, the lowest first."""

    bulk: int
    """How many assets one call serves."""

    def __new__(cls, name: str, *, rank: int, bulk: int = 1) -> Self:
        """Return a feed, which is known from now on."""
        feed = super().__new__(cls, name)
        feed.rank, feed.bulk = rank, bulk
        cls.known[name] = feed
        return feed

    def __reduce__(self) -> tuple[Callable[[str], "Feed"], tuple[str]]:
        # A copy is the same feed: dataclasses.asdict makes copies.
        return self.known.__getitem__, (str(self),)


# `/v3/snapshot` takes 250 tickers in one call (its API page).
Feed.SNAPSHOT = Feed("snapshot", rank=1, bulk=250)
Feed.BARS = Feed("bars", rank=2)


@dataclass(frozen=True, slots=True)
class Asset:
    """One thing to keep fresh, as the settings file names it."""

    symbol: str
    """Ours: `EURUSD`."""

    ticker: str
    """The provider's: `C:EURUSD`."""

    asset_type: AssetType
    name: str
    level: Level
    position: int
    """The order among critical assets, 1 first; 0 for the others, which age instead."""

    update_frequency_seconds: int
