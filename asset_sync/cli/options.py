"""What every command takes: the settings file, and how much is said."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO

import typer
from typer.core import TyperCommand

from asset_sync.errors import AssetSyncError

if TYPE_CHECKING:
    from asset_sync.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The settings file.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say also which files and which database.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for a program.")]


class LogFormat(StrEnum):
    """What a line of the log is."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes, before or after its name."""

    config: Path | None = None
    quiet: bool = False
    verbose: bool = False

    def confirm(self, text: str) -> None:
        """Print to stdout what was done, unless asked to be quiet."""
        if not self.quiet:
            answer(text)

    def say(self, text: str) -> None:
        """Say what is good to know, unless asked to be quiet."""
        if not self.quiet:
            complain(text)

    def settings(self, remark: Callable[[str], None] | None = None) -> "Settings":
        """Read the settings and, with -v, say from where. Raises SettingsError."""
        from asset_sync.settings import load  # noqa: PLC0415  # not for --help

        settings = load(self.config, os.environ)
        if self.verbose:
            shipped = " (the one that came with the program)" if settings.shipped else ""
            from asset_sync.database import name_of  # noqa: PLC0415

            for line in (
                f"Settings: {settings.source}{shipped}",
                f"Plan: {settings.provider.plan.name}. Database: {name_of(settings.conninfo)}.",
            ):
                (remark or complain)(line)
        return settings


def common(
    context: typer.Context,
    config: Path | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> Common:
    """Return the common options, wherever on the command line they stood."""
    before = context.obj if isinstance(context.obj, Common) else Common()
    return Common(config or before.config, quiet or before.quiet, verbose or before.verbose)


class PlainUsage(TyperCommand):
    """A command whose required arguments stand in its usage line without braces."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # of typer's own click
        """Return what stands behind the command's name."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class OutputError(AssetSyncError):
    """The answer could not be printed."""


def complain(text: str) -> None:
    """Print to stderr, at once; on a terminal no word is cut."""
    mutter(wrapped(text, sys.stderr))


def mutter(line: str) -> None:
    """Print to stderr as it is; no run ends because its log's disk is full or nobody reads on."""
    try:
        print(_printable(line), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _give_up(sys.stderr)


def answer(text: str) -> None:
    """Print to stdout; on a terminal no word is cut."""
    exactly(wrapped(text, sys.stdout))


def exactly(text: str) -> None:
    """Print to stdout what is to be copied: nothing is broken between lines."""
    try:
        print(_printable(text), flush=True)  # noqa: T201
    except BrokenPipeError:
        raise  # nobody reads on, which typer knows how to end
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(f"What was to be printed was not written: {error.strerror}.") from None


def agreed(question: str) -> bool:
    """Ask the user; where nobody can answer, the answer is no."""
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # as Ctrl-C anywhere else
        raise KeyboardInterrupt from None


def _give_up(stream: TextIO) -> None:
    """Let nobody have what the stream still holds: Python would try again, and exit with 120."""
    with Path(os.devnull).open("w", encoding="utf-8") as nobody:
        os.dup2(nobody.fileno(), stream.fileno())


class Row(Protocol):
    """A named tuple."""

    def _asdict(self) -> dict[str, object]: ...


def plain(row: Row) -> dict[str, object]:
    """Return a row for JSON: its times as text, UTC."""
    return {
        key: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for key, value in row._asdict().items()
    }


_COLOURS = re.compile(r"\x1b\[\d+m")
# What a terminal obeys and nobody reads, but for line ends, tabs and colours: a database's or a
# provider's words may hold it.
_CONTROLS = re.compile(r"(?!\x1b\[\d+m)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    return _CONTROLS.sub("", text)


def width_of(text: str) -> int:
    """Return how many columns the text takes, for which its colours count nothing."""
    return len(_COLOURS.sub("", text))


def wrapped(text: str, stream: TextIO) -> str:
    """Break long lines between words where somebody looks; a program gets them as they are."""
    width = shutil.get_terminal_size().columns
    if not stream.isatty():
        return text
    return "\n".join("\n".join(filled(line, width)) for line in text.splitlines())


def filled(text: str, width: int) -> Iterator[str]:
    """Give lines that hold so many columns; the library's count colours and so break too early."""
    if width_of(text) <= width:
        yield text
        return
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and width_of(longer) > width:
            yield line
            longer = word
        line = longer
    yield line
