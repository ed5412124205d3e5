"""Writes the lines for cron or the units for systemd that start the two jobs.

Neither contains a secret. Secrets are passed as paths of files; if a secret is set only as a plain
variable, the user first has to write it to a file.
"""

import difflib
import os
import pwd
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asset_sync.database.embedded import data_directory
from asset_sync.errors import AssetSyncError
from asset_sync.model import Lane
from asset_sync.schedule import crontab
from asset_sync.schedule.programs import run
from asset_sync.settings import (
    CONFIG_VARIABLE,
    LIBPQ_VARIABLES,
    PLAIN_VARIABLES,
    SECRET_VARIABLES,
    Settings,
)

SYSTEM_UNITS = Path("/etc/systemd/system")

SECRET_FILES: Mapping[str, str] = {
    "POLYGON_API_KEY": "polygon.key",
    "MASSIVE_API_KEY": "massive.key",
    "DATABASE_URL": "database.url",
    "DB_PASSWORD": "database.password",
    "REDIS_URL": "redis.url",
    "PING_URL": "ping.url",
}
"""The name of each secret's file if the user has not chosen one."""

# The variables that a job needs from the shell's environment, besides those of asset-sync.
_FILES = (
    *("PGPASSFILE", "PGSERVICEFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
_NETWORK = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
_PLAIN = (*PLAIN_VARIABLES, *LIBPQ_VARIABLES, "PGSSLMODE", *_NETWORK)

_CRON_COMMAND_BYTES = 990  # cron's own limit is 998


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


@dataclass(frozen=True, slots=True)
class File:
    """A unit file of systemd and its wanted content."""

    path: Path
    text: str


# --- what this installation is ---------------------------------------------------------------


def installation(settings: Settings, environ: Mapping[str, str]) -> Installation:
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
    return _config_home(environ) / "asset-sync"


def _config_home(environ: Mapping[str, str]) -> Path:
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


# --- cron --------------------------------------------------------------------------------------


def cron_block(this: Installation) -> str:
    """Return the lines for the crontab, with the marks around them. Raises ScheduleError."""
    times = _cron_times(this.interval_minutes)
    jobs = "".join(f"{times}  {_cron_command(this, lane)}\n" for lane in Lane)
    return (
        f"{crontab.BEGIN}: written by `asset-sync schedule cron --install`;"
        " `--remove` takes it out.\n"
        f"{jobs}"
        f"{crontab.END}\n"
    )


def _cron_command(this: Installation, lane: Lane) -> str:
    variables = [
        *(f"{name}={value}" for name, value in this.environment),
        *(f"{name}_FILE={path}" for name, path in this.secrets),
    ]
    words = [*(["env", *variables] if variables else []), *this.program, "sync", lane.value, "-q"]
    for word in words:
        if re.search(r"[\\\n\r]", word):
            raise ScheduleError(
                f"cron cannot be given {word!r}: it holds a backslash or a line break; choose"
                " another path or value."
            )
    # cron takes % for a line break, and \% for %.
    command = shlex.join(words).replace("%", r"\%")
    if len(os.fsencode(command)) > _CRON_COMMAND_BYTES:
        raise ScheduleError(
            f"The job's command is {len(os.fsencode(command))} bytes long, and cron takes at most"
            f" {_CRON_COMMAND_BYTES}: move variables into assets.toml, or choose shorter paths."
        )
    return command


def _cron_times(minutes: float) -> str:
    match _divisor(minutes):
        case 1, "minutes":
            return "* * * * *"
        case step, "minutes":
            return f"*/{step} * * * *"
        case 1, "hours":
            return "0 * * * *"
        case 24, "hours":
            return "0 0 * * *"
        case step, "hours":
            return f"0 */{step} * * *"
        case _:
            raise ScheduleError(
                f"cron cannot start a job every {minutes:g} minutes. Set batch.interval_minutes to"
                f" {_POSSIBLE}."
            )


_POSSIBLE = "1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, or to 2, 3, 4, 6, 8, 12 or 24 hours"


def _divisor(minutes: float) -> tuple[int, str] | None:
    """Return the interval in the largest unit that cron can repeat evenly."""
    if minutes < 60 and 60 % minutes == 0 and minutes == int(minutes):  # noqa: PLR2004
        return int(minutes), "minutes"
    if minutes % 60 == 0 and 24 % (minutes / 60) == 0:
        return int(minutes / 60), "hours"
    return None


def install_in_cron(block: str) -> str:
    """Put the block into the user's crontab; return the difference. Raises CrontabError."""
    before = crontab.read()
    return _write(before, crontab.with_block(before, os.fsencode(block)))


def remove_from_cron() -> str:
    """Take the block out of the user's crontab; return the difference, empty if it has none."""
    before = crontab.read()
    return _write(before, crontab.without_block(before))


def _write(before: bytes, after: bytes) -> str:
    if before != after:
        crontab.write(after)
    shown = (table.decode(errors="backslashreplace") for table in (before, after))
    return difference("crontab", *shown)


def difference(name: str, before: str, after: str) -> str:
    """Return what changes, as `diff -u` shows it."""
    old, new = (text.removesuffix("\n").split("\n") if text else [] for text in (before, after))
    lines = difflib.unified_diff(old, new, f"{name} (before)", f"{name} (now)", lineterm="")
    return "\n".join(line.rstrip("\r") for line in lines)


# --- systemd -----------------------------------------------------------------------------------

_WHAT = {
    Lane.PRIORITY: "refresh the priority assets",
    Lane.QUEUE: "refresh all other assets",
}

_HARDENING = """\
# All that it needs is the network and its own files.
DynamicUser=yes
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
MemoryMax=256M
"""


def system_units(this: Installation, directory: Path) -> tuple[File, ...]:
    """Return units whose jobs run as a separate user with minimal rights.

    Raises ScheduleError if such a user could not reach what the job needs.
    """
    if this.embedded:
        raise ScheduleError(
            "The system's units run as a separate user, which cannot use your embedded PostgreSQL:"
            " set DATABASE_URL_FILE to a server's address, or use"
            " `asset-sync schedule systemd --user` or `asset-sync schedule cron`."
        )
    needed = [Path(this.program[0])]
    needed += [] if this.settings_file is None else [this.settings_file]
    for path in needed:
        if any(path.is_relative_to(home) for home in ("/home", "/root", "/run/user")):
            raise ScheduleError(
                f"The system's units cannot read home directories, and {path} is in one: install in"
                " /opt/asset-sync and keep the settings in /etc/asset-sync, or use --user."
            )
    credentials = [(name, SECRET_FILES[name], path) for name, path in this.secrets]
    handed_over = "".join(
        [
            "# root reads the files of the secrets, the job sees copies of its own.\n",
            *(f"LoadCredential={file}:{_word(str(path))}\n" for _, file, path in credentials),
            *(f"Environment={name}_FILE=%d/{file}\n" for name, file, _ in credentials),
        ]
    )
    unit = "Wants=network-online.target\nAfter=network-online.target postgresql.service\n"
    return _units(this, directory, unit, f"{handed_over}{_variables(this)}\n{_HARDENING}")


def user_units(this: Installation, directory: Path) -> tuple[File, ...]:
    """Return units whose jobs run as this user, started by the user's own systemd."""
    files = "".join(f"Environment={name}_FILE={_word(str(path))}\n" for name, path in this.secrets)
    rest = f"{files}{_variables(this)}\nUMask=0077\nNoNewPrivileges=yes\n"
    return _units(this, directory, "", rest)


def user_units_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user's systemd units."""
    return _config_home(environ) / "systemd" / "user"


def _units(this: Installation, directory: Path, unit: str, service: str) -> tuple[File, ...]:
    when = _calendar(this.interval_minutes)
    seconds = round(this.interval_minutes * 60) + 60
    program = " ".join(_word(word).replace("$", "$$") for word in this.program)
    files = []
    for lane in Lane:
        head = f"[Unit]\nDescription=asset-sync: {_WHAT[lane]}\n"
        files += [
            File(
                directory / f"asset-sync-{lane.value}.service",
                f"{head}{unit}\n"
                "[Service]\n"
                "Type=oneshot\n"
                "# With --log-format json the journal gets an object a line.\n"
                f"ExecStart={program} sync {lane.value}\n"
                "# A run ends by itself within the interval; this is for a machine that hangs.\n"
                f"TimeoutStartSec={seconds}\n\n"
                f"{service}",
            ),
            File(
                directory / f"asset-sync-{lane.value}.timer",
                f"{head}\n"
                "[Timer]\n"
                "# As often as batch.interval_minutes says.\n"
                f"OnCalendar={when}\n"
                "AccuracySec=1s\n\n"
                "[Install]\n"
                "WantedBy=timers.target\n",
            ),
        ]
    return tuple(files)


def _variables(this: Installation) -> str:
    return "".join(f"Environment={name}={_word(value)}\n" for name, value in this.environment)


def _word(text: str) -> str:
    if re.search(r"[\s\"'\\]", text):
        raise ScheduleError(
            f"systemd's units cannot be given {text!r}: it holds a blank, a quote or a backslash;"
            " choose another path or value, or take `asset-sync schedule cron`."
        )
    return text.replace("%", "%%")


def _calendar(minutes: float) -> str:
    match _divisor(minutes):
        case step, "minutes":
            return f"*:0/{step}"
        case 24, "hours":
            return "0:00"
        case step, "hours":
            return f"0/{step}:00"
        case _:
            raise ScheduleError(
                f"A timer cannot start a job every {minutes:g} minutes all day long. Set"
                f" batch.interval_minutes to {_POSSIBLE}."
            )


def install_units(files: tuple[File, ...]) -> str:
    """Write the units; return the difference. Raises ScheduleError."""
    changes = []
    try:
        for file in files:
            before = file.path.read_text(errors="replace") if file.path.exists() else ""
            if before != file.text:
                changes.append(difference(str(file.path), before, file.text))
                file.path.parent.mkdir(parents=True, exist_ok=True)
                file.path.write_text(file.text)
    except OSError as error:
        raise _cannot_write(error) from None
    return "\n".join(changes)


def remove_units(directory: Path) -> tuple[Path, ...]:
    """Delete the units; return those that existed. Raises ScheduleError."""
    there = [
        path
        for lane in Lane
        for kind in ("service", "timer")
        if (path := directory / f"asset-sync-{lane.value}.{kind}").exists()
    ]
    try:
        for path in there:
            path.unlink()
    except OSError as error:
        raise _cannot_write(error) from None
    return tuple(there)


def _cannot_write(error: OSError) -> ScheduleError:
    return ScheduleError(
        f"{error.filename} cannot be written ({error.strerror}): run this as root, or take --user."
    )


TIMERS = tuple(f"asset-sync-{lane.value}.timer" for lane in Lane)


def systemctl(*arguments: str) -> str:
    """Run systemctl; return why it failed, empty if it did not."""
    ended = run("systemctl", *arguments)
    if ended is None:
        return "there is no program `systemctl` here"
    return "" if ended.code == 0 else f"`systemctl {shlex.join(arguments)}` {ended.reason}"
