"""Faults of the connection: the answer is cut off, slow, huge or missing."""

import gzip
from dataclasses import replace
from functools import lru_cache

from asset_sync.demo.faults.registry import fault
from asset_sync.demo.wire import Call, Reply, Wire


@fault("truncated")
def _truncated(_: Call, right: Reply) -> Reply:
    """Close the connection in the middle of the body."""

    def send(wire: Wire, reply: Reply) -> None:
        body = reply.payload()
        wire.head(reply, len(body))
        wire.write(body[: len(body) // 2])
        wire.hang_up()

    return replace(right, send=send)


@fault("reset")
def _reset(_: Call, __: Reply) -> Reply:
    """Reset the connection without an answer."""
    return Reply(0, b"", send=lambda wire, _: wire.reset())


_LOOK_EVERY_SECONDS = 0.05


@fault("stall")
def _stall(_: Call, __: Reply) -> Reply:
    """Send nothing until the client closes the connection."""

    def send(wire: Wire, _: Reply) -> None:
        while not wire.give_up(_LOOK_EVERY_SECONDS):
            pass
        wire.hang_up()

    return Reply(0, b"", send=send)


_DRIP_SECONDS = 0.02
_DRIP_PADDING = b" " * 100_000


@fault("drip")
def _drip(_: Call, right: Reply) -> Reply:
    """Send the right answer slowly: one byte every 20 ms, for more than half an hour."""

    def send(wire: Wire, reply: Reply) -> None:
        body = _DRIP_PADDING + reply.payload()
        wire.head(reply, len(body))
        for place in range(len(body)):
            wire.write(body[place : place + 1])
            if wire.give_up(_DRIP_SECONDS):
                wire.hang_up()
                return

    return replace(right, send=send)


_HUGE_BYTES = 100 * 1024 * 1024
_OPENING, _ENDING = b'{"status":"OK","results":[', b"]}"


@fault("huge")
def _huge(_: Call, __: Reply) -> Reply:
    """Send 100 MB, nearly all of it blanks."""

    def send(wire: Wire, reply: Reply) -> None:
        wire.head(reply, _HUGE_BYTES)
        left = _HUGE_BYTES - len(_OPENING) - len(_ENDING)
        wire.write(_OPENING)
        blanks = b" " * 65_536
        while left > 0:
            wire.write(blanks[:left])
            left -= len(blanks)
        wire.write(_ENDING)

    return Reply(200, b"", send=send)


_BOMB_MEMBER_BYTES = 8 * 1024 * 1024
_BOMB_MEMBERS = 128


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """1 GiB in 1 MB: a gzip file may have many members; the same one is repeated 128 times."""
    member = gzip.compress(b" " * _BOMB_MEMBER_BYTES)
    return gzip.compress(_OPENING) + member * _BOMB_MEMBERS + gzip.compress(_ENDING)


@fault("gzip-bomb")
def _gzip_bomb(_: Call, __: Reply) -> Reply:
    """Send 1 MB of gzip that decompresses to 1 GiB."""

    def send(wire: Wire, reply: Reply) -> None:
        wire.head(reply, len(_bomb()), encoding="gzip")
        wire.write(_bomb())

    return Reply(200, b"", send=send)
