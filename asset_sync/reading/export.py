"""Writes bars into files as text (CSV), Parquet or Arrow: in little memory, whole files only."""

import fcntl
import io
import json
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from typing import IO, cast
from urllib.parse import quote

from asset_sync.database import Connection, copied, query
from asset_sync.errors import AssetSyncError
from asset_sync.reading.bars import as_arrow
from asset_sync.reading.block import Block, blocks, numbers_of, queries
from asset_sync.reading.errors import needs_the_extra
from asset_sync.store.bars_query import Selection

ROW_GROUP_BARS = 100_000
"""How many bars a row group of Parquet has: a reader may skip those out of its range."""
_CHUNK_BYTES = 1 << 18
_END_SECONDS = 2.0
"""How long an interrupted export waits for the thread that writes."""
_PART = ".part"
# Where another user may write, that name may be a link to any file, or a pipe without a reader.
_PART_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK

Tell = Callable[[str, int], None]
"""Gets the asset, and how many of its bars were written since the last time."""


class ExportError(AssetSyncError):
    """A file could not be written; the message says which and why."""


class Format(StrEnum):
    """How bars are written."""

    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


# --- the bars ---------------------------------------------------------------------------------


def write(db: Connection, selection: Selection, form: Format, file: IO[bytes], tell: Tell) -> int:
    """Write the bars into the file, asset by asset; return how many there are.

    Raises what psycopg2 raises, OSError if the file cannot be written, and ReadingError if
    `asset-sync[read]` is not installed, which only CSV does not need.
    """
    written = 0

    def count(symbol: str, bars: int) -> None:
        nonlocal written
        written += bars
        tell(symbol, bars)

    if form is Format.CSV:
        _write_csv(db, selection, file, count)
    else:
        _write_arrow(db, selection, form, file, count)
    return written


def _write_csv(db: Connection, selection: Selection, file: IO[bytes], tell: Tell) -> None:
    numbers = ", ".join(numbers_of(selection.every))
    header = f"symbol, ts, {numbers}\n".replace(" ", "").encode()
    for symbol, chosen in queries(db, selection):
        utc = """to_char(ts at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
        bars = f"select symbol, {utc}, {numbers} from ({chosen}) bar where isfinite(ts)"
        with copied(db, f"copy ({bars}) to stdout (format csv)") as rows:
            while chunk := rows.read(_CHUNK_BYTES):
                _write_all(file, header + chunk)
                header = b""  # it comes with the first bars, so not before an error
                tell(symbol, chunk.count(b"\n"))
    _write_all(file, header)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Write the data; a file without a buffer may take it in pieces, or, full, nothing yet."""
    rest = memoryview(data)
    while rest:
        written = cast("int | None", file.write(rest))
        if written is None:  # a pipe that does not block, as some programs give
            poll = select.poll()  # select.select allows no number above 1023
            poll.register(file, select.POLLOUT)
            poll.poll()
        else:
            rest = rest[written:]


def _write_arrow(
    db: Connection, selection: Selection, form: Format, file: IO[bytes], tell: Tell
) -> None:
    writer = _ArrowWriter(selection, form, file)
    try:
        writer.start()
        for block in blocks(db, selection):
            writer.put(block)
            tell(block.symbol, len(block.ts))
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


class _ArrowWriter(threading.Thread):
    """Writes blocks by arro3, in a thread of its own.

    A signal interrupts only the main thread. arro3 would lose the exception that it raises.
    """

    def __init__(self, selection: Selection, form: Format, file: IO[bytes]) -> None:
        # At its exit Python waits for every thread that is no daemon, also for one that writes into
        # a pipe that nobody reads.
        super().__init__(daemon=True)
        with needs_the_extra():
            from arro3 import io as arro3  # noqa: PLC0415  # takes 20 ms, and CSV does not need it
        self._arro3 = arro3
        self._selection = selection
        self._form = form
        self._output = _Output(file)
        self._blocks: SimpleQueue[Block | None] = SimpleQueue()
        self._room = threading.Semaphore(1)
        self._ended = threading.Event()
        self._error: Exception | None = None

    def put(self, block: Block) -> None:
        """Hand over a block. Raises OSError if an earlier one could not be written."""
        self._room.acquire()
        self._blocks.put(block)
        if self._output.error is not None:
            raise self._output.error

    def finish(self) -> None:
        """Wait until all is written. Raises OSError if it could not be written."""
        self._blocks.put(None)
        self._ended.wait()  # an interrupted `join` would take the thread for ended
        self.join()
        for error in (self._output.error, self._error):
            if error is not None:
                raise error

    def abandon(self) -> None:
        """Write nothing more, and wait for the end of the thread.

        If the process ended while the thread is in arro3, Python would end the thread there, and
        Rust would abort the process for that. A thread that waits for the reader of a pipe is left
        behind after some seconds. If the reader then reads just as the process ends, it is aborted.
        """
        self._output.discards = True
        self._blocks.put(None)
        if self._ended.wait(_END_SECONDS):
            self.join()

    def run(self) -> None:
        """Write what is handed over, up to None."""
        handed = self._handed()
        try:
            stream = as_arrow(self._selection.symbols, self._selection.every, handed)
            output = cast("IO[bytes]", self._output)
            if self._form is Format.PARQUET:
                self._arro3.write_parquet(
                    stream,
                    output,
                    compression="zstd(3)",
                    max_row_group_size=ROW_GROUP_BARS,
                )
            else:
                self._arro3.write_ipc(stream, output)
        except Exception as error:  # noqa: BLE001  # raised by `finish`
            self._error = error
        for _ in handed:  # `put` must not wait for ever
            pass
        self._ended.set()

    def _handed(self) -> Iterator[Block]:
        for block in iter(self._blocks.get, None):
            self._room.release()
            yield block


class _Output(io.RawIOBase):
    """A file for arro3, which would print a stack trace if a write raised: the error is kept."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | ValueError | None = None
        self.discards = False
        """Whether nothing more is to be written."""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # arro3 sends bytes
        if self.error is None and not self.discards:
            try:
                _write_all(self._file, data)
            except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
                self.error = error
        return len(data)


# --- a file -----------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file that replaces `path` if the block succeeds, and that is deleted otherwise.

    What is not a regular file (a pipe, /dev/null) is written as it is. Raises ExportError if the
    file cannot be written, or if another export writes it at the moment.
    """
    with _naming(path):
        if path.exists() and not path.is_file():
            with path.open("wb", buffering=0) as file:  # an interrupt leaves nothing to write
                yield file
            return
        path = path.resolve()
        with _unfinished(path) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part_of(path).replace(path)
        _sync_directory(path.parent)


@contextmanager
def _unfinished(path: Path) -> Iterator[IO[bytes]]:
    """Give the unfinished file of `path`, ours alone and empty. Raises ExportError."""
    part = part_of(path)
    with _locked(part, path) as file:
        try:
            file.truncate()
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield file
        except BaseException:
            if _is_at(part, file):
                part.unlink()
            raise


def _locked(part: Path, path: Path) -> IO[bytes]:
    """Open the unfinished file of `path`, and lock it against other exports. Raises ExportError."""
    while True:
        with ExitStack() as opened:
            descriptor = os.open(part, _PART_FLAGS, 0o666)
            file = opened.enter_context(open(descriptor, "wb"))  # noqa: PTH123  # a descriptor
            made = os.fstat(descriptor)
            if not stat.S_ISREG(made.st_mode) or made.st_uid != os.geteuid():
                raise ExportError(f"{part} is not what an export left: remove it.")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(f"Another export is just writing {path}.") from None
            if _is_at(part, file):  # and not renamed or deleted by one that ended meanwhile
                opened.pop_all()
                return file


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether this path leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def part_of(path: Path) -> Path:
    """Return the name of a file that is not whole yet; a killed export leaves one."""
    return path.with_name(path.name + _PART)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise an ExportError with the path for each OSError of the block."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written: {error.strerror or 'no reason given'}."
        ) from None


# --- a directory ------------------------------------------------------------------------------


class Directory:
    """A directory with a file for each asset, and a note of the question that they answer.

    An export that was interrupted continues, up to the same moment: files that answer the same
    question are kept. After one that has finished they are kept only with `as_of`, since what is
    stored now may differ.
    """

    NOTE = "asset-sync-export.json"

    def __init__(self, db: Connection, path: Path, selection: Selection, form: Format) -> None:
        """Read the note, or begin a new one. Raises ExportError if the directory cannot be used."""
        self._path = path
        self._form = form
        self._selection = selection
        bounds = (selection.start, selection.until, selection.as_of)
        [(now, made)] = query(
            db, "select clock_timestamp(), min(applied_at) from asset_sync.migrations"
        )
        self._question: list[object] = [
            made.astimezone(UTC).isoformat(),  # no other database was made at that moment
            *(at and at.astimezone(UTC).isoformat() for at in bounds),
            *(selection.every.value, selection.complete, form.value),
        ]
        with _naming(path):
            path.mkdir(parents=True, exist_ok=True)
            until, self._bytes = self._known()
        self._until: datetime = until or min(selection.until or now, now)

    def selection_of(self, symbol: str) -> Selection:
        """Return which bars the asset's file has: of all files up to the same moment."""
        is_now = self._until != self._selection.until
        return replace(
            self._selection,
            symbols=(symbol,),
            until=self._until,
            now=self._until if is_now else None,
        )

    def others(self) -> list[str]:
        """Return the names of files in the same format that another export has made."""
        own = {self.file_of(symbol).name for symbol in self._bytes}
        return sorted({file.name for file in self._path.glob(f"*.{self._form}")} - own)

    def file_of(self, symbol: str) -> Path:
        """Return the asset's file; a sign that no name of a file has is written with `%`."""
        return self._path / f"{quote(symbol, safe='')}.{self._form}"

    def is_whole(self, symbol: str) -> bool:
        """Return whether the asset's file answers the question already."""
        file = self.file_of(symbol)
        return file.is_file() and file.stat().st_size == self._bytes.get(symbol)

    def note(self, symbol: str) -> None:
        """Note that the asset's file is whole."""
        self._bytes[symbol] = self.file_of(symbol).stat().st_size
        self._save(finished=False)

    def finish(self) -> None:
        """Note that no file is missing."""
        self._save(finished=True)

    def _known(self) -> tuple[datetime | None, dict[str, int]]:
        """Return up to when the files here answer the question, and their sizes; none if not."""
        try:
            match json.loads((self._path / self.NOTE).read_text()):
                case {
                    "question": self._question,
                    "until": str(until),
                    "finished": bool(finished),
                    "bytes": dict(sizes),
                } if self._selection.as_of is not None or not finished:
                    return datetime.fromisoformat(until).astimezone(UTC), sizes
        except (FileNotFoundError, ValueError):
            pass
        return None, {}

    def _save(self, *, finished: bool) -> None:
        note = {
            "question": self._question,
            "until": self._until.isoformat(),
            "finished": finished,
            "bytes": self._bytes,
        }
        with whole_file(self._path / self.NOTE) as file:
            file.write(json.dumps(note, indent=2).encode())
