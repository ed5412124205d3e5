"""The data in a provider's answers: plain types, the same for every provider.

These are named tuples because a frozen data class costs 0.3 ms at every start.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from asset_sync.provider.errors import ProviderError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bar(NamedTuple):
    """Five minutes of an asset. A tuple, since one answer may hold 50,000 of them."""

    start_ms: int
    """Unix time in milliseconds; the bar ends 300,000 ms later."""

    open: float
    high: float
    low: float
    close: float

    volume: float
    """Units traded; for forex, whose bars are made of quotes, the number of quotes."""

    vwap: float | None
    trades: int | None
    """The number of trades; for forex again of quotes."""

    @property
    def start(self) -> datetime:
        """When it starts, in UTC."""
        return _EPOCH + timedelta(milliseconds=self.start_ms)


class Flaw(StrEnum):
    """Why a bar cannot be true. Bars are not compared with earlier bars: real prices do crash."""

    UNREADABLE = "a figure that is missing or no number"
    PRICE = "a price outside 1e-12 to 1e12"
    VOLUME = "a volume below 0 or above 1e18"
    HIGH_BELOW_LOW = "a high below the low"
    OPEN_OR_CLOSE = "an open or close outside low to high"
    OFF_THE_MARK = "a start that is not on a five-minute mark"
    OUT_OF_RANGE = "a start outside the time asked for"


class LeftOut(NamedTuple):
    """How many bars of an answer were left out for one reason."""

    flaw: Flaw
    number: int

    def __str__(self) -> str:
        return f"{self.number} with {self.flaw}"


class BarsAnswer(NamedTuple):
    """The bars of one ticker from one call."""

    ticker: str

    bars: tuple[Bar, ...]
    """Strictly ascending; where the provider sent a start twice, the later one."""

    complete: bool
    """False when the provider has more of the range: the next call starts at the last bar."""

    left_out: tuple[LeftOut, ...] = ()
    """How many bars of the answer are not in `bars`, because they cannot be true, by reason."""

    repeats: bool = False
    """Whether a start came twice: repetitions count against the limit, and may cut off the end."""


class Quote(NamedTuple):
    """The newest price of a ticker and its day so far; None for a figure not known yet."""

    ticker: str
    bid: float | None
    ask: float | None

    last_price: float
    """The last trade; for forex, which has none, halfway between bid and ask."""

    daily_open: float | None
    daily_high: float | None
    daily_low: float | None
    daily_close: float | None

    at: datetime
    """When the price was made, by the provider's clock, in UTC."""


class SnapshotAnswer(NamedTuple):
    """Quotes and errors by ticker; every requested ticker is in exactly one of the two."""

    quotes: Mapping[str, Quote]
    refused: Mapping[str, ProviderError]


class Listed(NamedTuple):
    """A ticker in the provider's list. A tuple, since one answer may hold 1000 of them."""

    ticker: str
    name: str
    """One printable line; the ticker if it has no name."""


class TickersAnswer(NamedTuple):
    """One page of the provider's list of tickers."""

    tickers: tuple[Listed, ...]

    next_page: str | None
    """Path and query of the next page, without host and key; None on the last page."""
