"""Shows a run while it works: a live line on a terminal, a line per event elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from asset_sync.cli.log import Log
from asset_sync.sync.progress import Listener, Progress


@contextmanager
def watching(log: Log) -> Iterator[Listener]:
    """Yield the listener for the live line, or the one that prints a line per event."""
    if not log.on_screen:
        yield log.hear
        return
    from asset_sync.cli.live import live  # noqa: PLC0415  # rich takes 25 ms

    with live() as draw:

        def listen(progress: Progress) -> None:
            log.note(progress)
            draw(progress)

        yield listen
