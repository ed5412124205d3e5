"""What a reader of bars may have got wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

from asset_sync.errors import AssetSyncError


class ReadingError(AssetSyncError):
    """What was asked for does not exist, or a package to read it with is missing."""


@contextmanager
def needs_the_extra() -> Iterator[None]:
    """Say how to install what a block imports, if it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ReadingError(
            f"Bars are read with numpy and arro3, and {error.name} is not installed: "
            "pip install 'asset-sync[read]'"
        ) from None
