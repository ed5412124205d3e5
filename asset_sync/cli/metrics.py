"""`asset-sync metrics`."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.options import Common, with_common_options
from asset_sync.cli.output import out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.errors import AssetSyncError


@with_common_options
def metrics(
    options: Common,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write this file, in one step, for node_exporter's textfile collector.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the figures of `health`, runs and calls in Prometheus' text format.

    Example: asset-sync metrics --output /var/lib/node_exporter/asset_sync.prom
    """
    settings = settings_for(options)
    try:
        from asset_sync.ops.metrics import exposition  # noqa: PLC0415  # an extra
    except ImportError:
        raise AssetSyncError(
            'The Prometheus client is not installed: pip install "asset-sync[metrics]".'
        ) from None
    with database.session(settings.conninfo) as db:
        text = exposition(db, settings)
    if output is None:
        out_raw(text.rstrip())
    else:
        _write(output, text)


def _write(path: Path, text: str) -> None:
    """Write the file, or into the device or pipe of that name; a link is followed."""
    try:
        if not path.exists() or path.is_file():
            _replace(path.resolve(), text)
        else:
            with path.open("w") as file:
                file.write(text)
    except OSError as error:
        raise AssetSyncError(
            f"{path} cannot be written ({error.strerror}): give --output a file in a directory "
            "that this user may write to."
        ) from None


def _replace(path: Path, text: str) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # the collector is another user
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
