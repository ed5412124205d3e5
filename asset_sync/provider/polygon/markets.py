"""The provider's markets: all that is particular to the assets of one type, in one table."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple

from asset_sync.model import AssetType


class Market(NamedTuple):
    """What the provider has for one type of assets."""

    prefix: str
    """Of its tickers (the API's ticker page)."""

    api_name: str
    """In the API's parameters."""

    window: timedelta
    """How much history one call of bars reaches.

    It returns at most 50,000 base bars, which are minute bars whatever the size asked for (API page
    `aggregates`): about 34 days of crypto, which never sleeps, or seven weeks of forex.
    """

    pages: int
    """How many pages of 1000 the list of its tickers has; it names some 1,200 of forex, 400 of
    crypto."""

    example: str
    """A symbol of ours that it has."""


MARKETS: Mapping[AssetType, Market] = MappingProxyType(
    {
        AssetType.FOREX: Market("C:", "fx", timedelta(days=40), 2, "EURUSD"),
        AssetType.CRYPTO: Market("X:", "crypto", timedelta(days=34), 1, "BTCUSD"),
    }
)
