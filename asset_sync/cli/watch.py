"""Showing a run while it works: a live line on a terminal, a line per event elsewhere."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from asset_sync.cli.log import Log, failure, names, sentence
from asset_sync.sync.progress import (
    Calling,
    Failed,
    Listener,
    Progress,
    Recovered,
    Started,
    Synced,
    Waiting,
    Warned,
)

if TYPE_CHECKING:
    from rich.text import Text

    from asset_sync.budget.slots import Budget


@contextmanager
def watching(log: Log) -> Iterator[Listener]:
    """Give the listener that suits where stderr goes and how much is to be said."""
    if not log.on_screen:
        yield log.hear
        return
    with _live() as draw:

        def listen(progress: Progress) -> None:
            log.note(progress)
            draw(progress)

        yield listen


@contextmanager
def _live() -> Iterator[Listener]:
    """Keep one line alive below the lines of what has happened, from the first event on."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    line = _Line()
    console = Console(stderr=True, highlight=False)
    live = Live(line, console=console, refresh_per_second=4, transient=True)

    def listen(progress: Progress) -> None:
        if isinstance(progress, Waiting | Calling):
            line.turn_to(progress)
            live.start(refresh=True)  # only the first time does it do anything
            live.refresh()
        elif not isinstance(progress, Started):
            live.console.print(_marked(progress))

    try:
        yield listen
    finally:
        live.stop()


def _marked(progress: Progress) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    text = failure(progress) if isinstance(progress, Failed) else sentence(progress)
    match progress:
        case Synced():
            mark, style = "✓", "green"
        case Failed():
            mark, style = "✗", "red"
        case Warned() | Recovered():
            mark, style = f"! {datetime.now(UTC):%H:%M:%S} UTC", "yellow"
        case _:
            mark, style = "!", "yellow"
    return Text.assemble((f"{mark} ", style), text)


class _Line:
    """What the run does now, for how long still, and how the budget stands."""

    def __init__(self) -> None:
        self._progress: Waiting | Calling | None = None
        self._since = time.monotonic()
        self._budget: Budget | None = None

    def turn_to(self, progress: Waiting | Calling) -> None:
        """Show this from now on."""
        self._progress = progress
        self._since = time.monotonic()
        self._budget = progress.budget or self._budget

    def __rich__(self) -> "Text":
        from rich.text import Text  # noqa: PLC0415

        from asset_sync.cli.format import duration  # noqa: PLC0415

        elapsed = time.monotonic() - self._since
        match self._progress:
            case Waiting(reason, seconds):
                now = f"waiting for {reason}: {duration(max(0.0, seconds - elapsed))}"
            case Calling(symbols, feed):
                now = f"asking for {names(symbols)} ({feed}): {duration(elapsed)}"
            case _:
                now = "looking at the queue"
        room = shutil.get_terminal_size().columns - len(f"  {now}  ")
        budget = f"  {_budget(self._budget, room)}" if self._budget else ""
        return Text.assemble(
            "  ", (now, "cyan"), (budget, "dim"), no_wrap=True, overflow="ellipsis"
        )


def _budget(budget: "Budget", room: int) -> str:
    """Return the budget in as many words as there is room for; what explains a wait comes first."""
    from asset_sync.cli.format import gauge, kept_slots, slots_in_words  # noqa: PLC0415

    most = (gauge(budget), slots_in_words(budget))
    least = kept_slots(budget) if budget.kept else most[-1]
    return next((text for text in most if len(text) <= room), least)
