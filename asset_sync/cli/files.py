"""Writes the file that a command's --output names."""

import os
import tempfile
from pathlib import Path

from asset_sync.errors import AssetSyncError

READABLE = 0o644
"""The mode of a file that another user reads: a collector, a web server."""


def write_output(path: Path, text: str, *, mode: int = READABLE) -> None:
    """Write the file in one step, or into the device or pipe of that name; a link is followed.

    Raises AssetSyncError if it cannot be written.
    """
    try:
        if not path.exists() or path.is_file():
            _replace(path.resolve(), text, mode)
        else:
            with path.open("w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise AssetSyncError(
            f"{path} cannot be written ({error.strerror}): give --output a file in a directory "
            "that this user may write to."
        ) from None


def _replace(path: Path, text: str, mode: int) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
