"""The provider's markets: everything that differs by asset type, in one table."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple

from asset_sync.model import AssetType


class Market(NamedTuple):
    """What the provider has for one type of assets."""

    prefix: str
    """The prefix of its tickers (the API's ticker page)."""

    api_name: str
    """The market's name in the API's parameters."""

    window: timedelta
    """How much history one call of bars covers.

    The API makes an answer from at most 50,000 minute bars (API page `aggregates`). That is about
    34 days of crypto, which never closes, or seven weeks of forex.
    """

    pages: int
    """How many pages of 1000 its list of tickers has: about 1,200 for forex, 400 for crypto."""

    example: str
    """A symbol of this market."""

    hours: str
    """The name of its hours, see `asset_sync/hours.py`."""

    hours_by_base: Mapping[str, str] = MappingProxyType({})
    """The hours of the pairs that have others, by the first three letters of the pair."""

    def hours_of(self, ticker: str) -> str:
        """Return the name of a ticker's hours."""
        return self.hours_by_base.get(ticker.removeprefix(self.prefix)[:3], self.hours)


_METALS = MappingProxyType(dict.fromkeys(("XAU", "XAG", "XPT", "XPD"), "metals"))


MARKETS: Mapping[AssetType, Market] = MappingProxyType(
    {
        AssetType.FOREX: Market("C:", "fx", timedelta(days=40), 2, "EURUSD", "fx", _METALS),
        AssetType.CRYPTO: Market("X:", "crypto", timedelta(days=34), 1, "BTCUSD", "crypto"),
    }
)
