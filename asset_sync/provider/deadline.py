"""HTTP with a deadline, without redirects and retries, and with errors that hold no secret.

A socket's own time-out starts again with every byte, so a server that sends its headers slowly can
hold a call for hours. Here a timer ends the call by shutting down its connections. Then every wait
on them, also in the TLS handshake and in a proxy's tunnel, reads the end of the stream at once.
"""

import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Self, TypeAlias
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.poolmanager import ProxyManager

from asset_sync import __version__
from asset_sync.clock import monotonic

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, SupportsRead
    from requests.sessions import _Settings

Auth: TypeAlias = Callable[[requests.PreparedRequest], requests.PreparedRequest]

FAILURES = (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError)
"""All errors that sessions have raised so far. ValueError covers UnicodeError."""


class Session(requests.Session):
    """A session whose calls obey the current `Deadline`.

    It always has an `auth`, even one that adds nothing: otherwise requests would take one from
    ~/.netrc. The rest of the environment is used, such as HTTPS_PROXY and REQUESTS_CA_BUNDLE.
    """

    def __init__(self, headers: Mapping[str, str], auth: Auth = lambda request: request) -> None:
        super().__init__()
        self.auth = auth
        self.headers["User-Agent"] = f"asset-sync/{__version__}"
        self.headers.update(headers)
        for scheme in ("http://", "https://"):
            self.mount(scheme, _DeadlineAdapter())

    def merge_environment_settings(
        self,
        url: str | bytes | None,
        proxies: MutableMapping[str, str] | None,
        stream: bool | None,  # noqa: FBT001
        verify: bool | str | None,  # noqa: FBT001
        cert: str | tuple[str, str] | None,
    ) -> "_Settings":
        """Return the environment's settings, but without a proxy for this host itself.

        A proxy on another host would get the key without TLS, and could not reach this host anyway.
        """
        settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
        host = urlsplit(url.decode() if isinstance(url, bytes) else url or "").hostname
        if _is_loopback(host or ""):
            settings["proxies"] = {}
        return settings

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        """Return None, so that no redirect is prepared.

        Even with `allow_redirects=False`, requests would read the whole body, however large, to
        prepare one.
        """
        return None


def _is_loopback(host: str) -> bool:
    """Return whether this name or address means this host, in any way of writing it."""
    if host.rstrip(".").split(".")[-1] == "localhost":
        return True
    with suppress(OSError):  # 127.1 and 0x7f.0.0.1 are addresses, too
        return socket.inet_aton(host)[0] in (0, 127)
    with suppress(ValueError):
        address = ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return address.is_unspecified or (mapped or address).is_loopback
    return False


# The first match counts: a time-out while connecting is both a Timeout and a ConnectionError.
_REASONS: tuple[tuple[type[requests.RequestException], str], ...] = (
    (requests.exceptions.InvalidURL, "its address is not a URL, check {setting}"),
    (requests.exceptions.MissingSchema, "its address is not a URL, check {setting}"),
    (requests.exceptions.InvalidSchema, "no way to reach it, check {setting} and the proxy"),
    (requests.exceptions.ProxyError, "the proxy did not connect to it, check HTTPS_PROXY"),
    (requests.exceptions.ConnectTimeout, "it did not accept the connection in time"),
    (requests.exceptions.Timeout, "it stopped sending before the answer was whole"),
    (requests.exceptions.ContentDecodingError, "its answer is marked as gzip, but is not gzip"),
    (requests.exceptions.ChunkedEncodingError, "the connection broke before the answer was whole"),
)


def reason(error: BaseException, *, setting: str) -> str:
    """Return what went wrong; the text of requests may hold an address or a proxy's password.

    `setting` is the name of the setting that holds the address.
    """
    for kind, text in _REASONS:
        if isinstance(error, kind):
            return text.format(setting=setting)
    if isinstance(error, requests.exceptions.SSLError):
        return f"no TLS connection that can be trusted{_detail(error)}"
    return f"the connection failed{_detail(error)}"


def _detail(error: BaseException) -> str:
    """Return the operating system's message: "Connection refused", "Name not known"."""
    seen: set[int] = set()
    found = ""
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.strerror:
            found = f" ({current.strerror})"
        current = current.__cause__ or current.__context__
    return found


# --- the deadline -----------------------------------------------------------------------------


class Deadline:
    """The deadline of one call, which watches every connection that the call uses."""

    def __init__(self, seconds: float, may_send: Callable[[], bool] = lambda: True) -> None:
        """Set the deadline; `may_send` is called immediately before the request is written."""
        self._ends = monotonic() + seconds
        self._may_send = may_send
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.expired = False
        self.sent_at: float | None = None
        """When the first byte of the request was about to be written, by `clock.monotonic`."""

    def __enter__(self) -> Self:
        self._timer.start()
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._outer)
        self._timer.cancel()
        self._timer.join()
        for sock in self._sockets:
            sock.close()

    def watch(self, sock: socket.socket) -> None:
        """Shut `sock` down when the time is over; raises TimeoutError if it is over already.

        This watches a second descriptor of the same connection: TLS takes over the first one, and
        its number may soon belong to another file.
        """
        with self._lock:
            if self.expired:
                raise TimeoutError
            self._sockets.append(socket.socket(fileno=os.dup(sock.fileno())))

    def connect(self, dial: Callable[[], socket.socket]) -> socket.socket:
        """Return the socket that `dial` opens; raises TimeoutError when that takes too long.

        A separate thread does it, because resolving a name, or trying many dead addresses, may take
        any time and cannot be interrupted, not even by Ctrl-C. After a time-out the thread ends
        when the resolver does, and closes what it opened.
        """
        opened: Future[socket.socket] = Future()
        threading.Thread(target=_dial_into, args=(opened, dial), daemon=True).start()
        try:
            sock = opened.result(max(0.0, self._ends - monotonic()))
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

    def send(self) -> None:
        """Note that the request is written now; raises TimeoutError if it is too late for that.

        The timer alone does not suffice: it is late if the host was suspended since the call began.
        """
        if self.sent_at is not None:
            return
        if monotonic() >= self._ends or not self._may_send():
            self._expire()
            raise TimeoutError
        self.sent_at = monotonic()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for sock in self._sockets:
                with suppress(OSError):  # the server may have closed it a moment before
                    sock.shutdown(socket.SHUT_RDWR)


def _dial_into(opened: Future[socket.socket], dial: Callable[[], socket.socket]) -> None:
    """Put the socket, or the error, into the future; close the socket if nobody waits for it."""
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


_current: ContextVar[Deadline] = ContextVar("the deadline of the current call")


class _WatchedConnection(HTTPConnection):
    """A connection whose sockets the current `Deadline` watches."""

    _connecting = False

    def connect(self) -> None:
        self._connecting = True  # data sent to a proxy now is not the request
        try:
            super().connect()
        finally:
            self._connecting = False

    def send(
        self, data: "SupportsRead[bytes] | Iterable[ReadableBuffer] | ReadableBuffer | str"
    ) -> None:
        if not self._connecting:
            if self.sock is None:
                self.connect()
            _current.get().send()
        super().send(data)

    def _new_conn(self) -> socket.socket:
        return _current.get().connect(super()._new_conn)

    def putrequest(self, method: str, url: str, *skip: bool, **skips: bool) -> None:
        if self.sock is not None:  # kept alive since an earlier call, whose deadline is over
            _current.get().watch(self.sock)
        super().putrequest(method, url, *skip, **skips)


class _WatchedTLSConnection(_WatchedConnection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}


class _DeadlineAdapter(HTTPAdapter):
    """Requests' adapter, whose connections obey the current `Deadline`."""

    def __init__(self) -> None:
        super().__init__(max_retries=0)  # each HTTP request takes a slot of the rate limit
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: object) -> ProxyManager:
        """Return the manager of this proxy; a SOCKS proxy keeps its own way to connect."""
        manager: ProxyManager = super().proxy_manager_for(proxy, **options)
        if proxy.lower().startswith("socks"):
            _current.get().send()  # its own connection does not report when it sends
        else:
            manager.pool_classes_by_scheme = _POOLS
        return manager
