"""No call lasts longer than it may, whatever the server does.

A socket's own time-out starts anew with every byte, so a server that drips its headers holds a
call for hours. Here a timer ends the call by shutting its connections down: whatever waits on
them, TLS handshake and proxy tunnel included, reads the end of the stream at once.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import ProxyManager


class Deadline:
    """The end of one call; every connection that the call uses is under its watch."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []
        self.expired = False

    def __enter__(self) -> Self:
        self._timer.start()
        self._outer = _ongoing.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _ongoing.reset(self._outer)
        self._timer.cancel()
        self._timer.join()
        for line in self._lines:
            line.close()

    def watch(self, sock: socket.socket) -> None:
        """Shut `sock` down when the time is over; raises TimeoutError when it is already.

        The watch is kept on a second descriptor of the same connection: the first one is handed
        on when TLS begins, and its number may soon belong to another file.
        """
        with self._lock:
            if self.expired:
                raise TimeoutError
            self._lines.append(socket.socket(fileno=os.dup(sock.fileno())))

    def connect(self, dial: Callable[[], socket.socket]) -> socket.socket:
        """Return the socket that `dial` opens; raises TimeoutError when that takes too long.

        A name that does not resolve and a host with many dead addresses take as long as they
        like and cannot be interrupted, not even by Ctrl-C, so a thread of its own does it. One
        that is given up ends when the resolver does, and closes what it opened.
        """
        opened: Future[socket.socket] = Future()
        threading.Thread(target=_dial_into, args=(opened, dial), daemon=True).start()
        try:
            sock = opened.result(max(0.0, self._ends - time.monotonic()))
        except TimeoutError:
            self._expire()
            raise
        finally:
            opened.cancel()
        try:
            self.watch(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for line in self._lines:
                with suppress(OSError):  # the server may have hung up a moment before
                    line.shutdown(socket.SHUT_RDWR)


def _dial_into(opened: Future[socket.socket], dial: Callable[[], socket.socket]) -> None:
    try:
        sock = dial()
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
        if opened.set_running_or_notify_cancel():
            opened.set_exception(error)
        return
    if opened.set_running_or_notify_cancel():
        opened.set_result(sock)
    else:
        sock.close()


_ongoing: ContextVar[Deadline] = ContextVar("the deadline of the call that is going on")


class _Watched(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _ongoing.get().connect(super()._new_conn)

    def putrequest(self, method: str, url: str, *skip: bool, **skips: bool) -> None:
        if self.sock is not None:  # kept alive since an earlier call, whose watch is over
            _ongoing.get().watch(self.sock)
        super().putrequest(method, url, *skip, **skips)


class _WatchedTLS(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


_POOLS = {"http": _Pool, "https": _TLSPool}


class DeadlineAdapter(HTTPAdapter):
    """Requests' adapter, whose connections obey the `Deadline` that is going on."""

    def __init__(self) -> None:
        super().__init__(max_retries=0)  # each HTTP request takes a slot of the rate limit
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: object) -> ProxyManager:
        """Return the manager of this proxy; a SOCKS one keeps its own way to connect."""
        manager: ProxyManager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager
