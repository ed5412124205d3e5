"""The live line of a run on a terminal."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

from asset_sync.budget.slots import Budget
from asset_sync.cli.format import duration, gauge, kept_slots, slots_in_words
from asset_sync.cli.log import failure, names, sentence
from asset_sync.sync.progress import (
    Calling,
    Failed,
    Filled,
    Listener,
    Noted,
    Progress,
    Recovered,
    Started,
    Synced,
    Waiting,
    Warned,
)


@contextmanager
def live() -> Iterator[Listener]:
    """Keep one line up to date below the lines of past events, from the first event on."""
    line = _Line()
    console = Console(stderr=True, highlight=False)
    screen = Live(line, console=console, refresh_per_second=4, transient=True)

    def listen(progress: Progress) -> None:
        if isinstance(progress, Waiting | Calling):
            line.turn_to(progress)
            screen.start(refresh=True)  # does something only the first time
            screen.refresh()
        elif not isinstance(progress, Started):
            screen.console.print(_marked(progress))

    try:
        yield listen
    finally:
        screen.stop()


def _marked(progress: Progress) -> Text:
    text = failure(progress) if isinstance(progress, Failed) else sentence(progress)
    match progress:
        case Synced() | Filled():
            mark, style = "✓", "green"
        case Failed():
            mark, style = "✗", "red"
        case Noted() | Warned() | Recovered():
            mark, style = f"! {datetime.now(UTC):%H:%M:%S} UTC", "yellow"
        case _:
            mark, style = "!", "yellow"
    return Text.assemble((f"{mark} ", style), text)


class _Line:
    """What the run does now, how much longer it will, and the state of the budget."""

    def __init__(self) -> None:
        self._progress: Waiting | Calling | None = None
        self._since = time.monotonic()
        self._budget: Budget | None = None

    def turn_to(self, progress: Waiting | Calling) -> None:
        """Show this from now on."""
        self._progress = progress
        self._since = time.monotonic()
        self._budget = progress.budget or self._budget

    def __rich__(self) -> Text:
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


def _budget(budget: Budget, room: int) -> str:
    """Return the budget in the longest form that fits, or else what explains a wait."""
    most = (gauge(budget), slots_in_words(budget))
    least = kept_slots(budget) if budget.kept else most[-1]
    return next((text for text in most if len(text) <= room), least)
