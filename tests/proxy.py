"""A TCP proxy in front of the tests' PostgreSQL that imitates faults of a network."""

import select
import socket
import threading
from pathlib import Path
from typing import Self

from psycopg2.extensions import make_dsn, parse_dsn

_CHUNK = 1 << 16


class Proxy:
    """Forwards from a port of 127.0.0.1 to the server at the address, until told otherwise."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._server = _server_of(url)
        self._lock = threading.RLock()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._deaf = False
        self._losing = b""
        self._doomed: set[socket.socket] = set()
        self.lost = 0
        """How many answers it has not forwarded."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._over = False
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        self.die()

    @property
    def url(self) -> str:
        """The server's address through this proxy."""
        return str(make_dsn(self._url, host="127.0.0.1", port=self.port))

    def freeze(self, *, new_ones: bool = True) -> None:
        """Stop forwarding and keep all sockets open; new connections freeze too, unless allowed."""
        with self._lock:
            self._frozen.update(self._peers)
            self._deaf = new_ones

    def cut(self) -> None:
        """Close every connection; new ones are accepted."""
        with self._lock:
            for one in list(self._clients):
                self._close(one)

    def die(self) -> None:
        """Close every connection and stop listening."""
        with self._lock:
            self._listener.close()
            self.cut()

    def revive(self) -> None:
        """Listen again, on the same port."""
        with self._lock:
            self._listener = socket.create_server(("127.0.0.1", self.port))

    def lose_the_answer_to(self, words: str) -> None:
        """Forward the next message with these words, and close the connection before the answer."""
        with self._lock:
            self._losing = words.encode()

    def _serve(self) -> None:
        while not self._over:
            with self._lock:
                watched = [one for one in self._peers if one not in self._frozen]
                if not self._deaf and self._listener.fileno() >= 0:
                    watched.append(self._listener)
            readable, _, _ = select.select(watched, [], [], 0.01)
            with self._lock:
                for one in readable:
                    if one is self._listener and one.fileno() >= 0:
                        self._accept()
                    elif one in self._peers and one not in self._frozen:
                        self._forward(one)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(self._server[0])
        try:
            server.connect(self._server[1])
        except OSError:
            server.close()
            client.close()
            return
        self._peers[client], self._peers[server] = server, client
        self._clients.add(client)

    def _forward(self, one: socket.socket) -> None:
        other = self._peers[one]
        try:
            data = one.recv(_CHUNK)
            if one in self._clients and self._losing and self._losing in data:
                self._losing = b""
                self._doomed.add(other)
            if one in self._doomed:
                self.lost += 1
                data = b""
            if data:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(one)

    def _close(self, one: socket.socket) -> None:
        for end in (one, self._peers[one]):
            del self._peers[end]
            self._clients.discard(end)
            self._doomed.discard(end)
            self._frozen.discard(end)
            end.close()


def _server_of(url: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    parts = parse_dsn(url)
    host, port = parts.get("host", "localhost"), int(parts.get("port", 5432))
    if host.startswith("/"):
        return socket.AF_UNIX, str(Path(host) / f".s.PGSQL.{port}")
    return socket.AF_INET, (host, port)
