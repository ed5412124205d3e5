"""The message bus on which each new price is published: Redis. No other module knows which it is.

A bus is a convenience: every failure of it is an `EventsError`, which the run reports once as a
warning; no sync fails because of it.
"""

from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING

from asset_sync.errors import AssetSyncError
from asset_sync.secret import Secret

if TYPE_CHECKING:
    from redis import Redis

NAME = "Redis"
"""For people; in small letters also the doctor's subject and the name of the address's file."""

VARIABLE = "REDIS_URL"
"""The environment variable that holds the address."""

MISTAKEN_KEYS = "redis redis_url"
"""Keys that people put into a settings file instead of setting the variable."""

ADDRESS = "what begins with redis://, rediss:// or unix://"
ADDRESS_PATTERN = r"\s*((?:rediss?|unix)://\S+)\s*"
"""Its group 1 is the address."""

NO_ADDRESS = "is no address of a Redis server; it must begin with redis://, rediss:// or unix://"


class EventsError(AssetSyncError):
    """An event could not be published; the data is stored nevertheless."""


class Client:
    """Sends the JSON of each price to the channel `asset:update:{symbol}`, from any thread."""

    def __init__(self, url: Secret) -> None:
        """Open nothing yet."""
        self._url = url
        self._redis: Redis | None = None
        self._gave_up = False
        self._one_at_a_time = Lock()

    def publish(self, messages: Iterable[tuple[str, str]]) -> None:
        """Publish pairs of symbol and JSON; after the first failure do nothing any more."""
        with self._one_at_a_time:
            if self._gave_up:
                return
            try:
                self._publish(messages)
            except EventsError:
                self._gave_up = True
                raise

    def _publish(self, messages: Iterable[tuple[str, str]]) -> None:
        try:
            pipeline = self._connected().pipeline(transaction=False)
            for symbol, message in messages:
                pipeline.publish(f"asset:update:{symbol}", message)
            pipeline.execute()
        except EventsError:
            raise
        except Exception as error:  # noqa: BLE001  # the client raises its own, OSError, ValueError
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
        if self._redis is not None:
            self._redis.close()

    def _connected(self) -> "Redis":
        if self._redis is None:
            try:
                from redis import Redis  # noqa: PLC0415  # an extra, and slow to import
            except ImportError:
                raise EventsError(
                    "REDIS_URL is set, but the Redis client is not installed: "
                    'pip install "asset-sync[redis]", or unset REDIS_URL.'
                ) from None
            self._redis = Redis.from_url(
                self._url.reveal(), socket_connect_timeout=2, socket_timeout=2
            )
        return self._redis
