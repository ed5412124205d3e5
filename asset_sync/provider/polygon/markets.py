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


MARKETS: Mapping[AssetType, Market] = MappingProxyType(
    {
        AssetType.FOREX: Market("C:", "fx", timedelta(days=40), 2, "EURUSD"),
        AssetType.CRYPTO: Market("X:", "crypto", timedelta(days=34), 1, "BTCUSD"),
    }
)
