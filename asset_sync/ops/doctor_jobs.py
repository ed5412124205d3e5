"""Checks the jobs as cron or systemd will run them.

A job gets its variables, home and rights from its scheduler. So the settings are read again as the
job will read them, and compared with those of this shell.
"""

import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from asset_sync.database import DatabaseError, address_of
from asset_sync.database.embedded import data_directory
from asset_sync.ops.doctor import Finding, Grade
from asset_sync.schedule.installed import Job, Scheduler
from asset_sync.settings import (
    CONFIG_VARIABLE,
    SECRET_VARIABLES,
    Settings,
    SettingsError,
    load,
)

_SENDMAIL_PATH = "/usr/sbin:/usr/lib:/usr/bin"


@dataclass(frozen=True, slots=True)
class ExaminedJob:
    """A job, and the settings that it will read."""

    job: Job
    settings: Settings | None
    """None if they cannot be read as the job would read them."""

    findings: tuple[tuple[Grade, str], ...]
    """What is wrong, or differs from this shell."""


def compare(
    jobs: tuple[Job, ...], settings: Settings, environ: Mapping[str, str]
) -> list[ExaminedJob]:
    """Compare the settings that each job will read with those that this shell reads."""
    examined = []
    for job in jobs:
        if not job.program:
            text = f"{job.where} starts another program: which settings it reads is not known"
            examined.append(ExaminedJob(job, None, ((Grade.WARNING, text),)))
            continue
        wrong = [*_program(job), *_files(job)]
        read, mistakes = _settings(job)
        wrong += mistakes
        if read is not None:
            wrong += _differences(job, read, settings, environ)
        examined.append(ExaminedJob(job, read, tuple(wrong)))
    return examined


def examine(jobs: list[ExaminedJob]) -> Iterator[Finding]:
    """Report what is wrong with the jobs, and how they differ from this shell."""
    if len(_schedulers(jobs)) > 1:
        text = "both cron and systemd start the jobs: remove one (`asset-sync schedule`)"
        yield Finding(Grade.WARNING, "scheduler", text)
    elif len({one.job.lane for one in jobs}) < len(jobs):
        where = "; ".join(one.job.where for one in jobs)
        text = f"a job is started twice: remove one ({where})"
        yield Finding(Grade.WARNING, "scheduler", text)
    for scheduler in _schedulers(jobs):
        findings = [
            Finding(grade, scheduler.value, text)
            for one in jobs
            if one.job.scheduler is scheduler
            for grade, text in one.findings
        ]
        text = "its jobs read the settings, key and database that this shell does"
        yield from dict.fromkeys(findings or [Finding(Grade.OK, scheduler.value, text)])


def _schedulers(jobs: list[ExaminedJob]) -> list[Scheduler]:
    return list(dict.fromkeys(one.job.scheduler for one in jobs))


# --- what a job starts and reads ---------------------------------------------------------------


def _program(job: Job) -> Iterator[tuple[Grade, str]]:
    if "/" not in job.program:
        path = job.environ.get("PATH", "")
        if shutil.which(job.program, path=path) is None:
            text = f"{job.where} starts {job.program}, which is not in {job.scheduler}'s PATH"
            yield Grade.ERROR, f"{text} ({path}): write its whole path"
        return
    program = job.directory / job.program
    if not program.is_file():
        yield Grade.ERROR, f"{job.where} starts {program}, which does not exist: correct its path"
    elif not _may(job.user, program, os.X_OK):
        yield Grade.ERROR, f"{job.where} starts {program}, which {_who(job)} may not execute"


def _files(job: Job) -> Iterator[tuple[Grade, str]]:
    """Check that the job's user may read the named files; `load` checks that they exist."""
    named = {
        name: Path(job.environ[name])
        for name in (CONFIG_VARIABLE, *(f"{secret}_FILE" for secret in SECRET_VARIABLES))
        if job.environ.get(name)
    }
    if job.config is not None:
        named["--config"] = job.config
    for name, file in named.items():
        path = job.directory / file
        # For such a job systemd, as root, reads the credentials.
        if job.user is None and name.endswith("_FILE"):
            continue
        if path.exists() and not _may(job.user, path, os.R_OK):
            text = f"{job.where}: {_who(job)} may not read {path} ({name})"
            yield Grade.ERROR, f"{text}; make it that user's: chown {job.user or 'root'} {path}"


def _settings(job: Job) -> tuple[Settings | None, list[tuple[Grade, str]]]:
    try:
        return load(job.config, job.environ, cwd=job.directory), []
    except SettingsError as error:
        if job.user not in {None, _me()} and os.geteuid() != 0:
            text = f"{job.where}: you may not see what {job.user} reads: run doctor as that user"
            return None, [(Grade.WARNING, text)]
        return None, [(Grade.ERROR, f"{job.where}: {mistake}") for mistake in error.mistakes]


def _differences(
    job: Job, its: Settings, ours: Settings, environ: Mapping[str, str]
) -> Iterator[tuple[Grade, str]]:
    """Yield how the job's settings differ from this shell's."""
    if its.source.resolve() != ours.source.resolve():
        text = (
            f"its jobs read {_shown(its)}, this shell reads {_shown(ours)}: the jobs do not get"
            " what `asset-sync assets add` writes here; name one file in both with"
            " ASSET_SYNC_CONFIG"
        )
        yield Grade.WARNING, text
    if its.provider.api_key is None:
        yield Grade.ERROR, f"{job.where} has no key: give it POLYGON_API_KEY_FILE"
    # If the shell has no key, the doctor tries the jobs' key.
    elif ours.provider.api_key not in {None, its.provider.api_key}:
        text = "its jobs have another key than this shell: set POLYGON_API_KEY_FILE to one file"
        yield Grade.WARNING, f"{text} in both"
    its_data, our_data = _database(its, job.environ), _database(ours, environ)
    if its_data != our_data:
        text = (
            f"its jobs write to {its_data}, this shell reads {our_data}: commands here do not show"
            " what the jobs do; give both the same DATABASE_URL_FILE or XDG_DATA_HOME"
        )
        yield Grade.WARNING, text


def _shown(settings: Settings) -> str:
    return "the settings that came with the program" if settings.shipped else str(settings.source)


def _database(settings: Settings, environ: Mapping[str, str]) -> str:
    try:
        if settings.conninfo is None:
            return f"the embedded PostgreSQL in {data_directory(environ)}"
        return f"the database {address_of(settings.conninfo, environ)}"
    except DatabaseError:
        return "a database whose address cannot be read"


# --- who is notified of a failure --------------------------------------------------------------


def examine_monitoring(jobs: list[ExaminedJob], settings: Settings) -> Iterator[Finding]:
    """Report who is notified of a failed run, without URL and arguments: they may be secret."""
    seen = next((one for one in jobs if one.settings), None)
    monitoring = (seen.settings or settings if seen else settings).monitoring
    reached = [] if monitoring.ping_url is None else ["each run pings its URL"]
    if monitoring.on_failure:
        program = monitoring.on_failure[0]
        if shutil.which(program, path=seen.job.environ.get("PATH") if seen else None) is None:
            text = f"the program {program} does not exist: correct monitoring.on_failure"
            yield Finding(Grade.WARNING, "monitoring", text)
            return
        reached.append(f"one that fails starts {program}")
    why_not = "nothing starts the jobs"
    for one in jobs:
        mail, no_mail = _mail(one.job)
        reached += [mail] if mail else []
        why_not = no_mail or why_not
    if reached:
        yield Finding(Grade.OK, "monitoring", "; ".join(dict.fromkeys(reached)))
        return
    text = f"a failed run notifies nobody ({why_not}): set monitoring.ping_url or on_failure"
    yield Finding(Grade.WARNING, "monitoring", text)


def _mail(job: Job) -> tuple[str, str]:
    """Return the address to which cron mails, or else why it mails nobody."""
    if job.scheduler is not Scheduler.CRON:
        return "", "systemd mails nobody"
    if job.environ.get("MAILTO") == "":
        return "", "MAILTO is empty"
    if job.mails_to is None:
        return "", "cron does not get the output of the jobs"
    if shutil.which("sendmail", path=_SENDMAIL_PATH) is None:
        return "", "cron cannot mail: there is no sendmail"
    return f"cron mails failures to {job.mails_to}", ""


# --- rights ------------------------------------------------------------------------------------


def _who(job: Job) -> str:
    return job.user or "the user that systemd makes for the job"


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def _may(user: str | None, path: Path, right: int) -> bool:
    """Return whether the user may read or execute the file, by its mode and its directories'."""
    if user == _me():
        return os.access(path, right, effective_ids=True)
    if user is None:
        uid, groups = -1, set[int]()
    else:
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            return False
        uid = account.pw_uid
        groups = set(os.getgrouplist(user, account.pw_gid))
    if uid == 0:
        return right == os.R_OK or bool(path.stat().st_mode & 0o111)
    path = path.resolve()
    try:
        return _allowed(path.stat(), uid, groups, right) and all(
            _allowed(directory.stat(), uid, groups, os.X_OK) for directory in path.parents
        )
    except OSError:  # this user may not see the file; `load` reports other problems
        return True


def _allowed(status: os.stat_result, uid: int, groups: set[int], right: int) -> bool:
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == uid:
        return bool(mode >> 6 & right)
    if status.st_gid in groups:
        return bool(mode >> 3 & right)
    return bool(mode & right)
