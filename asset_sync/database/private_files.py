"""A user's directories and files, kept safe from other accounts."""

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from asset_sync.database.errors import EmbeddedError

_LARGEST_FILE = 65536


def user_directory(variable: str, default: str, environ: Mapping[str, str]) -> Path | None:
    """Return one of a user's base directories by the XDG specification; None without a home.

    It ignores a relative path in the variable, as the specification demands.
    """
    base = Path(environ.get(variable, ""))
    if base.is_absolute():
        return base
    try:
        return Path(environ.get("HOME") or "~").expanduser().absolute() / default
    except RuntimeError:
        return None


def own_directory(path: Path) -> Path:
    """Return the real path of a directory that only this user can write, created if missing."""
    path = trusted_directory(path)
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_ISVTX:
        raise _unsafe(path, "is not yours alone")
    if status.st_mode & 0o022:
        path.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
    return path


def trusted_directory(path: Path) -> Path:
    """Return the real path of a directory that no other account can replace, created if missing.

    Each part of the path, links included, must belong to this user or root. Groups may write: with
    the umask 002 it is the user's own group. Raises EmbeddedError.
    """
    # In a container, root's directories may seem to belong to another account: the owner of `/`.
    trusted = {os.geteuid(), 0, Path("/").stat().st_uid}
    here = Path("/")
    try:
        for part in path.parts[1:]:
            here = here.parent if part == ".." else here / part
            if not os.path.lexists(here):
                here.mkdir(mode=0o700, exist_ok=True)
            status = here.lstat()
            if status.st_uid not in trusted:
                raise _unsafe(here, "belongs to another account")
            if stat.S_ISLNK(status.st_mode):
                here.stat()  # raises for a link that leads to itself
                here = trusted_directory(here.parent / here.readlink())
            elif status.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                raise _unsafe(here, "can be changed by every account")
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL needs the directory {path}, which cannot be made "
            f"({error.strerror}); set XDG_DATA_HOME to a directory that can, or DATABASE_URL."
        ) from error
    return here


def _unsafe(path: Path, why: str) -> EmbeddedError:
    return EmbeddedError(
        f"The embedded PostgreSQL cannot keep its data safe: {path} {why}. Correct its owner "
        "(chown) or mode (chmod o-w), set XDG_DATA_HOME to a directory of yours, or set "
        "DATABASE_URL."
    )


def open_file(path: Path, flags: int) -> int:
    """Open a file, but no link, and without blocking on a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode=0o600)


def read(path: Path) -> str:
    """Return the text of a file that another account may have made; empty if there is none."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, _LARGEST_FILE).decode(errors="replace")
    finally:
        os.close(descriptor)


def write(path: Path, text: str) -> None:
    """Write a file that only this user can read, completely or not at all."""
    new = path.with_name(f"{path.name}.new")
    descriptor = open_file(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time run the block."""
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
