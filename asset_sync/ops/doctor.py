"""Finds problems before a run does: settings, files, database, key, cron, the message bus."""

import stat
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from asset_sync import bus
from asset_sync.budget import clocks, slots
from asset_sync.database import Connection, SchemaStatus, lacking_rights, query
from asset_sync.model import Lane
from asset_sync.ops.health import OVERDUE_INTERVALS
from asset_sync.provider.errors import Cause, ProviderError
from asset_sync.schedule import installed
from asset_sync.settings import SECRET_VARIABLES, Settings
from asset_sync.starter import Starter
from asset_sync.store import runs


class Grade(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One line of the doctor's report."""

    grade: Grade
    subject: str
    text: str
    """What was found and, if it is a problem, how to correct it."""


def examine_settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check the settings, and who else may read the secrets."""
    which = "the one that came with the program" if settings.shipped else str(settings.source)
    many = f"{len(settings.critical)} priority and {len(settings.others)} other assets"
    yield Finding(Grade.OK, "settings", f"{which}; {many}; plan {settings.provider.plan.name}")
    if not settings.assets:
        yield Finding(Grade.ERROR, "settings", "no asset is kept fresh: name some in assets.toml")
    if not settings.shipped and _mode(settings.source) & _WRITTEN_BY_OTHERS:
        text = f"others may write {settings.source}, and send the key elsewhere: chmod go-w on it"
        yield Finding(Grade.WARNING, "settings", text)
    if _file_holds_ping_url(settings, environ) and _mode(settings.source) & _READ_BY_OTHERS:
        text = f"others may read {settings.source}, which holds ping_url: chmod 600 on it"
        yield Finding(Grade.WARNING, "settings", f"{text}, or set PING_URL_FILE instead")
    for name in sorted(environ):
        names_secret = name.endswith("_FILE") and name.removesuffix("_FILE") in SECRET_VARIABLES
        if names_secret and environ[name]:
            yield _secret_file(name, Path(environ[name]))


def _file_holds_ping_url(settings: Settings, environ: Mapping[str, str]) -> bool:
    elsewhere = environ.get("PING_URL") or environ.get("PING_URL_FILE")
    return settings.monitoring.ping_url is not None and not elsewhere


def _secret_file(name: str, path: Path) -> Finding:
    """Check that only its owner may read and write the file that the variable names."""
    try:
        mode = _mode(path)
    except OSError as error:
        return Finding(Grade.ERROR, name, f"{path} cannot be read ({error.strerror})")
    if mode & (_READ_BY_OTHERS | _WRITTEN_BY_OTHERS):
        may = "read" if mode & _READ_BY_OTHERS else "write"
        return Finding(Grade.WARNING, name, f"others may {may} {path}: chmod 600 {path}")
    return Finding(Grade.OK, name, f"only its owner may read {path}")


def _mode(path: Path) -> int:
    return path.stat().st_mode


_READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def examine_database(db: Connection, settings: Settings, status: SchemaStatus) -> Iterator[Finding]:
    """Check a database that answers: version, schema, rights, clock, time zone."""
    where = "embedded PostgreSQL" if settings.conninfo is None else "PostgreSQL"
    if int(status.server.split(".")[0]) < _OLDEST_SERVER:
        text = f"{where} {status.server} is too old: {_OLDEST_SERVER} or newer is needed"
        yield Finding(Grade.ERROR, "database", text)
        return
    yield Finding(Grade.OK, "database", f"{where} {status.server} answers")
    if not status.complete:
        found = f"at version {status.version} of {status.wanted}"
        missing = "".join(f"; {name} is missing" for name in status.missing)
        yield Finding(Grade.ERROR, "schema", f"{found}{missing}: run `asset-sync db init`")
    for problem in status.problems:
        yield Finding(Grade.ERROR, "schema", problem)
    for note in status.notes:
        yield Finding(Grade.WARNING, "schema", note)
    if not status.ready:
        return
    yield Finding(Grade.OK, "schema", f"at version {status.version}, nothing is missing")
    yield _rights(db)
    yield _clock(db)
    yield from _jumped(db)


_OLDEST_SERVER = 14


def _rights(db: Connection) -> Finding:
    lacking = lacking_rights(db)
    if lacking:
        text = f"the role lacks {', '.join(lacking)}: see Rights in the README"
        return Finding(Grade.ERROR, "rights", text)
    return Finding(Grade.OK, "rights", "the role may do all that a sync does")


def _clock(db: Connection) -> Finding:
    """Compare this host's clock with the database's: a difference makes logs hard to compare."""
    [(server, zone)] = query(
        db,
        "select extract(epoch from clock_timestamp())::float8, current_setting('TimeZone')",
    )
    apart = abs(server - time.time())
    if apart > _CLOCKS_APART_SECONDS:
        text = f"this host's clock is {apart:.0f} s off the database's, which asset-sync uses"
        return Finding(Grade.WARNING, "clock", f"{text}: set this host's (timedatectl)")
    return Finding(Grade.OK, "clock", f"agrees with the database's (its time zone: {zone})")


_CLOCKS_APART_SECONDS = 5


def _jumped(db: Connection) -> Iterator[Finding]:
    jump = clocks.last_jump(db)
    if jump is not None and jump.seconds_ago <= _JUMP_REPORTED_SECONDS:
        when = f"noticed {_ago(jump.seconds_ago)} ago"
        text = f"{jump}, {when}; times before it are wrong: check the time service of its host"
        yield Finding(Grade.WARNING, "clock", text)


_JUMP_REPORTED_SECONDS = 86_400


def question_to_the_api(settings: Settings) -> str | None:
    """Return the call that `examine_key` will make, None if it can make none."""
    if settings.provider.api_key is None or not settings.assets:
        return None
    from asset_sync.provider.current import endpoints  # noqa: PLC0415

    return f"{settings.provider.base_url}{endpoints.reference(settings.assets[0].ticker)}"


def examine_key(db: Connection, settings: Settings) -> Iterator[Finding]:
    """Make one call, within the limit, and report what the key may do."""
    if settings.provider.api_key is None:
        yield Finding(
            Grade.ERROR, "key", "POLYGON_API_KEY is not set: export it, or POLYGON_API_KEY_FILE"
        )
        return
    if not settings.assets:
        return
    from asset_sync.sync.ask import NoCallLeftError, Questions  # noqa: PLC0415

    try:
        with Questions(db, settings, within_seconds=0) as questions:
            questions.ask(lambda api: api.ticker_exists(settings.assets[0].ticker))
    except NoCallLeftError as error:
        text = f"not checked: the budget is used up for {error.seconds:.0f} s; try again after that"
        yield Finding(Grade.WARNING, "key", text)
        return
    except ProviderError as error:
        grade = Grade.ERROR if error.cause is Cause.ACCOUNT else Grade.WARNING
        yield Finding(grade, "key", error.reason)
        return
    yield Finding(Grade.OK, "key", "the API accepts it")
    yield _plan(db, settings)


def _plan(db: Connection, settings: Settings) -> Finding:
    """Report what the key turned out not to be allowed."""
    from asset_sync.sync.scope import scope_of  # noqa: PLC0415

    scope = scope_of(db, settings, Lane.QUEUE)
    plan = settings.provider.plan.name
    lowered = slots.lowered(db, slots.rate_of(settings))
    if lowered is not None:
        return Finding(Grade.WARNING, "plan", str(lowered))
    if scope.missing.snapshot:
        text = f"has no snapshots, though the plan is set to {plan}: set POLYGON_TIER to free"
        return Finding(Grade.WARNING, "plan", text)
    if said := scope.bars_end_yesterday(db):
        return Finding(Grade.OK, "plan", f"{plan}. {said}")
    return Finding(Grade.OK, "plan", f"{plan}; nothing was refused in the last day")


def examine_runs(
    db: Connection, settings: Settings, jobs: tuple[installed.Job, ...]
) -> Iterator[Finding]:
    """Check when each job last ran on this host, who started it and how it ended."""
    for lane in Lane:
        starters = {job.scheduler for job in jobs if job.lane is lane}
        yield _last_run(runs.last_by_starter(db, lane.value), settings, lane, starters)


def _last_run(
    lasts: tuple[runs.LastRun, ...],
    settings: Settings,
    lane: Lane,
    starters: set[installed.Scheduler],
) -> Finding:
    subject = f"sync {lane.value}"
    names = " and ".join(sorted(starters))
    if not lasts:
        cause = f"{names} should start it" if starters else f"nothing starts it: {_SCHEDULE}"
        return Finding(Grade.WARNING, subject, f"has never run on this host; {cause}")
    last = lasts[0]
    text = f"last ran {_ago(last.seconds_ago)} ago{_started_by(last)}"
    if not starters:
        return Finding(Grade.WARNING, subject, f"{text}; nothing here starts it: {_SCHEDULE}")
    # The scheduler may also have started a run whose starter is not known.
    started = {None, *(Starter(name) for name in starters)}
    scheduled = [run for run in lasts if run.started_by in started]
    late_after = OVERDUE_INTERVALS * settings.batch.interval_seconds
    if not scheduled or scheduled[0].seconds_ago > late_after:
        since = f"has not for {_ago(scheduled[0].seconds_ago)}" if scheduled else "never has"
        cause = f"{names} should start it but {since}: {_LOGS[min(starters)]} says why"
        return Finding(Grade.WARNING, subject, f"{text}; {cause.format(lane=lane.value)}")
    for run in (scheduled[0], last):
        if run.reason_ended in _ENDED_BADLY:
            grade, ended = _ENDED_BADLY[run.reason_ended]
            text = f"the run of {_ago(run.seconds_ago)} ago{_started_by(run)}, {ended}"
            return Finding(grade, subject, text)
    return Finding(Grade.OK, subject, text)


_SCHEDULE = "`asset-sync schedule cron --install`, or `schedule systemd`"
_LOGS = {
    installed.Scheduler.CRON: "cron's mail or log",
    installed.Scheduler.SYSTEMD: "`journalctl -u asset-sync-{lane}`",
}
_ENDED_BADLY = {
    "key_refused": (Grade.ERROR, "ended because the API refused the key: check it"),
    "plan_refused": (Grade.ERROR, "ended because the API refused the plan: check POLYGON_TIER"),
    "provider_unavailable": (Grade.WARNING, "ended because the API did not answer"),
    "broken": (Grade.WARNING, "ended with an error: its output says why"),
}


def _started_by(run: runs.LastRun) -> str:
    match run.started_by:
        case None:
            return ""
        case Starter.TERMINAL:
            return ", started by hand"
        case Starter.OTHER:
            return ", started by neither cron, systemd nor a terminal"
        case scheduler:
            return f", started by {scheduler}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004


def examine_bus(settings: Settings) -> Iterator[Finding]:
    """Check that the message bus answers, if one is set."""
    if settings.bus_url is None:
        return
    subject = bus.NAME.lower()
    client = bus.Client(settings.bus_url)
    try:
        client.hello()
    except bus.EventsError as error:
        yield Finding(Grade.WARNING, subject, str(error))
    else:
        yield Finding(Grade.OK, subject, "answers")
    finally:
        client.close()
