"""What a job needs to run as it would in this shell, and what cron and systemd share.

None of it contains a secret. Secrets are passed as paths of files; if a secret is set only as a
plain variable, the user first has to write it to a file.
"""

import difflib
import os
import pwd
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asset_sync import bus
from asset_sync.database.embedded import data_directory
from asset_sync.errors import AssetSyncError
from asset_sync.settings import (
    CONFIG_VARIABLE,
    LIBPQ_VARIABLES,
    PLAIN_VARIABLES,
    SECRET_VARIABLES,
    Settings,
)

SECRET_FILES: Mapping[str, str] = {
    "POLYGON_API_KEY": "polygon.key",
    "MASSIVE_API_KEY": "massive.key",
    "DATABASE_URL": "database.url",
    "DB_PASSWORD": "database.password",
    bus.VARIABLE: f"{bus.NAME.lower()}.url",
    "PING_URL": "ping.url",
}
"""The name of each secret's file if the user has not chosen one."""

POSSIBLE_INTERVALS = "1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, or to 2, 3, 4, 6, 8, 12 or 24 hours"
"""The values of `batch.interval_minutes` that cron can repeat evenly."""

# The variables that a job needs from the shell's environment, besides those of asset-sync.
_FILES = (
    *("PGPASSFILE", "PGSERVICEFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
_NETWORK = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
_PLAIN = (*PLAIN_VARIABLES, *LIBPQ_VARIABLES, "PGSSLMODE", *_NETWORK)


class ScheduleError(AssetSyncError):
    """The jobs cannot be scheduled as asked; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What a job needs to run as it would in this shell."""

    program: tuple[str, ...]
    interval_minutes: float
    environment: tuple[tuple[str, str], ...]
    """Variables without a secret; paths are absolute."""

    secrets: tuple[tuple[str, Path], ...]
    """Each secret's variable, as POLYGON_API_KEY, and the file that holds it."""

    settings_file: Path | None
    """None for the file that came with the program."""

    embedded: bool
    """Whether the data is in the embedded PostgreSQL."""

    steps: tuple[str, ...] = ()
    """Command lines to run first: until then the jobs would fail."""

    @property
    def interval(self) -> tuple[int, str] | None:
        """The interval in the largest unit that cron can repeat evenly; None if there is none."""
        minutes = self.interval_minutes
        if minutes < 60 and 60 % minutes == 0 and minutes == int(minutes):  # noqa: PLR2004
            return int(minutes), "minutes"
        if minutes % 60 == 0 and 24 % (minutes / 60) == 0:
            return int(minutes / 60), "hours"
        return None


def this_installation(settings: Settings, environ: Mapping[str, str]) -> Installation:
    """Return what the jobs need; raises ScheduleError if they could not work."""
    if settings.provider.api_key is None:
        file = _secrets_directory(environ) / SECRET_FILES["POLYGON_API_KEY"]
        raise ScheduleError(
            "No key is set, so each run would fail. Write it into a file of mode 0600, such as"
            f" {file}, and set POLYGON_API_KEY_FILE to its path."
        )
    _refuse_passwords(environ)
    secrets = tuple(_secrets(environ))
    return Installation(
        program=_program(),
        interval_minutes=settings.batch.interval_minutes,
        environment=tuple(_environment(settings, environ)),
        secrets=secrets,
        settings_file=None if settings.shipped else settings.source.absolute(),
        embedded=settings.conninfo is None,
        steps=tuple(step for name, file in secrets for step in _steps(name, file, environ)),
    )


def _refuse_passwords(environ: Mapping[str, str]) -> None:
    """Raise if the jobs need a secret that cannot be put into a file."""
    for name in _NETWORK:
        if "@" in environ.get(name, ""):
            raise ScheduleError(
                f"{name} holds a password, which is not written into a schedule: set up a proxy"
                " without one, or write the jobs' lines yourself."
            )
    if environ.get("PGPASSWORD"):
        raise ScheduleError(
            "PGPASSWORD holds a password, which is not written into a schedule: put it into"
            " ~/.pgpass, which libpq reads by itself, and unset the variable."
        )


def _environment(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that the jobs need, none of which is secret."""
    if not settings.shipped:
        yield CONFIG_VARIABLE, str(settings.source.absolute())
    elif environ.get("XDG_CONFIG_HOME"):
        yield "XDG_CONFIG_HOME", environ["XDG_CONFIG_HOME"]
    for name in _PLAIN:
        if environ.get(name, "").strip():
            yield name, environ[name].strip()
    for name in _FILES:
        if environ.get(name):
            yield name, str(Path(environ[name]).absolute())
    if settings.conninfo is None:
        yield from _data_home(environ)


def _secrets(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    for name in SECRET_VARIABLES:
        path = environ.get(f"{name}_FILE", "").strip()
        if path:
            yield name, Path(path).absolute()
        elif environ.get(name, "").strip():
            yield name, _secrets_directory(environ) / SECRET_FILES[name]


def _program() -> tuple[str, ...]:
    """Return how to start asset-sync: by the program beside this Python, else as a module."""
    beside = Path(sys.executable).parent / "asset-sync"
    if os.access(beside, os.X_OK):
        return (str(beside),)
    return (sys.executable, "-m", "asset_sync")


def _secrets_directory(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/etc/asset-sync")
    return config_home(environ) / "asset-sync"


def config_home(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user's settings of all programs."""
    xdg = Path(environ.get("XDG_CONFIG_HOME", ""))
    return xdg if xdg.is_absolute() else _home(environ) / ".config"


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or _home_of_account())


def _home_of_account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise ScheduleError("This user has no account, so cron starts nothing for it.") from None


def _steps(name: str, file: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the command that puts the variable into the file, if it does not hold it yet."""
    value = environ.get(name, "").strip()
    try:
        there = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        there = ""
    if value and there != value:
        directory, shown = shlex.quote(str(file.parent)), shlex.quote(str(file))
        yield f"mkdir -p {directory} && (umask 077 && printenv {name} > {shown})"


def _data_home(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield XDG_DATA_HOME if cron, which only has the account's home, would look elsewhere."""
    ours = data_directory(environ)
    if data_directory({"HOME": _home_of_account()}) != ours:
        yield "XDG_DATA_HOME", str(ours.parent.parent)


def difference(name: str, before: str, after: str) -> str:
    """Return what changes, as `diff -u` shows it."""
    old, new = (text.removesuffix("\n").split("\n") if text else [] for text in (before, after))
    lines = difflib.unified_diff(old, new, f"{name} (before)", f"{name} (now)", lineterm="")
    return "\n".join(line.rstrip("\r") for line in lines)
