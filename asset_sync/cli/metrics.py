"""`asset-sync metrics`."""

from pathlib import Path
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.files import write_output
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
        write_output(output, text)
