"""Path and query of each call, without the client: a dry run shows them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from asset_sync.model import AssetType
from asset_sync.provider.polygon.markets import MARKETS

REFERENCE_PATH = "/v3/reference/tickers"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


MAX_BASE_BARS = 50_000
"""Of how many minute bars one answer is made at most (API page `aggregates`)."""

MAX_SNAPSHOT_TICKERS = 250
"""What `/v3/snapshot` takes in one call (its API page)."""


def bars(ticker: str, start: datetime, end: datetime, *, by_minute: bool = False) -> str:
    """Return path and query for five-minute bars, or those of a minute; both ends are included.

    `limit` is the API's maximum; it counts the minute bars from which the answer is made.
    """
    length = 1 if by_minute else 5
    return (
        f"/v2/aggs/ticker/{_quoted(ticker)}/range/{length}/minute/{unix_ms(start)}/{unix_ms(end)}"
        f"?adjusted=true&sort=asc&limit={MAX_BASE_BARS}"
    )


def snapshot(tickers: Sequence[str]) -> str:
    """Return path and query for the snapshot; without `limit` the API sends ten rows.

    Raises ValueError for no ticker (the API would choose some) and for more than 250.
    """
    if not 1 <= len(tickers) <= MAX_SNAPSHOT_TICKERS:
        raise ValueError(
            f"a snapshot takes 1 to {MAX_SNAPSHOT_TICKERS} tickers, not {len(tickers)}"
        )
    named = ",".join(_quoted(ticker) for ticker in tickers)
    return f"/v3/snapshot?ticker.any_of={named}&limit={MAX_SNAPSHOT_TICKERS}"


def reference(ticker: str) -> str:
    """Return the path of the API's reference entry of a ticker."""
    return f"{REFERENCE_PATH}/{_quoted(ticker)}"


def tickers(asset_type: AssetType, search: str = "") -> str:
    """Return path and query for the first page of a market's active tickers.

    The API searches tickers and names for `search`. A page holds the API's maximum, 1000; without
    `limit` it would hold 100.
    """
    searched = f"&search={quote(search, safe='', errors='replace')}" if search else ""
    return (
        f"{REFERENCE_PATH}?market={MARKETS[asset_type].api_name}&active=true{searched}&limit=1000"
    )


def _quoted(ticker: str) -> str:
    return quote(ticker, safe=":")


def unix_ms(moment: datetime) -> int:
    """Return an aware time in milliseconds since 1970, exactly (floats would round)."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)
