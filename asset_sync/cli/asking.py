"""Calls the provider outside of a run, for `assets import` and `assets check`."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.log import Log, sentence
from asset_sync.cli.options import Common, finite
from asset_sync.cli.output import err
from asset_sync.cli.watch import watching
from asset_sync.database import Connection
from asset_sync.provider.errors import ProviderError
from asset_sync.settings import Settings
from asset_sync.sync.ask import NoCallLeftError, Questions
from asset_sync.sync.progress import Listener, Progress, Waiting

MaxRuntime = Annotated[
    float | None,
    typer.Option(
        "--max-runtime",
        metavar="SECONDS",
        min=0.1,
        callback=finite,
        help="Wait for calls no longer than this. Default: no limit.",
        show_default=False,
    ),
]


@contextmanager
def asking(
    options: Common,
    settings: Settings,
    max_runtime: float | None,
    words: Callable[[Progress], Progress] = lambda progress: progress,
) -> Iterator[tuple[Connection, Questions]]:
    """Yield the database and the `Questions`; an error of the provider ends the command here."""
    patience = math.inf if max_runtime is None else max_runtime
    try:
        with (
            database.session(settings.conninfo) as db,
            _watching(options, words) as tell,
            Questions(db, settings, within_seconds=patience, tell=tell) as questions,
        ):
            yield db, questions
    except NoCallLeftError as error:
        err(f"asset-sync: {error} Nothing was written.")
        raise typer.Exit(error.exit_code) from None
    except ProviderError as error:
        err(f"asset-sync: {error.reason} Nothing was written.")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err("Interrupted; nothing was written.")
        raise


@contextmanager
def _watching(options: Common, words: Callable[[Progress], Progress]) -> Iterator[Listener]:
    """Show waits as a run does; if stderr is no terminal, each is printed once."""
    last_seconds = 0.0

    def listen(progress: Progress) -> None:
        nonlocal last_seconds
        progress = words(progress)
        if isinstance(progress, Waiting):
            if progress.seconds > last_seconds and not (sys.stderr.isatty() or options.verbose):
                options.say(sentence(progress))
            last_seconds = progress.seconds
        tell(progress)

    with watching(Log(options, "assets")) as tell:
        yield listen
