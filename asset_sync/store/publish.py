"""Publishing new prices, by NOTIFY and on the message bus."""

import json
from collections.abc import Sequence

from asset_sync import bus
from asset_sync.database import Cursor
from asset_sync.provider.current import CODE
from asset_sync.store.market import LastPrice

CHANNEL = "asset_update"


def message(price: LastPrice) -> str:
    """Return the JSON that listeners get: symbol, bid, ask, last_price, timestamp, source."""
    known = price.as_json()
    return json.dumps(
        {
            "symbol": price.symbol,
            **{key: known[key] for key in ("bid", "ask", "last_price", "timestamp")},
            "source": CODE,
        }
    )


def notify(cursor: Cursor, prices: Sequence[LastPrice]) -> None:
    """`NOTIFY asset_update` for each price; PostgreSQL sends it when the transaction commits."""
    cursor.execute(
        "select pg_notify(%s, message) from unnest(%s::text[]) as message",
        (CHANNEL, [message(price) for price in prices]),
    )


def send(client: bus.Client, prices: Sequence[LastPrice]) -> None:
    """Publish each price on the message bus, after the commit; raises `bus.EventsError`."""
    client.publish((price.symbol, message(price)) for price in prices)
