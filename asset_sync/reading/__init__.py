"""Reads what is stored, for other programs: `asset_sync.read`, `listen` and `last_price`.

`import asset_sync` imports this package when one of these is used first.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from asset_sync.database import Connection, DatabaseError, session
from asset_sync.errors import AssetSyncError
from asset_sync.reading.asked import Moment, check_symbols, every_of, moment_of
from asset_sync.reading.bars import Bars
from asset_sync.reading.block import blocks
from asset_sync.reading.errors import ReadingError
from asset_sync.reading.prices import Price, heard, stored_prices
from asset_sync.secret import Secret
from asset_sync.settings import load
from asset_sync.store.bars_query import AsOfError, Selection

__all__ = [
    "AsOfError",
    "AssetSyncError",
    "Bars",
    "DatabaseError",
    "Moment",
    "Price",
    "ReadingError",
    "last_price",
    "listen",
    "read",
]


def read(
    symbols: str | Sequence[str],
    start: Moment | None = None,
    end: Moment | None = None,
    every: str = "5m",
    *,
    as_of: Moment | None = None,
    complete: bool = False,
    database_url: str | None = None,
) -> Bars:
    """Return the bars of one or more assets, by default all five-minute bars.

    The bars are those that start at `start` or later, and before `end`. A moment is a datetime, a
    date, a numpy.datetime64 or ISO text such as `2025-01-31T14:30`; one without a time is midnight,
    and one without a zone is UTC. `every` is how long a bar is: `5m`, `15m`, `1h`, `4h`, `1d` (of
    UTC) or `1d-ny` (it ends at 17:00 in New York). `as_of` asks for the bars as they were stored at
    that moment. `complete` leaves out the bars that are not over, and larger ones of which a part
    is missing.

    `database_url` is a URL or another address that libpq takes. Without one, it is the database of
    the settings, as for the command line. A connection is opened and closed again.

    Raises ReadingError if an asset or `every` is not known, a moment cannot be read, or
    `asset-sync[read]` is not installed; AsOfError if it is not kept what was stored at `as_of`; and
    DatabaseError if the database cannot be used.
    """
    chosen = every_of(every)
    bounds = {
        name: None if value is None else moment_of(value, name)
        for name, value in (("start", start), ("end", end), ("as_of", as_of))
    }
    with _database(database_url) as db:
        selection = Selection(
            check_symbols(db, _as_list(symbols)),
            bounds["start"],
            bounds["end"],
            chosen,
            bounds["as_of"],
            complete,
        )
        return Bars(selection.symbols, chosen, blocks(db, selection))


def listen(
    symbols: str | Sequence[str] | None = None, *, database_url: str | None = None
) -> Iterator[Price]:
    """Return the new prices as runs publish them, without end; by default those of all assets.

    If the connection is lost, it is made again, as often as necessary, and the newest of the prices
    that were published meanwhile follow. `database_url` is as in `read`.

    Raises ReadingError if an asset is not known; and DatabaseError if the database cannot be used,
    or if it is a pooler in transaction mode, behind which nothing can be heard.
    """
    return heard(_address(database_url), None if symbols is None else _as_list(symbols))


def last_price(symbol: str, *, database_url: str | None = None) -> Price | None:
    """Return the last price that is stored of an asset; None if there is none yet.

    Raises as `listen` does.
    """
    with _database(database_url) as db:
        return next(iter(stored_prices(db, check_symbols(db, [symbol]))), None)


@contextmanager
def _database(url: str | None) -> Iterator[Connection]:
    with session(_address(url)) as db:
        yield db


def _address(url: str | None) -> Secret | None:
    """Return the address of the database; None means the embedded PostgreSQL."""
    if url is not None:
        return Secret(url, "database_url")
    return load(None, os.environ).conninfo


def _as_list(symbols: str | Sequence[str]) -> list[str]:
    if isinstance(symbols, str):
        return [symbols]
    if not isinstance(symbols, Iterable):
        raise ReadingError(f"{symbols!r} is no symbol: name an asset as 'EURUSD'.")
    return list(symbols)
