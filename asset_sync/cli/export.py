"""`asset-sync export`: bars as CSV, Parquet or Arrow, to stdout, into a file or a directory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated

import typer

from asset_sync import database
from asset_sync.cli.format import counted
from asset_sync.cli.log import names
from asset_sync.cli.options import Common, with_common_options
from asset_sync.cli.output import binary_stdout, err
from asset_sync.cli.settings import settings_for
from asset_sync.database import Connection
from asset_sync.errors import ExitCode
from asset_sync.reading.asked import all_symbols, check_symbols, moment_of
from asset_sync.reading.export import Directory, Format, Tell, part_of, whole_file, write
from asset_sync.store.bars_query import Every, Selection

_STDOUT = "-"


@with_common_options
def export(
    options: Common,
    symbols: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SYMBOL…]", help="Which assets.", show_default=False),
    ] = None,
    every_asset: Annotated[bool, typer.Option("--all", help="All assets of the database.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MOMENT",
            help="Bars that start at this moment (UTC) or later: 2025-01-31, 2025-01-31T14:30.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="MOMENT",
            help="Up to and including this day (UTC), or before this moment.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        Every,
        typer.Option("--every", help="How long a bar is; 1d is a day of UTC, 1d-ny of New York."),
    ] = Every.FIVE_MINUTES,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Default: what the file's name ends with, or csv.", show_default=False
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            metavar="FILE|DIR",
            help="A file, or a directory (it exists, or ends with /) for a file an asset.",
        ),
    ] = _STDOUT,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="Leave out bars that are not over, or of which a part is missing."
        ),
    ] = False,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            metavar="MOMENT",
            help="The bars as they were stored at this moment (UTC).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write bars as CSV, Parquet or Arrow.

    In a directory, an export that was interrupted continues, and with --as-of files that answer the
    same question are kept. Parquet and Arrow need asset-sync[read].

    Example: asset-sync export EURUSD --from 2025-01-01 --every 1h --output eurusd.parquet
    """
    if bool(symbols) == every_asset:
        raise typer.BadParameter("Name assets, or give --all.")
    if not output:
        raise typer.BadParameter("--output is empty: give a file, a directory or - for stdout.")
    form = _format_of(output, form)
    if output == _STDOUT and form is not Format.CSV and sys.stdout.isatty():
        raise typer.BadParameter(f"{form} is not for a terminal: give --output FILE.")
    asked = Selection(
        (),
        None if start is None else moment_of(start, "--from"),
        None if until is None else _end_of(until),
        every,
        None if as_of is None else moment_of(as_of, "--as-of"),
        complete,
    )
    if asked.start is not None and asked.until is not None and asked.start >= asked.until:
        raise typer.BadParameter("--from is not before --until.")
    try:
        with database.session(settings_for(options).conninfo) as db:
            chosen = all_symbols(db) if every_asset else check_symbols(db, symbols or ())
            job = _Job(options, db, replace(asked, symbols=tuple(chosen)), form)
            with _progress(options, len(chosen), output) as job.draw:
                job.run(output)
    except KeyboardInterrupt:
        err(f"asset-sync: interrupted; {_left_by_an_interrupt(output)}.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if job.summary:
        options.confirm(job.summary)
    without = [symbol for symbol, bars in job.bars.items() if not bars]
    if without:
        err(f"No bars there: {names(without)}.")
    raise typer.Exit(ExitCode.SOME_FAILED if without and not every_asset else ExitCode.DONE)


class _NothingError(Exception):
    """An asset has no bars, so that no file is made."""


class _Job:
    """One export, and how many bars of each asset it has written."""

    def __init__(self, options: Common, db: Connection, asked: Selection, form: Format) -> None:
        self._options = options
        self._db = db
        self._asked = asked
        self._form = form
        self.bars = dict.fromkeys(asked.symbols, 0)
        self.draw: Tell
        self.summary = ""

    def run(self, output: str) -> None:
        """Write everything."""
        if output == _STDOUT:
            with binary_stdout() as file:
                self._write(self._asked, file)
        elif _is_directory(output):
            self._to_directory(Path(output))
        else:
            with whole_file(Path(output)) as file:
                self._write(self._asked, file)
            self.summary = f"{output}: {self._count()}."

    def _count(self) -> str:
        return counted(sum(self.bars.values()), "bar")

    def _to_directory(self, path: Path) -> None:
        directory = Directory(self._db, path, self._asked, self._form)
        whole = [symbol for symbol in self._asked.symbols if directory.is_whole(symbol)]
        if whole:
            self._options.say(
                f"{path}: {len(whole)} of {len(self._asked.symbols)} files answer the same question"
                " already and stay. Remove one to have it made again."
            )
        for symbol in whole:
            del self.bars[symbol]
        for symbol in [*self.bars]:
            file = directory.file_of(symbol)
            if part_of(file).exists():
                self._options.say(f"{file} was interrupted and is made again.")
            try:
                self._to_file(file, directory.selection_of(symbol))
            except _NothingError:
                file.unlink(missing_ok=True)  # it would answer another question
            else:
                directory.note(symbol)
        directory.finish()
        if others := directory.others():
            self._options.say(f"{path} also has files of another export: {names(others)}.")
        made = sum(1 for bars in self.bars.values() if bars)
        self.summary = f"{path}: {self._count()} in {counted(made, 'file')}."

    def _to_file(self, path: Path, selection: Selection) -> None:
        with whole_file(path) as file:
            if not self._write(selection, file):
                raise _NothingError

    def _write(self, selection: Selection, file: IO[bytes]) -> int:
        def tell(symbol: str, bars: int) -> None:
            self.bars[symbol] += bars
            self.draw(symbol, bars)

        return write(self._db, selection, self._form, file, tell)


@contextmanager
def _progress(options: Common, assets: int, output: str) -> Iterator[Tell]:
    """Draw a bar on a terminal, unless the bars go there."""
    shown = sys.stderr.isatty() and not options.quiet
    if not shown or (output == _STDOUT and sys.stdout.isatty()):
        yield lambda _symbol, _bars: None
        return
    from rich.console import Console  # noqa: PLC0415  # takes 25 ms
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    columns = [
        BarColumn(bar_width=16),
        TextColumn("{task.fields[done]}/{task.fields[assets]} assets"),
        TextColumn("{task.fields[bars]}  {task.description}", markup=False),
    ]
    console = Console(stderr=True, highlight=False)
    screen = Progress(*columns, console=console, transient=True, redirect_stdout=False)
    # Of one asset nobody knows how many bars there are: the bar only moves.
    total = assets if assets > 1 else None
    task = screen.add_task("", total=total, bars=counted(0, "bar"), done=0, assets=assets)
    seen: dict[str, None] = {}
    written = 0

    def tell(symbol: str, bars: int) -> None:
        nonlocal written
        written += bars
        seen[symbol] = None
        done = len(seen) - 1
        screen.update(
            task, completed=done, done=done, bars=counted(written, "bar"), description=symbol
        )

    with screen:
        yield tell


def _left_by_an_interrupt(output: str) -> str:
    if _is_directory(output):
        return "whole files stay, and the same command makes the others"
    path = Path(output)
    if output == _STDOUT or (path.exists() and not path.is_file()):
        return "not all bars were written"
    return "no file was made"


def _is_directory(output: str) -> bool:
    return output.endswith("/") or Path(output).is_dir()


def _format_of(output: str, form: Format | None) -> Format:
    """Return the format that was asked for, or that the file's name ends with."""
    if form is not None or output == _STDOUT or _is_directory(output):
        return form or Format.CSV
    try:
        return Format(Path(output).suffix.removeprefix("."))
    except ValueError:
        endings = ", ".join(f".{one}" for one in Format)
        raise typer.BadParameter(f"{output} ends with none of {endings}: give --format.") from None


def _end_of(text: str) -> datetime:
    """Return the moment; of a day it is the end, as for `history fill --until`."""
    moment = moment_of(text, "--until")
    try:
        date.fromisoformat(text)
    except ValueError:
        return moment
    day = timedelta(days=1)
    # After the last day that Python knows there is no moment.
    return min(moment, datetime.max.replace(tzinfo=UTC) - day) + day
