"""Looking for what is wrong before it goes wrong: settings, files, database, key, cron, Redis."""

import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from asset_sync import runs
from asset_sync.database import Connection, SchemaStatus, query
from asset_sync.health import OVERDUE_INTERVALS
from asset_sync.settings import SECRET_VARIABLES, MonitoringSettings, Settings
from asset_sync.slots import Lane


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
    if not settings.shipped and _mode(settings.source) & _WRITTEN_BY_OTHERS:
        text = f"others may write {settings.source}, and send the key elsewhere: chmod go-w on it"
        yield Finding(Grade.WARNING, "settings", text)
    if _ping_url_is_in_the_file(settings, environ) and _mode(settings.source) & _READ_BY_OTHERS:
        text = f"others may read {settings.source}, which holds ping_url: chmod 600 on it"
        yield Finding(Grade.WARNING, "settings", f"{text}, or set PING_URL_FILE instead")
    for name in sorted(environ):
        of_a_secret = name.endswith("_FILE") and name.removesuffix("_FILE") in SECRET_VARIABLES
        if of_a_secret and environ[name]:
            yield _readable(name, Path(environ[name]))
    yield _monitoring(settings.monitoring)


def _ping_url_is_in_the_file(settings: Settings, environ: Mapping[str, str]) -> bool:
    elsewhere = environ.get("PING_URL") or environ.get("PING_URL_FILE")
    return settings.monitoring.ping_url is not None and not elsewhere


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
        mode = _mode(path)
    except OSError as error:
        return Finding(Grade.ERROR, name, f"cannot be looked at ({error.strerror})")
    if mode & (_READ_BY_OTHERS | _WRITTEN_BY_OTHERS):
        may = "read" if mode & _READ_BY_OTHERS else "write"
        return Finding(Grade.WARNING, name, f"others may {may} {path}: chmod 600 {path}")
    return Finding(Grade.OK, name, f"only its owner may read {path}")


def _mode(path: Path) -> int:
    return path.stat().st_mode


_READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def examine_database(db: Connection, settings: Settings, status: SchemaStatus) -> Iterator[Finding]:
    """Look at a database that answers: version, schema, rights, clock, time zone."""
    where = "embedded PostgreSQL" if settings.conninfo is None else "PostgreSQL"
    if int(status.server.split(".")[0]) < _OLDEST_SERVER:
        text = f"{where} {status.server} is too old: {_OLDEST_SERVER} or newer is needed"
        yield Finding(Grade.ERROR, "database", text)
        return
    yield Finding(Grade.OK, "database", f"{where} {status.server} answers")
    if status.ready:
        yield Finding(Grade.OK, "schema", f"at version {status.version}, nothing is missing")
    else:
        wrong = [*(f"{name} is missing" for name in status.missing), *status.problems]
        found = f"at version {status.version} of {status.wanted}; {'; '.join(wrong[:3])}"
        yield Finding(Grade.ERROR, "schema", f"{found}: run `asset-sync db init`")
        return
    yield _rights(db)
    yield _clock(db)


_OLDEST_SERVER = 13


def _rights(db: Connection) -> Finding:
    lacking = query(
        db,
        """
        select privilege || ' on ' || name
        from unnest(%s::text[], %s::text[], %s::text[]) as needed (name, privilege, columns)
        where not case
          when columns = '' then has_table_privilege(name, privilege)
          else (
            select bool_and(has_column_privilege(name, one, privilege))
            from unnest(string_to_array(columns, ' ')) as one
          ) end
        """,
        [list(part) for part in zip(*_RIGHTS, strict=True)],
    )
    if lacking:
        missing = ", ".join(right for (right,) in lacking)
        return Finding(Grade.ERROR, "rights", f"the role lacks {missing}: see Rights in the README")
    return Finding(Grade.OK, "rights", "the role may do all that a sync does")


# What the README grants: table, right, and the columns where the whole table is not needed.
_RIGHTS = (
    ("trading.symbols", "select", "id symbol metadata"),
    ("trading.symbols", "insert", "symbol name asset_type"),
    ("trading.symbols", "update", "metadata updated_at"),
    ("data_sources.api_providers", "select", "id code"),
    *(
        (table, right, "")
        for tables, rights in (
            (("data_sources.data_sync_status", "market_data.ohlcv_5m"), "select insert update"),
            (("asset_sync.migrations",), "select"),
            (("asset_sync.limiter",), "select update"),
            (
                ("asset_sync.queue", "asset_sync.slots", "asset_sync.entitlements"),
                "select insert update",
            ),
            (("asset_sync.runs",), "select insert update delete"),
            (("asset_sync.calls",), "select insert delete"),
        )
        for table in tables
        for right in rights.split()
    ),
)


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
    if settings.provider.api_key is None:
        yield Finding(
            Grade.ERROR, "key", "POLYGON_API_KEY is not set: export it, or POLYGON_API_KEY_FILE"
        )
        return
    if not settings.assets:
        return
    from asset_sync.polygon import Fault, ProviderError  # noqa: PLC0415
    from asset_sync.questions import NoCallLeftError, Questions, why  # noqa: PLC0415

    try:
        with Questions(db, settings, within_seconds=0) as questions:
            questions.ask(lambda api: api.ticker_exists(settings.assets[0].ticker))
    except NoCallLeftError as error:
        text = f"not asked: the budget is used up for {error.seconds:.0f} s; try again then"
        yield Finding(Grade.WARNING, "key", text)
        return
    except ProviderError as error:
        grade = Grade.ERROR if error.fault is Fault.ACCOUNT else Grade.WARNING
        yield Finding(grade, "key", why(error))
        return
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
    jobs = {"cron": _of_cron(), "systemd": _output_of("systemctl", "list-timers", "--full")}
    twice = False
    for lane in Lane:
        # A crontab's `asset-sync … sync queue`, or the timer asset-sync-queue.
        job = re.compile(rf"^[^#\n]*asset-sync(\s.*\bsync\s+|-){lane.value}\b", re.MULTILINE)
        starters = [name for name, listed in jobs.items() if job.search(listed)]
        twice = twice or len(starters) > 1
        yield _lateness(db, settings, lane, " and ".join(starters))
    if twice:
        text = "both cron and systemd start the jobs: take one away"
        yield Finding(Grade.WARNING, "scheduler", text)


def _lateness(db: Connection, settings: Settings, lane: Lane, starter: str) -> Finding:
    ago = runs.record_of(db, lane.value).seconds_ago
    last = "has never run" if ago is None else f"last ran {_ago(ago)} ago"
    late = ago is None or ago > OVERDUE_INTERVALS * settings.batch.interval_seconds
    subject = f"sync {lane.value}"
    if not late:
        by = f"started by {starter}" if starter else "by neither this user's cron nor systemd"
        return Finding(Grade.OK, subject, f"{last} ({by})")
    if starter:
        log = f"`journalctl -u asset-sync-{lane.value}`" if starter == "systemd" else "cron's mail"
        text = f"{last}, though {starter} should start it: {log} says why"
        return Finding(Grade.WARNING, subject, text)
    text = f"{last}, and nobody here starts it: see crontab.example"
    return Finding(Grade.WARNING, subject, text)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004


def _of_cron() -> str:
    """Return this user's crontab and those of the system that may be read."""
    listed = [_output_of("crontab", "-l")]
    for path in (_SYSTEM_CRONTAB, *sorted(_SYSTEM_CRONTABS.glob("*"))):
        with suppress(OSError):
            listed.append(path.read_text(errors="replace"))
    return "\n".join(listed)


_SYSTEM_CRONTAB, _SYSTEM_CRONTABS = Path("/etc/crontab"), Path("/etc/cron.d")


def _output_of(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        return subprocess.run(  # noqa: S603  # two programs of the system's, found above
            [path, *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # a crontab may be in any encoding
            timeout=10,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):  # as where it waits for a bus that is not there
        return ""


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
