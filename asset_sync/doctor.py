"""Looking for what is wrong before it goes wrong: settings, files, database, key, cron, Redis."""

import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from asset_sync import database, runs, slots
from asset_sync.database import Connection, SchemaStatus, query
from asset_sync.health import OVERDUE_INTERVALS
from asset_sync.settings import SECRET_VARIABLES, MonitoringSettings, Settings
from asset_sync.slots import Lane, Wait


class Grade(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One line of what the doctor says."""

    grade: Grade
    subject: str
    text: str
    """What was found and, where it is not well, what cures it."""


def examine_settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the settings and at who else may read the secrets."""
    which = "the one that came with the program" if settings.shipped else str(settings.source)
    many = f"{len(settings.critical)} priority and {len(settings.others)} other assets"
    yield Finding(Grade.OK, "settings", f"{which}; {many}; plan {settings.provider.plan.name}")
    if not settings.assets:
        yield Finding(Grade.ERROR, "settings", "no asset is kept fresh: name some in assets.toml")
    for name in sorted(environ):
        of_a_secret = name.endswith("_FILE") and name.removesuffix("_FILE") in SECRET_VARIABLES
        if of_a_secret and environ[name]:
            yield _readable(name, Path(environ[name]))
    yield _monitoring(settings.monitoring)


def _monitoring(monitoring: MonitoringSettings) -> Finding:
    """Say who is told how the runs went; the URL is a secret, and arguments may be."""
    told = [] if monitoring.ping_url is None else ["each run pings its URL"]
    if monitoring.on_failure:
        program = monitoring.on_failure[0]
        if shutil.which(program) is None:
            text = f"there is no program {program} to run: mend monitoring.on_failure"
            return Finding(Grade.WARNING, "monitoring", text)
        told.append(f"one that fails starts {program}")
    text = "; ".join(told) or "nobody is told of a failed run: see monitoring in assets.toml"
    return Finding(Grade.OK, "monitoring", text)


def _readable(name: str, path: Path) -> Finding:
    try:
        others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError as error:
        return Finding(Grade.ERROR, name, f"cannot be looked at ({error.strerror})")
    if others:
        return Finding(Grade.WARNING, name, f"others may read {path}: chmod 600 {path}")
    return Finding(Grade.OK, name, f"only its owner may read {path}")


def examine_database(db: Connection, settings: Settings, status: SchemaStatus) -> Iterator[Finding]:
    """Look at a database that answers: version, schema, rights, clock, time zone."""
    where = "embedded PostgreSQL" if settings.conninfo is None else "PostgreSQL"
    yield Finding(Grade.OK, "database", f"{where} {status.server} answers")
    if status.ready:
        yield Finding(Grade.OK, "schema", f"at version {status.version}, nothing is missing")
    else:
        wrong = [*(f"{name} is missing" for name in status.missing), *status.problems]
        found = f"at version {status.version} of {status.wanted}; {'; '.join(wrong[:3])}"
        yield Finding(Grade.ERROR, "schema", f"{found}: run `asset-sync db init`")
        return
    lacking = query(
        db,
        """
        select name || ': ' || privilege
        from unnest(%s::text[]) as name, unnest(array['select', 'insert', 'update']) as privilege
        where not has_table_privilege(name, privilege)
        """,
        ([table.name for table in database.PLATFORM_TABLES if "providers" not in table.name],),
    )
    if lacking:
        missing = ", ".join(right for (right,) in lacking)
        yield Finding(Grade.ERROR, "rights", f"the role lacks {missing}: see Rights in the README")
    else:
        yield Finding(Grade.OK, "rights", "the role may write what a sync writes")
    yield _clock(db)


def _clock(db: Connection) -> Finding:
    """Compare the clocks, which decides nothing but makes logs hard to read together."""
    [(server, zone)] = query(
        db,
        "select extract(epoch from clock_timestamp())::float8, current_setting('TimeZone')",
    )
    apart = abs(server - time.time())
    if apart > _CLOCKS_APART_SECONDS:
        text = f"this host's clock is {apart:.0f} s off the database's, whose time holds: set it"
        return Finding(Grade.WARNING, "clock", f"{text} (timedatectl)")
    return Finding(Grade.OK, "clock", f"agrees with the database's (its time zone: {zone})")


_CLOCKS_APART_SECONDS = 5


def question_to_the_api(settings: Settings) -> str | None:
    """Return the call that `examine_key` will make, None if it can make none."""
    if settings.provider.api_key is None or not settings.assets:
        return None
    from asset_sync.polygon import reference_endpoint  # noqa: PLC0415

    return f"{settings.provider.base_url}{reference_endpoint(settings.assets[0].ticker)}"


def examine_key(db: Connection, settings: Settings) -> Iterator[Finding]:
    """Ask the API one question, within the limit, and say what the key may do."""
    key = settings.provider.api_key
    if key is None:
        yield Finding(
            Grade.ERROR, "key", "POLYGON_API_KEY is not set: export it, or POLYGON_API_KEY_FILE"
        )
        return
    if not settings.assets:
        return
    from asset_sync.limiter import Limiter  # noqa: PLC0415
    from asset_sync.polygon import Fault, Polygon, ProviderError  # noqa: PLC0415

    limiter = Limiter(db, slots.rate_of(settings))
    slot = limiter.take(Lane.QUEUE)
    if isinstance(slot, Wait):
        text = f"not asked: no call is left for {slot.seconds:.0f} s; try again then"
        yield Finding(Grade.WARNING, "key", text)
        return
    provider = settings.provider
    api = Polygon(
        base_url=provider.base_url,
        api_key=key,
        connect_timeout_seconds=provider.connect_timeout_seconds,
        read_timeout_seconds=provider.read_timeout_seconds,
        call_timeout_seconds=provider.call_timeout_seconds,
    )
    try:
        with closing(api):
            api.ticker_exists(settings.assets[0].ticker)
    except ProviderError as error:
        grade = Grade.ERROR if error.fault is Fault.ACCOUNT else Grade.WARNING
        yield Finding(grade, "key", str(error))
        return
    finally:
        limiter.release(slot)
    yield Finding(Grade.OK, "key", "the API accepts it")
    yield _denied(db, settings)


def _denied(db: Connection, settings: Settings) -> Finding:
    from asset_sync.job import account  # noqa: PLC0415

    denials = runs.denials(db, *account(settings))
    plan = settings.provider.plan.name
    if denials.snapshot:
        text = f"has no snapshots, though the plan is set to {plan}: set POLYGON_TIER to free"
        return Finding(Grade.WARNING, "plan", text)
    if denials.today:
        return Finding(Grade.OK, "plan", f"{plan}; bars end with yesterday on this key")
    return Finding(Grade.OK, "plan", f"{plan}; nothing was refused of late")


def examine_cron(db: Connection, settings: Settings) -> Iterator[Finding]:
    """Look whether anybody starts the jobs, and when each last ran."""
    installed = [name for name, lists in _SCHEDULERS if "asset-sync" in _output_of(*lists)]
    for lane in Lane:
        record = runs.record_of(db, lane.value)
        ago = record.seconds_ago
        last = "has never run" if ago is None else f"last ran {ago / 60:.0f} min ago"
        late = ago is None or ago > OVERDUE_INTERVALS * settings.batch.interval_seconds
        by = " and ".join(installed)
        subject = f"sync {lane.value}"
        if not late:
            yield Finding(Grade.OK, subject, f"{last} (started by {by})" if by else last)
        elif installed:
            text = f"{last}, though {by} should start it: look at its log"
            yield Finding(Grade.WARNING, subject, text)
        else:
            text = f"{last}, and nobody here starts it: see crontab.example"
            yield Finding(Grade.WARNING, subject, text)
    if len(installed) > 1:
        yield Finding(
            Grade.WARNING, "scheduler", "both cron and systemd start the jobs: take one away"
        )


_SCHEDULERS = (
    ("cron", ("crontab", "-l")),
    ("systemd", ("systemctl", "list-timers", "--all", "--no-pager")),
)


def _output_of(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run(  # noqa: S603  # two programs of the system's, found above
        [path, *arguments], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout


def examine_redis(settings: Settings) -> Iterator[Finding]:
    """Say hello to Redis, where it is set."""
    if settings.redis_url is None:
        return
    from asset_sync.events import EventsError, RedisPublisher  # noqa: PLC0415

    publisher = RedisPublisher(settings.redis_url)
    try:
        publisher.hello()
    except EventsError as error:
        yield Finding(Grade.WARNING, "redis", str(error))
    else:
        yield Finding(Grade.OK, "redis", "answers")
    finally:
        publisher.close()
