"""Reads bars block by block, from a binary COPY into numpy arrays.

A row of a binary COPY is the number of its columns in 16 bits, and for each column its length in 32
bits and its value (https://www.postgresql.org/docs/current/sql-copy.html). As every column is made
eight bytes long, all rows are equally long, and numpy reads thousands of them at once.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from asset_sync.database import Connection, DatabaseError, can_copy, copied, transaction
from asset_sync.reading.errors import needs_the_extra
from asset_sync.store.bars_query import Every, Selection, bars_query, require_kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_BARS = 10_000

_NUMBERS = ("open", "high", "low", "close", "volume", "vwap", "trades")
COUNTS = frozenset(("trades", "bars", "expected"))
"""The columns that are whole numbers."""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_MICROSECONDS_TO_2000 = 946_684_800_000_000


def numbers_of(every: Every) -> tuple[str, ...]:
    """Return the names of the columns after `symbol` and `ts`."""
    return _NUMBERS if every is Every.FIVE_MINUTES else (*_NUMBERS, "bars", "expected")


class Block(NamedTuple):
    """Some bars of one asset, at least one, in the order of time."""

    symbol: str
    ts: "NDArray[np.datetime64]"
    """When each bar starts: microseconds, UTC."""
    numbers: "tuple[NDArray[np.float64], ...]"
    """One array for each of `numbers_of`; what is not known is NaN."""


def blocks(db: Connection, selection: Selection) -> Iterator[Block]:
    """Yield the bars, asset by asset, at most `BLOCK_BARS` at a time.

    The bars of one asset are those of one moment. Raises what psycopg2 raises. If the program has
    registered a wait callback, no COPY is possible: a cursor takes three times as long.
    """
    with needs_the_extra():
        import numpy  # noqa: F401, ICN001, PLC0415  # takes 60 ms, and only this needs it
    names = numbers_of(selection.every)
    read = _by_copy if can_copy() else _by_cursor
    for symbol, chosen in queries(db, selection):
        for ts, values in read(db, chosen, names):
            yield Block(symbol, ts, values)


def queries(db: Connection, selection: Selection) -> Iterator[tuple[str, str]]:
    """Yield each asset and the query of its bars, which is to be run before the next is asked for.

    Raises AsOfError if it is not known, or meanwhile not known any more, what was stored then.
    """
    for symbol in selection.symbols:
        yield symbol, bars_query(db, replace(selection, symbols=(symbol,)))
    if selection.as_of is not None:
        require_kept(db, selection.as_of)


_Columns: TypeAlias = "tuple[NDArray[np.datetime64], tuple[NDArray[np.float64], ...]]"


def _by_copy(db: Connection, chosen: str, names: Sequence[str]) -> Iterator[_Columns]:
    import numpy as np  # noqa: PLC0415  # see `blocks`

    fields = [("columns", ">i2")]
    for name in ("ts", *names):
        fields += [(f"length of {name}", ">i4"), (name, ">i8" if name == "ts" else ">f8")]
    row = np.dtype(fields)
    buffer = memoryview(bytearray(BLOCK_BARS * row.itemsize))
    sql = f"copy ({_eight_bytes_each('ts', names, chosen)}) to stdout (format binary)"
    with copied(db, sql) as file:
        _fill(file, buffer[: len(_HEADER)])
        known, rest = buffer[: len(_HEADER)] == _HEADER, 0
        while known and (filled := _fill(file, buffer)):
            number, rest = divmod(filled, row.itemsize)
            if not number:
                break
            rows = np.frombuffer(buffer, row, number)
            yield (
                (rows["ts"].astype("<i8") + _MICROSECONDS_TO_2000).view("M8[us]"),
                tuple(rows[name].astype("<f8") for name in names),
            )
    if rest != len(_TRAILER):
        raise DatabaseError("The database sent bars in a format that asset-sync does not know.")


def _fill(file: io.RawIOBase, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; return the number of bytes."""
    filled = 0
    while filled < len(buffer) and (read := file.readinto(buffer[filled:])):
        filled += read
    return filled


def _by_cursor(db: Connection, chosen: str, names: Sequence[str]) -> Iterator[_Columns]:
    import numpy as np  # noqa: PLC0415  # see `blocks`

    row = np.dtype([("ts", "M8[us]"), *((name, "<f8") for name in names)])
    with transaction(db) as cursor:
        microseconds = "(extract(epoch from ts) * 1000000)::int8"
        chosen = _eight_bytes_each(microseconds, names, chosen)
        cursor.execute(f"declare bars no scroll cursor for {chosen}")
        while True:
            cursor.execute(f"fetch {BLOCK_BARS} from bars")
            rows = np.array(cursor.fetchall(), row)
            if not len(rows):
                return
            yield (
                np.ascontiguousarray(rows["ts"]),
                tuple(np.ascontiguousarray(rows[name]) for name in names),
            )


def _eight_bytes_each(ts: str, names: Sequence[str], chosen: str) -> str:
    values = ", ".join(f"coalesce({name}::float8, 'NaN')" for name in names)
    # Another program may have stored a bar of the infinite future, which numpy does not have.
    return f"select {ts}, {values} from ({chosen}) bar where isfinite(ts)"
