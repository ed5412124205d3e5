"""What a reader asks for: moments, lengths of bars and symbols, checked."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Union

from asset_sync.database import Connection, query
from asset_sync.reading.errors import ReadingError, needs_the_extra
from asset_sync.store.bars_query import Every

if TYPE_CHECKING:
    import numpy as np

_NOT_IN_POSTGRESQL = re.compile(r"[\x00\ud800-\udfff]")

Moment = Union[datetime, date, str, "np.datetime64"]
"""A moment as a reader gives it: without a time it is midnight, without a zone it is UTC."""


def moment_of(value: Moment, name: str) -> datetime:
    """Return the moment; `name` is what a sentence calls it. Raises ReadingError."""
    try:
        moment = datetime.fromisoformat(_as_text(value))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ReadingError(
            f"{name} is {value!r}: write a day as 2025-01-31, or a moment as 2025-01-31T14:30."
        ) from None


def _as_text(value: Moment) -> str:
    """Return a moment as text; what is no moment becomes text that is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, date):  # also a pandas.Timestamp, and its NaT
        return value.isoformat()
    with needs_the_extra():
        import numpy as np  # noqa: PLC0415  # takes 60 ms, and few need it
    return str(value) if isinstance(value, np.datetime64) else ""


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
    for symbol in symbols:
        if not isinstance(symbol, str) or _NOT_IN_POSTGRESQL.search(symbol):
            raise ReadingError(f"{symbol!r} is no symbol: name an asset as 'EURUSD'.")
    there = query(db, "select symbol from trading.symbols where symbol = any(%s)", (list(symbols),))
    lacking = sorted(set(symbols) - {symbol for (symbol,) in there})
    if lacking:
        from difflib import get_close_matches  # noqa: PLC0415  # only a mistake needs it

        near = get_close_matches(lacking[0].upper(), all_symbols(db), 1, 0.6)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ReadingError(
            f"The database has no asset {lacking[0]!r}.{hint} If `asset-sync assets list` names it,"
            " no run has fetched it yet."
        )
    return tuple(dict.fromkeys(symbols))
