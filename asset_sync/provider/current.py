"""The provider in use; only this module imports its markets, plans, endpoints and client."""

from asset_sync.provider.polygon import endpoints
from asset_sync.provider.polygon.markets import MARKETS
from asset_sync.provider.polygon.plans import PLANS
from asset_sync.provider.protocol import Provider
from asset_sync.secret import Secret

__all__ = ["CODE", "MARKETS", "PLANS", "connect", "endpoints"]

CODE = "polygon"
"""The provider's row in `data_sources.api_providers`, and the source of its prices."""


def connect(
    *,
    base_url: str,
    api_key: Secret,
    connect_timeout_seconds: float,
    read_timeout_seconds: float,
    call_timeout_seconds: float,
) -> Provider:
    """Return the client. Importing it takes 150 ms, so this waits for the first call."""
    from asset_sync.provider.polygon.client import Polygon  # noqa: PLC0415

    return Polygon(
        base_url=base_url,
        api_key=api_key,
        connect_timeout_seconds=connect_timeout_seconds,
        read_timeout_seconds=read_timeout_seconds,
        call_timeout_seconds=call_timeout_seconds,
    )
