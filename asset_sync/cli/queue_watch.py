"""`asset-sync queue status --watch`."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from rich.live import Live
from rich.text import Text

from asset_sync.cli.format import duration, red
from asset_sync.cli.output import wrapped
from asset_sync.cli.queue_status import look, text
from asset_sync.database import DatabaseError, session
from asset_sync.settings import Settings

_WATCH_SECONDS = 1.0


def keep_on_screen(settings: Settings) -> None:
    """Show the status every second, until Ctrl-C, which leaves the terminal as it was."""
    with suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as screen:
        for shown in _again_and_again(settings):
            screen.update(Text.from_ansi(shown, no_wrap=True), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _again_and_again(settings: Settings) -> Iterator[str]:
    """Yield the status for ever; while the database is away, the last one and its time.

    Raises DatabaseError if the database was never there.
    """
    last, since = "", None
    while True:
        try:
            with session(settings.conninfo) as db:
                while True:
                    last, since = text(look(db, settings)), None
                    yield last
        except DatabaseError as error:
            if not last:
                raise
            since = since or datetime.now(UTC)
            yield f"{_away(error, since)}\n\n{last}"


def _away(error: DatabaseError, since: datetime) -> str:
    seconds = (datetime.now(UTC) - since).total_seconds()
    return red(
        wrapped(
            f"{since:%H:%M:%S} UTC, {duration(seconds)} ago: {error} Trying again; the status"
            " below is older.",
            sys.stdout,
        )
    )
