"""Shows `history fill` while it works: a progress bar on a terminal, a line per call elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asset_sync.cli.format import counted, duration
from asset_sync.cli.log import Log, failure, sentence
from asset_sync.cli.sync import exit_code_of
from asset_sync.database import Connection
from asset_sync.errors import ExitCode
from asset_sync.ops import history
from asset_sync.settings import Settings
from asset_sync.spans import Span
from asset_sync.sync import loop
from asset_sync.sync.progress import Calling, Failed, Filled, Listener, Progress, Started, Waiting
from asset_sync.sync.report import Ended, Report


def fill_and_watch(
    log: Log, db: Connection, settings: Settings, symbols: Sequence[str], only: Span | None
) -> tuple[ExitCode, str, str]:
    """Fill, and show it; return the exit code, the summary and what went wrong."""
    calls = history.calls_left(db, settings, symbols, only)
    with _watching(log, calls) as listener:
        report = loop.fill(db, settings, symbols, only=only, tell=listener)
    return exit_code_of(report), _summary(report), report.message


@contextmanager
def _watching(log: Log, calls: int) -> Iterator[Listener]:
    if not log.on_screen:
        yield log.hear
        return
    with _bar(calls) as draw:

        def listen(progress: Progress) -> None:
            log.note(progress)
            draw(progress)

        yield listen


@contextmanager
def _bar(calls: int) -> Iterator[Listener]:
    """Draw a bar with calls, bars and the time to go; problems stand above it."""
    from rich.console import Console  # noqa: PLC0415  # takes 25 ms
    from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    columns = [
        BarColumn(bar_width=16),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} calls  {task.fields[bars]:,} bars"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[now]}"),
    ]
    console = Console(stderr=True, highlight=False)
    screen = Bars(*columns, console=console, transient=True)
    task = screen.add_task("", total=calls, bars=0, left="", now="")
    shown = screen.tasks[0]

    def listen(progress: Progress) -> None:
        match progress:
            case Waiting(_, seconds):
                screen.update(task, now=f"waiting {duration(seconds)}")
            case Calling(symbols):
                total = max(shown.total or 0, shown.completed + 1)
                screen.update(task, total=total, now=symbols[0])
            case Filled():
                screen.update(
                    task,
                    advance=1,
                    total=max(shown.total or 0, shown.completed + 1),
                    bars=shown.fields["bars"] + progress.bars_written,
                )
            case Failed():
                console.print(failure(progress), style="red")
            case Started():
                pass
            case _:
                console.print(sentence(progress), style="yellow")
        if shown.completed and shown.total and shown.elapsed:
            left = shown.elapsed / shown.completed * (shown.total - shown.completed)
            screen.update(task, left=f"{duration(left)} to go")

    with screen:
        yield listen


def _summary(report: Report) -> str:
    """Return the run in one line."""
    calls, bars = counted(report.api_calls_used, "call"), counted(report.bars_written, "bar")
    failed = f", {len(report.failed)} failed" if report.failed else ""
    why = _WHY[report.reason_ended]
    if report.failed and report.reason_ended in {Ended.DONE, Ended.NOTHING_DUE}:
        why = "What failed is asked again later."
    return f"history: {calls}, {bars} written{failed}. {why}"


_WHY = {
    Ended.NOTHING_DUE: "Nothing was missing that can be asked now.",
    Ended.DONE: "Nothing more is to be asked now.",
    Ended.TIME: "The time is up; start it again.",
    Ended.KEY_REFUSED: "The API refuses the key.",
    Ended.PLAN_REFUSED: "The API refuses the plan.",
    Ended.UNAVAILABLE: "The API does not answer; start it again later.",
}
