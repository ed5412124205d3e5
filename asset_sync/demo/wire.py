"""A request to the stand-in and what goes back over the wire."""

import gzip
import json
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias
from urllib.parse import urlencode

from asset_sync.errors import AssetSyncError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Document: TypeAlias = dict[str, Json]

FOREIGN_HOST = "https://stand-in.invalid"
"""A host that cannot exist (RFC 6761); a client must never send its key there."""

SNAPSHOT_PATH = "/v3/snapshot"
REFERENCE_PATH = "/v3/reference/tickers"

JSON, HTML, TEXT = "application/json", "text/html", "text/plain; charset=utf-8"


class StandInError(AssetSyncError):
    """The stand-in was asked for something it does not have."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request with a good key, as far as an answer depends on it."""

    path: str
    parts: Mapping[str, str]
    """What the path names: the ticker, the range, the date."""

    query: Mapping[str, str]
    """The parameters, those inside a cursor included, the key excluded."""

    tickers: tuple[str, ...]
    until_ms: int | None
    """The end of the range asked for, where it is one that can be read."""

    now_ms: int
    period_seconds: float

    address: str
    """What the client calls this server: `http://127.0.0.1:8765`."""

    def page(self, path: str | None = None, address: str | None = None, **changes: str) -> str:
        """Make a `next_url`: this call with some parameters changed, in a cursor, without the key.

        It leads to this server under the name that the client used: some clients follow it with
        their key. The API's own names its public host. The cursor has no padding, like the API's.
        """
        cursor = urlsafe_b64encode(urlencode({**self.query, **changes}).encode()).decode()
        return f"{address or self.address}{path or self.path}?cursor={cursor.rstrip('=')}"


class Wire(Protocol):
    """The connection to a client; writing to one that has gone raises ConnectionError."""

    def head(self, reply: "Reply", length: int, *, encoding: str | None = None) -> None:
        """Send the status line and the headers, announcing `length` bytes."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once."""

    def give_up(self, seconds: float) -> bool:
        """Wait that long; True as soon as the server stops or the client has gone."""

    def accepts_gzip(self) -> bool:
        """Whether the client said so."""

    def hang_up(self) -> None:
        """Close the connection after what has been sent."""

    def reset(self) -> None:
        """Close the connection now, with a TCP reset."""


_GZIP_FROM_BYTES = 1024


def send_whole(wire: Wire, reply: "Reply") -> None:
    """Send the whole body at once, compressed where that is wanted and worth it."""
    body, encoding = reply.payload(), None
    if len(body) > _GZIP_FROM_BYTES and wire.accepts_gzip():
        body, encoding = gzip.compress(body, compresslevel=1), "gzip"
    wire.head(reply, len(body), encoding=encoding)
    wire.write(body)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back, and how."""

    status: int
    """The HTTP status; 0 where the client never gets to see one."""

    body: Document | bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    send: Callable[[Wire, "Reply"], None] = send_whole

    def payload(self) -> bytes:
        """Return the body as bytes; NaN and Infinity go out as broken servers send them."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def rows(self) -> list[Json]:
        """Return the `results` of a list answer; none where there are none."""
        found = self.body.get("results") if isinstance(self.body, dict) else None
        return found if isinstance(found, list) else []

    def with_rows(self, rows: list[Json]) -> "Reply":
        """Return the same answer with other `results`."""
        return self.with_keys(results=rows)

    def with_keys(self, **changes: Json) -> "Reply":
        """Return the same answer with some top-level keys set, unless it is no JSON object."""
        if not isinstance(self.body, dict):
            return self
        return replace(self, body={**self.body, **changes})


def request_id() -> str:
    """As the API makes them: 32 hexadecimal digits."""
    return uuid.uuid4().hex
