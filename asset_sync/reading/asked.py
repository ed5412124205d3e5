"""What a reader asks for: moments, lengths of bars and symbols, checked."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time

from asset_sync.database import Connection, query
from asset_sync.reading.errors import ReadingError
from asset_sync.store.bars_query import Every

Moment = datetime | date | str
"""A moment as a reader gives it: without a time it is midnight, without a zone it is UTC."""


def moment_of(value: Moment, name: str) -> datetime:
    """Return the moment; `name` is what a sentence calls it. Raises ReadingError."""
    read = value
    if isinstance(read, str):
        try:
            read = datetime.fromisoformat(read)
        except ValueError:
            raise ReadingError(
                f"{name} is {value!r}: write a day as 2025-01-31, or a moment as 2025-01-31T14:30."
            ) from None
    if not isinstance(read, datetime):
        read = datetime.combine(read, time())
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read


def every_of(value: str) -> Every:
    """Return the length of the bars. Raises ReadingError."""
    try:
        return Every(value)
    except ValueError:
        known = ", ".join(Every)
        raise ReadingError(f"There are no bars of {value!r}; there are {known}.") from None


def all_symbols(db: Connection) -> list[str]:
    """Return the symbol of each asset of the database, in order."""
    return [symbol for (symbol,) in query(db, "select symbol from trading.symbols order by symbol")]


def check_symbols(db: Connection, symbols: Sequence[str]) -> tuple[str, ...]:
    """Return the symbols, each once, if the database has them all.

    Raises ReadingError with the first that it has not, and which it may be.
    """
    there = query(db, "select symbol from trading.symbols where symbol = any(%s)", (list(symbols),))
    lacking = sorted(set(symbols) - {symbol for (symbol,) in there})
    if lacking:
        from difflib import get_close_matches  # noqa: PLC0415  # only a mistake needs it

        near = get_close_matches(lacking[0].upper(), all_symbols(db), 1, 0.6)
        hint = f"Did you mean {near[0]}?" if near else "`asset-sync assets list` names all."
        raise ReadingError(f"The database has no asset {lacking[0]!r}. {hint}")
    return tuple(dict.fromkeys(symbols))
