"""Showing a run while it works: a live line on a terminal, a line per event elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asset_sync.cli.options import Common, complain
from asset_sync.progress import (
    Calling,
    Failed,
    Listener,
    Progress,
    PutBack,
    Synced,
    Waiting,
    Warned,
)

if TYPE_CHECKING:
    from rich.text import Text

    from asset_sync.slots import Budget


@contextmanager
def watching(options: Common) -> Iterator[Listener]:
    """Give the listener that suits where stderr goes and how much is to be said."""
    if sys.stderr.isatty() and not options.quiet:
        with _live() as listener:
            yield listener
    else:
        yield lambda progress: _log(options, progress)


def _log(options: Common, progress: Progress) -> None:
    """Say one line per event: what went wrong always, the rest unless asked to be quiet."""
    match progress:
        case Failed() | Warned():
            complain(sentence(progress))
        case Synced() | PutBack():
            options.say(sentence(progress))
        case Waiting() | Calling():
            if options.verbose:
                complain(sentence(progress))


def sentence(progress: Progress) -> str:
    """Return an event as one line of text."""
    from asset_sync.cli.show import duration  # noqa: PLC0415

    match progress:
        case Synced():
            text = _synced(progress)
        case Failed():
            text = f"failed: {progress.error}"
        case PutBack():
            text = f"put back {_names(progress.symbols)}: {progress.reason}"
        case Warned():
            text = f"warning: {progress.text}"
        case Waiting():
            text = f"waiting {duration(progress.seconds)} for {progress.reason}"
        case Calling():
            text = f"asking for {_names(progress.symbols)} ({progress.feed})"
    return text


def _synced(synced: Synced) -> str:
    from asset_sync.cli.show import duration, price  # noqa: PLC0415

    parts = ["a quote" if synced.feed == "snapshot" else f"{synced.bars_written:,} new bars"]
    if synced.last_price is not None:
        parts.append(f"last price {price(synced.last_price)}")
    parts.append("more to come" if synced.more else duration(synced.seconds))
    return f"{synced.symbol}: {', '.join(parts)}"


def _names(symbols: Sequence[str]) -> str:
    shown = ", ".join(symbols[:3])
    return shown if len(symbols) <= 3 else f"{shown} and {len(symbols) - 3} more"  # noqa: PLR2004


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
        else:
            live.console.print(_marked(progress))

    try:
        yield listen
    finally:
        live.stop()


def _marked(progress: Progress) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    match progress:
        case Synced():
            mark, style = "✓", "green"
        case Failed():
            mark, style = "✗", "red"
        case _:
            mark, style = "!", "yellow"
    return Text.assemble((f"{mark} ", style), sentence(progress).removeprefix("failed: "))


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

        from asset_sync.cli.show import duration, gauge  # noqa: PLC0415

        elapsed = time.monotonic() - self._since
        match self._progress:
            case Waiting(reason, seconds):
                now = f"waiting for {reason}: {duration(max(0.0, seconds - elapsed))}"
            case Calling(symbols, feed):
                now = f"asking for {_names(symbols)} ({feed}): {duration(elapsed)}"
            case _:
                now = "looking at the queue"
        budget = f"  {gauge(self._budget)}" if self._budget else ""
        return Text.assemble(
            "  ", (now, "cyan"), (budget, "dim"), no_wrap=True, overflow="ellipsis"
        )
