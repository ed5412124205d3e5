"""Publishing new prices, by NOTIFY and Redis."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asset_sync.database import Cursor
from asset_sync.errors import AssetSyncError
from asset_sync.provider.current import CODE
from asset_sync.secret import Secret
from asset_sync.settings import Settings
from asset_sync.store.market import LastPrice

if TYPE_CHECKING:
    from redis import Redis

CHANNEL = "asset_update"


class EventsError(AssetSyncError):
    """An event could not be published; the data is stored nevertheless."""


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


class RedisPublisher:
    """Sends the same JSON to the Redis channel `asset:update:{symbol}`, after the commit.

    Redis is a convenience: every failure of it is an EventsError, which the loop reports once as a
    warning; no sync fails because of it.
    """

    def __init__(self, url: Secret) -> None:
        self._url = url
        self._client: Redis | None = None
        self._gave_up = False

    def publish(self, prices: Sequence[LastPrice]) -> None:
        """Publish; after the first failure do nothing for the rest of the run."""
        if self._gave_up:
            return
        try:
            pipeline = self._connected().pipeline(transaction=False)
            for price in prices:
                pipeline.publish(f"asset:update:{price.symbol}", message(price))
            pipeline.execute()
        except EventsError:
            self._gave_up = True
            raise
        except Exception as error:  # noqa: BLE001  # the client raises its own, OSError, ValueError
            self._gave_up = True
            raise EventsError(
                f"Redis did not get the new prices ({type(error).__name__}); the data is stored. "
                "Check REDIS_URL and that the server runs."
            ) from None  # its text may hold the address

    def hello(self) -> None:
        """Ask whether the server is there; raises EventsError."""
        try:
            self._connected().ping()
        except EventsError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise EventsError(
                f"Redis does not answer ({type(error).__name__}): check REDIS_URL and that the "
                "server runs."
            ) from None  # its text may hold the address

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> "Redis":
        if self._client is None:
            try:
                from redis import Redis  # noqa: PLC0415  # an extra, and slow to import
            except ImportError:
                raise EventsError(
                    "REDIS_URL is set, but the Redis client is not installed: "
                    'pip install "asset-sync[redis]", or unset REDIS_URL.'
                ) from None
            self._client = Redis.from_url(
                self._url.reveal(), socket_connect_timeout=2, socket_timeout=2
            )
        return self._client


def publisher_of(settings: Settings) -> RedisPublisher | None:
    """Return what publishes new prices to Redis; None if no Redis is configured."""
    return None if settings.redis_url is None else RedisPublisher(settings.redis_url)
