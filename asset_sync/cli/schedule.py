"""`asset-sync schedule cron | systemd`: let cron or systemd start the jobs."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from asset_sync.cli.options import Common, with_common_options
from asset_sync.cli.output import err, err_raw, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.errors import ExitCode
from asset_sync.schedule import cron, installed, systemd
from asset_sync.schedule.installation import Installation, ScheduleError, this_installation
from asset_sync.schedule.installed import Job
from asset_sync.schedule.systemd import File

Install = Annotated[bool, typer.Option("--install", help="Show the difference, then install it.")]
Remove = Annotated[bool, typer.Option("--remove", help="Remove what --install installed.")]
Users = Annotated[
    bool | None,
    typer.Option(
        "--user/--system",
        help="Units of this user or of the system: root's default is the system.",
        show_default=False,
    ),
]


@with_common_options
def schedule_cron(
    options: Common,
    install: Install = False,
    remove: Remove = False,
) -> None:
    """Print the crontab's lines for this installation; --install adds them to your crontab.

    Only asset-sync's own block changes; the rest of the crontab stays byte for byte.

    Example: asset-sync schedule cron --install
    """
    _ensure_one(install, remove)
    if remove:
        difference = cron.remove()
        _show(difference)
        options.say(_removed("The crontab", difference))
        return
    this = _installation(options, install)
    block = cron.block(this)
    if not install:
        out_raw(block.rstrip("\n"))
        return
    _ensure_free(installed.jobs_of_systemd(), "systemd", "asset-sync schedule systemd --remove")
    _ensure_free(installed.jobs_outside_the_block(), "cron", "crontab -e")
    difference = cron.install(block)
    _show(difference)
    options.say(_installed("The crontab", difference))


@with_common_options
def schedule_systemd(
    options: Common,
    install: Install = False,
    remove: Remove = False,
    users: Users = None,
) -> None:
    """Print systemd's units for this installation; --install writes and starts them.

    Example: asset-sync schedule systemd --user
    """
    _ensure_one(install, remove)
    for_user = os.geteuid() != 0 if users is None else users
    directory = systemd.user_units_directory(os.environ) if for_user else systemd.SYSTEM_UNITS
    scope = ["--user"] if for_user else []
    if remove:
        _remove_units(options, directory, scope)
        return
    this = _installation(options, install)
    make = systemd.user_units if for_user else systemd.system_units
    files = make(this, directory)
    if not install:
        out_raw("\n".join(f"# {file.path}\n{file.text}" for file in files).rstrip("\n"))
        return
    in_cron = [job for job in installed.jobs() if job.scheduler is installed.Scheduler.CRON]
    _ensure_free(tuple(in_cron), "cron", "asset-sync schedule cron --remove, or crontab -e")
    _install_units(options, files, scope)
    if for_user:
        options.say("So that they run while you are not logged in: loginctl enable-linger")


def _ensure_one(install: bool, remove: bool) -> None:
    if install and remove:
        raise typer.BadParameter("--install and --remove exclude each other.")


def _installation(options: Common, install: bool) -> Installation:
    """Return what is to be scheduled; install nothing if the user must do a step first."""
    this = this_installation(settings_for(options), os.environ)
    if this.steps:
        err("The jobs do not have this shell's variables. First put the secrets into files:")
        for step in this.steps:
            err_raw(f"  {step}")  # to be typed, so never broken
    if this.steps and install:
        raise ScheduleError("Nothing was installed; run that, then this again.")
    return this


def _ensure_free(found: tuple[Job, ...], scheduler: str, cure: str) -> None:
    """Refuse if the jobs are already started in another way."""
    if found:
        where = "; ".join(f"sync {job.lane.value} ({job.where})" for job in found)
        raise ScheduleError(
            f"{scheduler} already starts {where}. Each job needs one starter: take that out first"
            f" ({cure}). Nothing was changed."
        )


def _install_units(options: Common, files: tuple[File, ...], scope: list[str]) -> None:
    difference = systemd.install(files)
    _show(difference)
    commands = [[*scope, "daemon-reload"], [*scope, "enable", "--now", *systemd.TIMERS]]
    for command in commands:
        why_not = systemd.systemctl(*command)
        if why_not:
            err(f"The units are written, but nothing starts them yet: {why_not}. Run:")
            for one in commands:
                err_raw(f"  systemctl {shlex.join(one)}")
            raise typer.Exit(ExitCode.SOME_FAILED)
    options.say(_installed("systemd", difference))


def _remove_units(options: Common, directory: Path, scope: list[str]) -> None:
    systemd.systemctl(*scope, "disable", "--now", *systemd.TIMERS)
    removed = systemd.remove(directory)
    systemd.systemctl(*scope, "daemon-reload")
    for path in removed:
        out_raw(f"removed {path}")
    options.say(_removed("systemd", "".join(map(str, removed))))


def _show(difference: str) -> None:
    if difference:
        out_raw(difference)


def _installed(where: str, difference: str) -> str:
    if difference:
        return (
            f"{where} starts the jobs from now on; `asset-sync doctor` looks whether all is well."
        )
    return f"{where} was as it should be; nothing was changed."


def _removed(where: str, difference: str) -> str:
    if difference:
        return f"{where} starts the jobs no more."
    return f"{where} has no jobs of `asset-sync schedule`; nothing was changed."
