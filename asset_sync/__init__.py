"""Keeps market data fresh in PostgreSQL under a hard API limit.

For other programs, these names are public; all others may change with any version:

- `read` returns bars, as `Bars`
- `listen` yields each new price, `last_price` returns the stored one, as `Price`
- `AssetSyncError` is the base of all errors; `ReadingError`, `AsOfError` and `DatabaseError` are
  three of them
"""

TYPE_CHECKING = False  # as in `typing`, whose import would take ten times as long as this one
if TYPE_CHECKING:
    from asset_sync.reading import (
        AsOfError,
        AssetSyncError,
        Bars,
        DatabaseError,
        Moment,
        Price,
        ReadingError,
        last_price,
        listen,
        read,
    )

__version__ = "0.1.0"

__all__ = [
    "AsOfError",
    "AssetSyncError",
    "Bars",
    "DatabaseError",
    "Moment",
    "Price",
    "ReadingError",
    "__version__",
    "last_price",
    "listen",
    "read",
]


def __getattr__(name: str) -> object:
    """Import what is public when it is first used: the command line never needs it."""
    if name not in __all__:
        raise AttributeError(f"module 'asset_sync' has no attribute {name!r}")
    from asset_sync import reading  # noqa: PLC0415  # takes 50 ms

    return getattr(reading, name)


def __dir__() -> list[str]:
    """Return what is public, for a notebook that completes names."""
    return __all__
