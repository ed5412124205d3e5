"""What a command prints: answers to stdout, everything else to stderr."""

import os
import re
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol, TextIO

import typer

from asset_sync.errors import AssetSyncError


class OutputError(AssetSyncError):
    """The answer could not be printed."""


def out(text: str) -> None:
    """Print to stdout; on a terminal no word is cut."""
    out_raw(wrapped(text, sys.stdout))


def out_raw(text: str) -> None:
    """Print to stdout without breaking lines, for example what is to be copied."""
    with _errors_as_sentences():
        print(_printable(text), flush=True)  # noqa: T201


@contextmanager
def binary_stdout() -> Iterator[IO[bytes]]:
    """Give stdout for what is no text. Raises OutputError if it cannot be written, or is closed.

    It is not buffered: Python would flush a buffer at its exit, and wait for a reader that never
    reads.
    """
    if sys.__stdout__ is None:  # `main` has put the null device in its place
        raise OutputError("The output could not be written: stdout is closed.")
    with _errors_as_sentences():
        yield getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)  # `python -u` gives no buffer


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader has gone; typer ends the command
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(f"The output could not be written: {error.strerror}.") from None


def err(text: str) -> None:
    """Print to stderr, at once; on a terminal no word is cut."""
    err_raw(wrapped(text, sys.stderr))


def err_raw(line: str) -> None:
    """Print to stderr as it is; a full disk or a reader that has gone ends no run.

    After a signal, nothing more goes into a pipe that is full because nobody reads it.
    """
    try:
        print(_printable(line), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _give_up(sys.stderr)
    except (KeyboardInterrupt, SystemExit):
        if _is_full(sys.stderr):
            _give_up(sys.stderr)
        raise


def discard_unwritten() -> None:
    """Discard what is still in the buffers, so that the exit does not try to write it again.

    The exit would fail as the write before it, or wait for a reader that never reads.
    """
    for stream in (sys.stdout, sys.stderr):
        _give_up(stream)


def agreed(question: str) -> bool:
    """Ask the user; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # as Ctrl-C anywhere else
        raise KeyboardInterrupt from None


def _give_up(stream: TextIO) -> None:
    """Discard what the stream still holds: Python would try again, and exit with 120."""
    with suppress(ValueError), Path(os.devnull).open("wb") as null_device:  # it is no open file
        os.dup2(null_device.fileno(), stream.fileno())


def _is_full(stream: TextIO) -> bool:
    """Return whether a write would wait for the reader of a pipe."""
    poll = select.poll()
    with suppress(ValueError):  # it is no open file
        poll.register(stream, select.POLLOUT)
        return not poll.poll(0)
    return False


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
# Control characters, except line ends, tabs and colours: messages of a database or a provider may
# contain them.
_CONTROLS = re.compile(r"(?!\x1b\[\d+m)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    return _CONTROLS.sub("", text)


def width_of(text: str) -> int:
    """Return how many columns the text takes; its colours take none."""
    return len(_COLOURS.sub("", text))


def wrapped(text: str, stream: TextIO) -> str:
    """Break long lines between words on a terminal; a program gets them as they are."""
    width = shutil.get_terminal_size().columns
    if not stream.isatty():
        return text
    return "\n".join("\n".join(filled(line, width)) for line in text.splitlines())


def filled(text: str, width: int) -> Iterator[str]:
    """Yield lines of at most this width; textwrap counts colours and so breaks too early."""
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
