"""The HTTP of the stand-in: connections, requests and how its answers are sent."""

import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from socketserver import TCPServer
from struct import pack
from typing import TYPE_CHECKING, TypeAlias

from asset_sync.demo import control, refusals
from asset_sync.demo.wire import Reply

if TYPE_CHECKING:
    from asset_sync.demo.server import StandIn

_POLL_SECONDS = 0.02
_MOST_POSTED_BYTES = 65_536
_NO_LINGER = pack("ii", 1, 0)


class Handler(BaseHTTPRequestHandler):
    """One connection; the `Wire` of its answers."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def do_GET(self) -> None:
        """Answer a call; half of its latency passes before it counts as arrived, half after.

        What was sent arrives, whether or not the client still waits for the answer.
        """
        api = self.server.api
        if self.path.startswith(control.PREFIX):
            asks_for_log = self.path == control.LOG_PATH
            return self._send(control.answer(api, self.path, b"[]") if asks_for_log else None)
        half_seconds = api.draw_latency() / 2
        stopped = self.server.stopping.wait(half_seconds)
        while not stopped and api.frozen_seconds() > 0:
            stopped = self.server.stopping.wait(_POLL_SECONDS)
        if stopped:
            return self.hang_up()
        host = self.headers.get("Host") or f"127.0.0.1:{self.server.server_port}"
        reply = api.answer(self.path, self.headers.get("Authorization"), f"http://{host}")
        if self.give_up(half_seconds):
            return self.hang_up()
        return self._send(reply)

    def do_POST(self) -> None:
        """Set the faults, the plan or a freeze; the API itself takes no POST."""
        length = self.headers.get("Content-Length", "")
        is_short = length.isdecimal() and int(length) <= _MOST_POSTED_BYTES
        if self.path not in control.POSTED or not is_short:
            self.hang_up()  # with a body unread, the next request could not be found
            return self._send(None)
        return self._send(control.answer(self.server.api, self.path, self.rfile.read(int(length))))

    def _send(self, reply: Reply | None) -> None:
        found = reply or refusals.unknown_path()
        found.send(self, found)

    def head(self, reply: Reply, length: int, *, encoding: str | None = None) -> None:
        """Send the status line and the headers, announcing `length` bytes."""
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(length))
        if encoding is not None:
            self.send_header("Content-Encoding", encoding)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def give_up(self, seconds: float) -> bool:
        """Wait that long; True as soon as the server stops or, at the end, the client has gone."""
        return self.server.stopping.wait(seconds) or self._client_has_gone()

    def _client_has_gone(self) -> bool:
        try:
            return not self.connection.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def accepts_gzip(self) -> bool:
        """Whether the client said so."""
        return "gzip" in self.headers.get("Accept-Encoding", "")

    def hang_up(self) -> None:
        """Close the connection after what has been sent."""
        self.close_connection = True

    def reset(self) -> None:
        """Close the connection now: without lingering, closing it sends a TCP reset."""
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
        for part in (self.rfile, self.wfile, self.connection):
            part.close()
        raise ConnectionResetError

    def version_string(self) -> str:
        """Name the server, for the header `Server`."""
        return "asset-sync stand-in"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Print nothing: the log is `StandIn.log`."""


_Request: TypeAlias = socket | tuple[bytes, socket]


class Server(ThreadingHTTPServer):
    """Knows its open connections, so that it can end them all at once."""

    daemon_threads = True
    request_queue_size = 128  # many processes may start at once

    def __init__(self, address: tuple[str, int], api: "StandIn") -> None:
        self.api = api
        self.stopping = threading.Event()
        self._connections: dict[threading.Thread, socket] = {}
        super().__init__(address, Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="stand-in", daemon=True
        )

    def server_bind(self) -> None:
        """Bind without asking the name service who 127.0.0.1 is, as HTTPServer would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def begin(self) -> None:
        """Serve in the background."""
        self._thread.start()

    def end(self) -> None:
        """Wake and hang up on everybody; a second is enough for the rest."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        deadline = time.monotonic() + 1
        for thread, connection in list(self._connections.items()):
            with suppress(OSError):  # it has closed by itself
                connection.shutdown(SHUT_RDWR)
            thread.join(max(0.0, deadline - time.monotonic()))
        self.server_close()

    def process_request(self, request: _Request, client_address: object) -> None:
        """As ThreadingMixIn does it, remembering the connection before it can end."""
        if not isinstance(request, socket):  # only UDP servers get a pair
            raise TypeError(request)
        thread = threading.Thread(
            target=self._converse, args=(request, client_address), daemon=True
        )
        self._connections[thread] = request
        thread.start()

    def _converse(self, request: socket, client_address: tuple[str, int]) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def handle_error(self, request: _Request, client_address: object) -> None:
        """Show bugs; a client that goes away is not one."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
