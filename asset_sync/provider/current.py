"""The provider in use; only this module imports its markets, plans, endpoints and client."""

from asset_sync.hours import Hours, hours_from
from asset_sync.model import Asset
from asset_sync.provider.access import Access
from asset_sync.provider.polygon import endpoints
from asset_sync.provider.polygon.markets import MARKETS
from asset_sync.provider.polygon.plans import PLANS
from asset_sync.provider.protocol import Provider

__all__ = ["CODE", "MARKETS", "PLANS", "connect", "endpoints", "hours_name", "hours_of"]

CODE = "polygon"
"""The provider's row in `data_sources.api_providers`, and the source of its prices."""


def connect(access: Access) -> Provider:
    """Return the client. Importing it takes 150 ms, so it is imported here and not at the start."""
    from asset_sync.provider.polygon.client import Polygon  # noqa: PLC0415

    return Polygon(access)


def hours_of(asset: Asset) -> Hours:
    """Return when an asset trades: as the settings say, or else as its market does."""
    return hours_from(_hours(asset))


def hours_name(asset: Asset) -> str:
    """Return the name of an asset's hours, or the lines of its own ones."""
    hours = _hours(asset)
    return hours if isinstance(hours, str) else "; ".join(hours)


def _hours(asset: Asset) -> str | tuple[str, ...]:
    return asset.hours or MARKETS[asset.asset_type].hours_of(asset.ticker)
