"""The units that have systemd start the two jobs: the system's own systemd, or this user's."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asset_sync.model import Lane
from asset_sync.schedule.installation import (
    POSSIBLE_INTERVALS,
    SECRET_FILES,
    Installation,
    ScheduleError,
    config_home,
    difference,
)
from asset_sync.schedule.programs import run

SYSTEM_UNITS = Path("/etc/systemd/system")
TIMERS = tuple(f"asset-sync-{lane.value}.timer" for lane in Lane)

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


@dataclass(frozen=True, slots=True)
class File:
    """A unit file of systemd and its wanted content."""

    path: Path
    text: str


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
    return config_home(environ) / "systemd" / "user"


def _units(this: Installation, directory: Path, unit: str, service: str) -> tuple[File, ...]:
    when = _calendar(this)
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


def _calendar(this: Installation) -> str:
    match this.interval:
        case step, "minutes":
            return f"*:0/{step}"
        case 24, "hours":
            return "0:00"
        case step, "hours":
            return f"0/{step}:00"
        case _:
            raise ScheduleError(
                f"A timer cannot start a job every {this.interval_minutes:g} minutes all day long."
                f" Set batch.interval_minutes to {POSSIBLE_INTERVALS}."
            )


def install(files: tuple[File, ...]) -> str:
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


def remove(directory: Path) -> tuple[Path, ...]:
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


def systemctl(*arguments: str) -> str:
    """Run systemctl; return why it failed, empty if it did not."""
    ended = run("systemctl", *arguments)
    if ended is None:
        return "there is no program `systemctl` here"
    return "" if ended.code == 0 else f"`systemctl {shlex.join(arguments)}` {ended.reason}"
