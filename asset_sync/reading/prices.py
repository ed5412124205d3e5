"""Last prices: the stored ones, and new ones as runs publish them."""

import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from itertools import chain, repeat
from typing import NamedTuple, NoReturn

import psycopg2

from asset_sync.database import (
    Connection,
    DatabaseError,
    can_read,
    connect,
    errors_as_sentences,
    explanation,
    is_transient,
    query,
)
from asset_sync.reading.asked import check_symbols
from asset_sync.secret import Secret
from asset_sync.store.publish import CHANNEL

NOTIFY_SECONDS = 5.0
"""How long a NOTIFY of our own may take to arrive."""
_AGAIN_SECONDS = (0.5, 1, 2, 5, 10)
"""How long to wait before each new try to connect; the last one is repeated."""


class Price(NamedTuple):
    """The last price of an asset."""

    symbol: str
    last_price: float
    bid: float | None
    """None if the price comes from a bar."""
    ask: float | None
    timestamp: datetime
    """The time of the price; aware."""


def stored_prices(db: Connection, symbols: Sequence[str] | None) -> list[Price]:
    """Return the stored last price of each asset that has one; None means all assets."""
    rows = query(
        db,
        """
        select symbol, metadata -> 'last_update' from trading.symbols
        where (%(symbols)s::text[] is null or symbol = any(%(symbols)s))
          and jsonb_typeof(metadata -> 'last_update') = 'object'
        order by symbol
        """,
        {"symbols": None if symbols is None else list(symbols)},
    )
    prices = (_price_of({**known, "symbol": symbol}) for symbol, known in rows)
    return [price for price in prices if price is not None]


def _price_in(payload: str) -> Price | None:
    try:
        return _price_of(json.loads(payload))
    except ValueError:
        return None


def _price_of(message: object) -> Price | None:
    """Read a price; None if another program wrote it, in another form."""
    match message:
        case {
            "symbol": str(symbol),
            "last_price": float() | int() as price,
            "bid": float() | int() | None as bid,
            "ask": float() | int() | None as ask,
            "timestamp": str(at),
        } if math.isfinite(price) and not isinstance(price, bool):
            pass
        case _:
            return None
    try:
        timestamp = datetime.fromisoformat(at)
    except ValueError:
        return None
    return Price(symbol, float(price), bid, ask, timestamp) if timestamp.tzinfo else None


def heard(conninfo: Secret | None, symbols: Sequence[str] | None) -> Iterator[Price]:
    """Connect, and return the new prices as they come, without end.

    A lost connection is made again, as often as necessary; then the newest of the prices that were
    published meanwhile follow. Raises DatabaseError at once if the database is not reachable or if
    no NOTIFY can be heard there, and ReadingError if it has not all of the assets.
    """
    with errors_as_sentences(conninfo):
        db = _listening(conninfo)
        try:
            chosen = None if symbols is None else check_symbols(db, symbols)
            told = {price.symbol: price for price in stored_prices(db, chosen)}
        except BaseException:
            db.close()
            raise
    return _heard(db, conninfo, chosen, told)


def _heard(
    db: Connection,
    conninfo: Secret | None,
    symbols: Sequence[str] | None,
    told: dict[str, Price],
) -> Iterator[Price]:
    missed: Iterable[Price] = ()
    while True:
        try:
            with closing(db):
                for price in chain(missed, _coming(db)):
                    if symbols is not None and price.symbol not in symbols:
                        continue
                    if told.get(price.symbol) != price:  # it was not among the missed ones
                        told[price.symbol] = price
                        yield price
        except psycopg2.Error as error:
            if not is_transient(error):
                raise DatabaseError(explanation(error, conninfo)) from None
        db = _listening_again(conninfo)
        missed = _missed(db, symbols, told)


def _missed(
    db: Connection, symbols: Sequence[str] | None, told: Mapping[str, Price]
) -> Iterator[Price]:
    """Yield the stored prices that are newer than what was told of the asset."""
    for price in stored_prices(db, symbols):
        if price.symbol not in told or told[price.symbol].timestamp < price.timestamp:
            yield price


def _coming(db: Connection) -> Iterator[Price]:
    """Yield each price that is published from now on, until the connection is lost."""
    while True:
        db.poll()
        while db.notifies:
            notice = db.notifies.pop(0)
            price = _price_in(notice.payload) if notice.channel == CHANNEL else None
            if price is not None:
                yield price
        can_read(db.fileno(), None)


def _listening(conninfo: Secret | None) -> Connection:
    """Return a connection that hears the channel of the prices; the caller closes it.

    A pooler in transaction mode accepts LISTEN, and delivers nothing. So another connection sends a
    NOTIFY, which must arrive.
    """
    db = connect(conninfo)
    try:
        trial = f"{CHANNEL}_{secrets.token_hex(8)}"
        query(db, f"listen {CHANNEL}; listen {trial}")
        with closing(connect(conninfo)) as other:
            query(other, f"notify {trial}")
        deadline = time.monotonic() + NOTIFY_SECONDS
        while all(notice.channel != trial for notice in db.notifies):
            if not can_read(db.fileno(), max(0, deadline - time.monotonic())):
                _refuse_pooler()
            db.poll()
        query(db, f"unlisten {trial}")
    except BaseException:
        db.close()
        raise
    return db


def _refuse_pooler() -> NoReturn:
    raise DatabaseError(
        "The database accepts LISTEN and delivers nothing: a pooler such as PgBouncer in "
        "transaction mode does so. Connect to PostgreSQL itself, or to a pool in session mode."
    )


def _listening_again(conninfo: Secret | None) -> Connection:
    """Try until there is a connection that hears."""
    for seconds in chain(_AGAIN_SECONDS, repeat(_AGAIN_SECONDS[-1])):
        try:
            return _listening(conninfo)
        except psycopg2.Error as error:
            if not is_transient(error):
                raise DatabaseError(explanation(error, conninfo)) from None
        time.sleep(seconds)
    raise AssertionError  # it does not end
