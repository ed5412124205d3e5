"""The provider: one session, one error family, plain dataclasses out.

`Polygon` is the session, `ProviderError` the family, and `BarsAnswer`, `SnapshotAnswer` and
`TickersAnswer` are what comes out. The facts about the API (Polygon.io, now Massive.com) are those
of its specification at https://polygon.io/docs and of recorded answers.
"""

from asset_sync.provider.polygon._client import (
    MAX_SNAPSHOT_TICKERS,
    Polygon,
    bars_endpoint,
    reference_endpoint,
    snapshot_endpoint,
    tickers_endpoint,
)
from asset_sync.provider.polygon._errors import (
    Fault,
    FeedDenied,
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    Rejected,
    TickerUnknown,
    TodayDenied,
    Unanswered,
    Unavailable,
    Unreadable,
)
from asset_sync.provider.polygon._parse import (
    Bar,
    BarsAnswer,
    Flaw,
    LeftOut,
    Listed,
    Quote,
    SnapshotAnswer,
    TickersAnswer,
)

__all__ = [
    "MAX_SNAPSHOT_TICKERS",
    "Bar",
    "BarsAnswer",
    "Fault",
    "FeedDenied",
    "Flaw",
    "KeyRefused",
    "LeftOut",
    "Listed",
    "NotSent",
    "Polygon",
    "ProviderError",
    "Quote",
    "RateLimited",
    "Rejected",
    "SnapshotAnswer",
    "TickerUnknown",
    "TickersAnswer",
    "TodayDenied",
    "Unanswered",
    "Unavailable",
    "Unreadable",
    "bars_endpoint",
    "reference_endpoint",
    "snapshot_endpoint",
    "tickers_endpoint",
]
