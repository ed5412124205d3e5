"""`asset-sync report`: the page for people."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.files import READABLE, write_output
from asset_sync.cli.options import Common, with_common_options
from asset_sync.cli.output import out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.database.private_files import user_directory
from asset_sync.errors import AssetSyncError

_PRIVATE = 0o600


@with_common_options
def report(
    options: Common,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write this file, in one step.", show_default=False
        ),
    ] = None,
    in_browser: Annotated[
        bool, typer.Option("--open", help="Show it in the browser; the file is yours alone.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="MINUTES",
            min=1,
            help="How often cron writes it: an older page turns red. Default: as often as the jobs"
            " run.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a page for people: what is wrong, calls, ages, history, each asset. One HTML file.

    Example: asset-sync report --output /var/www/html/asset-sync.html
    """
    if output is None and not in_browser and sys.stdout.isatty():
        raise typer.BadParameter(
            "the page is for a browser: --open shows it, --output FILE writes it."
        )
    settings = settings_for(options)
    from asset_sync.cli.page import draw  # noqa: PLC0415  # not for --help
    from asset_sync.ops.report import report_of  # noqa: PLC0415

    with database.session(settings.conninfo) as db:
        found = report_of(db, settings)
    interval = 60 * every if every else settings.batch.interval_seconds
    page = draw(found, None if in_browser and output is None else interval)
    if output is None and not in_browser:
        out_raw(page.rstrip())
        return
    path = (output or private_path("report.html")).absolute()
    write_output(path, page, mode=_PRIVATE if output is None else READABLE)
    if in_browser:
        show(path)


def private_path(name: str) -> Path:
    """Return the path of a page in a directory that only this user can enter.

    Raises AssetSyncError if there is no such place.
    """
    base = user_directory("XDG_STATE_HOME", ".local/state", os.environ)
    if base is None:
        raise AssetSyncError("The page has no place, since this user has no home: set HOME.")
    directory = base / "asset-sync"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise AssetSyncError(
            f"{directory} cannot be made ({error.strerror}): give a file with --output."
        ) from None
    return directory / name


def show(path: Path) -> None:
    """Open the page in the user's browser, and say where it is."""
    if webbrowser.open(path.as_uri()):
        out(f"The page is {path}; the browser shows it.")
    else:
        out(f"The page is {path}. No browser could be started here: open it in one.")
