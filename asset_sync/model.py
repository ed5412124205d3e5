"""What is kept fresh, and the words in which the other rooms speak of it."""

from dataclasses import dataclass
from enum import StrEnum


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


class Feed(StrEnum):
    """How an asset is fetched."""

    SNAPSHOT = "snapshot"
    """The last quote and the day's figures, up to 250 assets in one call; paid plans only."""

    BARS = "bars"
    """Five-minute bars of one asset; every plan."""


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
