"""Reads `assets.toml` and the environment, so that no other room asks either of them anything.

`load` returns one frozen `Settings`, or raises one `SettingsError` with every mistake of the file
and of the environment: who starts asset-sync from cron corrects them in one go. What a secret is
stays a `Secret` from here to the one line that sends it.

Only the standard library is imported, and of that only what every start needs: this module is on
the way of every command.
"""

import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from asset_sync.errors import AssetSyncError
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.plan import Plan as Plan
from asset_sync.provider.polygon.markets import MARKETS
from asset_sync.provider.polygon.plans import PLANS as PLANS
from asset_sync.secret import Secret as Secret

SHIPPED_FILE = Path(__file__).parent.parent / "assets.toml"
"""The settings of somebody who has written none."""

SYSTEM_FILE = Path("/etc/asset-sync/assets.toml")

VARIABLES = (
    "ASSET_SYNC_CONFIG",
    "POLYGON_API_KEY",
    "POLYGON_API_KEY_FILE",
    "MASSIVE_API_KEY",
    "MASSIVE_API_KEY_FILE",
    "POLYGON_BASE_URL",
    "POLYGON_RATE_LIMIT",
    "POLYGON_TIER",
    "BATCH_INTERVAL_MINUTES",
    "PRIORITY_ASSETS_ENABLED",
    "QUEUE_MAX_SIZE",
    "DATABASE_URL",
    "DATABASE_URL_FILE",
    "DB_HOST",
    "DB_PORT",
    "DB_NAME",
    "DB_USER",
    "DB_PASSWORD",
    "DB_PASSWORD_FILE",
    "REDIS_URL",
    "REDIS_URL_FILE",
    "PING_URL",
    "PING_URL_FILE",
)
"""Every variable of ours; also read are `HOME`, `XDG_CONFIG_HOME`, `SUDO_UID` and libpq's `PG*`."""

SECRET_VARIABLES = (
    "POLYGON_API_KEY",
    "MASSIVE_API_KEY",
    "DATABASE_URL",
    "DB_PASSWORD",
    "REDIS_URL",
    "PING_URL",
)
"""Those of ours that hold a secret; with `_FILE` behind its name each holds a path instead."""

LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")
"""Those of libpq's own that say that there is a database; libpq itself reads them."""


class SettingsError(AssetSyncError):
    """Everything that is wrong with the file and the environment, a sentence for each mistake."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes: tuple[str, ...] = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Where and how the provider is asked."""

    plan: Plan
    base_url: str = "https://api.polygon.io"
    """Without a slash at its end."""

    api_key: Secret | None = None
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 10.0
    """The longest silence within an answer."""

    call_timeout_seconds: float = 30.0
    """The whole call, however steadily its answer trickles in."""

    allow_insecure_http: bool = False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What is in force: the file's and the environment's figures, else the plan's."""

    calls: int
    period_seconds: float
    hold_for_priority: bool = True


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How items wait and how often they are tried."""

    max_size: int = 1000
    max_attempts: int = 3
    retry_delay_seconds: int = 60
    aging_seconds: int = 600
    """By how much a level is served before the next lower one."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How often cron starts a run."""

    interval_minutes: float = 5.0
    priority_assets_enabled: bool = True

    @property
    def interval_seconds(self) -> float:
        """The same interval in seconds."""
        return self.interval_minutes * 60


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """From where on `asset-sync health` calls something wrong."""

    success_rate_percent: float = 90.0
    """Of the priority assets that the last hour's runs tried, so many were refreshed."""

    latency_ms: float = 30_000.0
    """What 95 % of the last hour's priority runs took at most."""

    queue_size: int = 500
    rate_limit_waits: int = 10
    """Priority runs of the last hour that had to wait for a slot."""

    stale_after_frequencies: float = 3.0
    """An asset is stale when it has not been fresh for so many of its update frequencies."""


@dataclass(frozen=True, slots=True)
class MonitoringSettings:
    """Who is told how each run of `sync` went: nobody, unless it is set."""

    ping_url: Secret | None = None
    """Of a check at healthchecks.io or its kind; `{command}` in it is `priority` or `queue`."""

    on_failure: tuple[str, ...] = ()
    """A program and its arguments."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the file and the environment say."""

    provider: ProviderSettings
    rate_limit: RateLimit
    queue: QueueSettings
    batch: BatchSettings
    health: HealthSettings
    monitoring: MonitoringSettings
    conninfo: Secret | None
    """For libpq; None means that none is configured, hence the embedded PostgreSQL.

    An empty `Secret` leaves everything to libpq's own `PG*` variables.
    """

    redis_url: Secret | None
    assets: tuple[Asset, ...]
    source: Path
    """The file that was read."""

    shipped: bool
    """Whether that is the file that comes with the package, because there was no other."""

    switched_off: tuple[Asset, ...] = ()
    """The assets with `enabled = false`, which nothing but the list of assets shows."""

    @property
    def named(self) -> tuple[Asset, ...]:
        """Every asset that the file names, those that are switched off last."""
        return (*self.assets, *self.switched_off)

    @property
    def critical(self) -> tuple[Asset, ...]:
        """The assets of each cycle, first to last; equal positions keep the file's order."""
        chosen = (asset for asset in self.assets if asset.level is Level.CRITICAL)
        return tuple(sorted(chosen, key=lambda asset: asset.position))

    @property
    def others(self) -> tuple[Asset, ...]:
        """The assets that take turns, as the file names them."""
        return tuple(asset for asset in self.assets if asset.level is not Level.CRITICAL)


def load(config: Path | None, environ: Mapping[str, str], *, cwd: Path | None = None) -> Settings:
    """Return the settings of the first file found, with the environment over them.

    `config` is what `--config` names; relative paths start at `cwd`. A file that everybody may
    write is refused, and one of another account unless it is named. An empty variable counts as
    unset. `POLYGON_API_KEY` wins over `MASSIVE_API_KEY`, and `DATABASE_URL` over `DB_*`, which win
    over libpq's own. Places in a list count from 1: `secondary_assets[2]` is the second.

    Raises `SettingsError` with all mistakes of the file and of the environment.
    """
    mistakes: list[str] = []
    environment = _Environment(environ, cwd or Path(), mistakes)
    source, named_by = _find(config, environment)
    document = _Table(
        values=_parsed(source, named_by, environment),
        place=f"{_printable(str(source))}: ",
        environment=environment,
        mistakes=mistakes,
    )
    provider = _provider(document, environment)
    settings = Settings(
        provider=provider,
        rate_limit=_rate_limit(document.table("rate_limit"), provider.plan),
        queue=_queue(document.table("queue")),
        batch=_batch(document.table("batch")),
        health=_health(document.table("health")),
        monitoring=_monitoring(document.table("monitoring"), environment),
        conninfo=_conninfo(environment),
        redis_url=environment.secret("REDIS_URL", _REDIS_URL),
        assets=(named := _assets(document))[True],
        switched_off=named[False],
        source=source,
        shipped=source == SHIPPED_FILE,
    )
    document.note_unknown_keys()
    if mistakes:
        raise SettingsError(mistakes)
    return settings


def search_places(environ: Mapping[str, str], cwd: Path | None = None) -> tuple[Path, ...]:
    """Return where `assets.toml` is looked for when nobody names one, first to last."""
    return (
        (cwd or Path()) / "assets.toml",
        *(place / "asset-sync" / "assets.toml" for place in _user_config(environ)),
        SYSTEM_FILE,
        SHIPPED_FILE,
    )


def _user_config(environ: Mapping[str, str]) -> Iterator[Path]:
    # The XDG specification: a relative XDG_CONFIG_HOME is to be ignored.
    xdg, home = environ.get("XDG_CONFIG_HOME", ""), environ.get("HOME", "")
    if Path(xdg).is_absolute():
        yield Path(xdg)
    elif Path(home).is_absolute():
        yield Path(home) / ".config"


# --- The parts of the file -----------------------------------------------------------------------


def _provider(document: "_Table", environment: "_Environment") -> ProviderSettings:
    table = document.table("provider")
    plan = table.read("plan", _choice(PLANS), PLANS["free"], env="POLYGON_TIER")
    usual = ProviderSettings(plan)
    seconds = _number(0.1, 600)
    insecure = table.read("allow_insecure_http", _FLAG, usual.allow_insecure_http)
    return ProviderSettings(
        plan=plan,
        base_url=table.read(
            "base_url",
            _base_url(_any_host if insecure else _loopback),
            usual.base_url,
            env="POLYGON_BASE_URL",
        ),
        api_key=environment.secret("POLYGON_API_KEY", _API_KEY)
        or environment.secret("MASSIVE_API_KEY", _API_KEY),
        connect_timeout_seconds=table.read(
            "connect_timeout_seconds", seconds, usual.connect_timeout_seconds
        ),
        read_timeout_seconds=table.read(
            "read_timeout_seconds", seconds, usual.read_timeout_seconds
        ),
        call_timeout_seconds=table.read(
            "call_timeout_seconds", seconds, usual.call_timeout_seconds
        ),
        allow_insecure_http=insecure,
    )


def _rate_limit(table: "_Table", plan: Plan) -> RateLimit:
    return RateLimit(
        calls=table.read("calls", _whole(1, 10_000), plan.calls, env="POLYGON_RATE_LIMIT"),
        period_seconds=table.read("period_seconds", _number(0.1, 86_400), plan.period_seconds),
        hold_for_priority=table.read("hold_for_priority", _FLAG, default=True),
    )


def _queue(table: "_Table") -> QueueSettings:
    usual = QueueSettings()
    return QueueSettings(
        max_size=table.read("max_size", _whole(1, 1_000_000), usual.max_size, env="QUEUE_MAX_SIZE"),
        max_attempts=table.read("max_attempts", _whole(1, 100), usual.max_attempts),
        retry_delay_seconds=table.read(
            "retry_delay_seconds", _whole(1, 86_400), usual.retry_delay_seconds
        ),
        aging_seconds=table.read("aging_seconds", _whole(0, 604_800), usual.aging_seconds),
    )


def _health(table: "_Table") -> HealthSettings:
    usual = HealthSettings()
    return HealthSettings(
        success_rate_percent=table.read(
            "success_rate_percent", _number(0, 100), usual.success_rate_percent
        ),
        latency_ms=table.read("latency_ms", _number(1, 3_600_000), usual.latency_ms),
        queue_size=table.read("queue_size", _whole(0, 1_000_000), usual.queue_size),
        rate_limit_waits=table.read("rate_limit_waits", _whole(0, 10_000), usual.rate_limit_waits),
        stale_after_frequencies=table.read(
            "stale_after_frequencies", _number(1, 1000), usual.stale_after_frequencies
        ),
    )


def _monitoring(table: "_Table", environment: "_Environment") -> MonitoringSettings:
    usual = MonitoringSettings()
    in_file = table.read("ping_url", _secret(_PING_URL), usual.ping_url)
    return MonitoringSettings(
        ping_url=environment.secret("PING_URL", _PING_URL) or in_file,
        on_failure=table.read("on_failure", _COMMAND, usual.on_failure),
    )


def _batch(table: "_Table") -> BatchSettings:
    usual = BatchSettings()
    return BatchSettings(
        interval_minutes=table.read(
            "interval_minutes",
            # A run lasts the interval less ten seconds, so that it needs more than those.
            _number(0.5, 1440),
            usual.interval_minutes,
            env="BATCH_INTERVAL_MINUTES",
        ),
        priority_assets_enabled=table.read(
            "priority_assets_enabled",
            _FLAG,
            usual.priority_assets_enabled,
            env="PRIORITY_ASSETS_ENABLED",
        ),
    )


def _assets(document: "_Table") -> dict[bool, tuple[Asset, ...]]:
    """Return the assets by whether they are enabled."""
    levels = _choice(
        {level.value: level for level in Level if level is not Level.CRITICAL},
        note=" (critical assets stand under [[priority_assets]])",
    )
    found: dict[bool, list[Asset]] = {True: [], False: []}
    places: dict[str, str] = {}

    def add(table: "_Table", level: Level, position: int) -> None:
        asset = _asset(table, level, position, places)
        enabled = table.read("enabled", _FLAG, default=True)
        if asset is not None:
            found[enabled].append(asset)

    for number, table in enumerate(document.rows("priority_assets"), start=1):
        position = table.read("priority", _whole(1, 1_000_000), number)
        add(table, Level.CRITICAL, position)
    for table in document.rows("secondary_assets"):
        level = table.read("priority", levels, Level.MEDIUM)
        add(table, level, 0)
    return {enabled: tuple(assets) for enabled, assets in found.items()}


def _asset(table: "_Table", level: Level, position: int, places: dict[str, str]) -> Asset | None:
    """Return what `table` describes, None where it is wrong; `places` is where symbols stand."""
    symbol = table.need("symbol", _SYMBOL)
    kind = table.need(
        "asset_type",
        _choice({kind.value: kind for kind in AssetType}, note=" (metals are forex)"),
    )
    ticker = table.need("polygon_ticker", _ticker(kind))
    name = table.read("name", _NAME, symbol or "")
    frequency = table.read("update_frequency_seconds", _whole(1, 2_592_000), 300)
    if symbol is not None:
        first = places.setdefault(symbol, table.path)
        if first != table.path:
            table.note("symbol", f"stands in {first} already; a symbol may stand only once")
    if symbol is None or kind is None or ticker is None:
        return None
    return Asset(
        symbol=symbol,
        ticker=ticker,
        asset_type=kind,
        name=name,
        level=level,
        position=position,
        update_frequency_seconds=frequency,
    )


def _conninfo(environment: "_Environment") -> Secret | None:
    url = environment.secret("DATABASE_URL", _DATABASE_URL)
    if url is not None:
        return url
    password = environment.secret("DB_PASSWORD", _PASSWORD)
    parts = {
        "host": environment.text("DB_HOST"),
        "port": environment.read("DB_PORT", _PORTS),
        "dbname": environment.text("DB_NAME"),
        "user": environment.text("DB_USER"),
        "password": password.reveal() if password is not None else None,
    }
    ours = " ".join(f"{key}={_libpq_quoted(part)}" for key, part in parts.items() if part)
    if ours:
        named = environment.those_set(("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER"))
        sources = (named, password.source if password is not None else "")
        return Secret(ours, ", ".join(source for source in sources if source))
    libpq = environment.those_set(LIBPQ_VARIABLES)
    return Secret("", libpq) if libpq else None


def _libpq_quoted(value: str) -> str:
    # The rules: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# --- Finding and reading files -------------------------------------------------------------------

_FILE_LIMIT_BYTES = 1024 * 1024
_SECRET_LIMIT_BYTES = 64 * 1024


def _find(config: Path | None, environment: "_Environment") -> tuple[Path, str]:
    """Return the file to read, and who named it; a named file is not checked for being there."""
    if config is not None:
        return environment.cwd / config, " (--config)"
    named = environment.text("ASSET_SYNC_CONFIG")
    if named is not None:
        return environment.cwd / named, " (ASSET_SYNC_CONFIG)"
    places = search_places(environment.variables, environment.cwd)
    # A link that leads nowhere is there too: somebody meant a file that is missing.
    return next((place for place in places if os.path.lexists(place)), SHIPPED_FILE), ""


def _parsed(source: Path, named_by: str, environment: "_Environment") -> Mapping[str, object]:
    """Return the file's content, or note why there is none and return an empty one."""
    mistakes = environment.mistakes
    shown = _printable(str(source)) + named_by
    try:
        found_here = not named_by and source.parent == environment.cwd
        _refuse_what_others_write(source, found_here, environment.variables)
    except _WrongError as wrong:
        mistakes.append(f"{shown} {wrong}.")
        return {}
    try:
        return tomllib.loads(_read_text(source, _FILE_LIMIT_BYTES))
    except _WrongError as wrong:
        right = "it must be a readable TOML file in UTF-8, of at most 1 MiB"
        mistakes.append(f"{shown} {wrong}; {right}.")
    except tomllib.TOMLDecodeError as error:
        mistakes.append(f"{shown} is not TOML: {_printable(str(error))}.")
    except ValueError:
        mistakes.append(f"{shown} is not usable: it holds a number of thousands of digits.")
    except RecursionError:
        mistakes.append(f"{shown} is not usable: its values are nested too deeply.")
    return {}


def _refuse_what_others_write(
    source: Path,
    found_here: bool,  # noqa: FBT001
    variables: Mapping[str, str],
) -> None:
    """Raise `_WrongError` with what to do where the settings of this file may be somebody else's.

    They name the server that gets the key, and programs to run. A file that was only found in the
    current directory may be anybody's; one that is named is somebody's choice, and only one that
    everybody may write is refused.
    """
    try:
        # The link itself, too: another account may have made it.
        seen = (source.lstat(), source.stat()) if found_here else (source.stat(),)
    except (OSError, ValueError):
        return  # reading it says why
    *_, file = seen
    if not stat.S_ISREG(file.st_mode):
        return
    shown = _printable(str(source))
    if file.st_mode & stat.S_IWOTH:
        raise _WrongError(f"can be changed by every account: run `chmod o-w {shown}`")
    if not found_here:
        return
    trusted = {0, os.geteuid()}
    caller = variables.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isdecimal():
        trusted.add(int(caller))
    choose = f"name it, if you trust it: `--config {shown}`"
    for owner in (status.st_uid for status in seen):
        if owner not in trusted:
            account = _account(owner)
            name = account.pw_name if account is not None else owner
            raise _WrongError(
                f"was only found in the current directory and belongs to another account ({name}): "
                f"{choose}; or make it yours: `chown -h {os.geteuid()} {shown}`"
            )
    owner_account = _account(file.st_uid)
    # With umask 002 whoever makes a file lets the group write, which is then nobody else's.
    own_groups = {0} if owner_account is None else {0, owner_account.pw_gid}
    if file.st_mode & stat.S_IWGRP and file.st_gid not in own_groups:
        raise _WrongError(f"can be changed by its group: run `chmod g-w {shown}`, or {choose}")


def _account(uid: int) -> "pwd.struct_passwd | None":
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _read_text(path: Path, limit_bytes: int) -> str:
    """Return the file's text; raises `_WrongError` with what is wrong about the file."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
        if len(content) > limit_bytes:
            raise _WrongError(f"is larger than {limit_bytes // 1024} KiB")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _WrongError("does not exist") from None
    except IsADirectoryError:
        raise _WrongError("is a directory") from None
    except OSError as error:
        raise _WrongError(f"cannot be read ({error.strerror or 'no reason given'})") from None
    except UnicodeDecodeError:
        raise _WrongError("is not UTF-8") from None
    except ValueError:
        raise _WrongError("is no path that can exist") from None


# --- Reading values, and collecting what is wrong with them --------------------------------------

_T = TypeVar("_T")


class _WrongError(Exception):
    """What is wrong with a value and what would be right, to stand after the value's name."""


@dataclass(frozen=True, slots=True)
class _Kind(Generic[_T]):
    """What a setting may be."""

    check: Callable[[object], _T]
    """Returns the value as the settings keep it, or raises `_WrongError`."""

    from_text: Callable[[str], object] = str
    """Turns a variable into what TOML would have made of it; as it is where that fails."""

    def judge(self, place: str, value: object, mistakes: list[str]) -> _T | None:
        """Return the value if it is right; otherwise note the mistake and return None."""
        try:
            return self.check(value)
        except _WrongError as wrong:
            mistakes.append(f"{place} {wrong}.")
            return None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a secret looks like: the group of `pattern` is its value."""

    pattern: str
    otherwise: str
    """What is wrong when it does not, without the value."""


@dataclass(slots=True)
class _Environment:
    """The environment, which notes what is wrong in it."""

    variables: Mapping[str, str]
    cwd: Path
    mistakes: list[str]

    def text(self, name: str) -> str | None:
        """Return a variable without the white space around it; None when nothing is left."""
        value = self._verbatim(name)
        return value.strip() if value is not None else None

    def those_set(self, names: Iterable[str]) -> str:
        """Return the names of the variables that are set, for a sentence."""
        return ", ".join(name for name in names if self.text(name))

    def read(self, name: str, kind: _Kind[_T]) -> _T | None:
        """Return a variable that is a `kind`; None when it is unset or wrong."""
        text = self.text(name)
        if text is None:
            return None
        return kind.judge(f"environment: {name}", kind.from_text(text), self.mistakes)

    def secret(self, name: str, shape: _Shape) -> Secret | None:
        """Return the secret in `name`, or in the file whose path is in `name`_FILE."""
        value, path = self._verbatim(name), self.text(f"{name}_FILE")
        if value is not None and path is not None:
            self._note(name, f"and {name}_FILE are both set; set only one of them")
            return None
        origin = source = name
        if path is not None:
            origin = f"{name}_FILE"
            source = f"{origin} ({_printable(path)})"
            value = self._content(origin, path)
        if value is None:
            return None
        match = re.fullmatch(shape.pattern, value, re.DOTALL)
        if match is None:
            self._note(origin, shape.otherwise)
            return None
        return Secret(match[1], source)

    def _verbatim(self, name: str) -> str | None:
        value = self.variables.get(name, "")
        return self._storable(name, value) if value.strip() else None

    def _content(self, name: str, path: str) -> str | None:
        right = "it must be a file with nothing but the secret"
        # People put the secret itself there, which must not be shown; none begins as a path does.
        known = path.startswith("/") or os.path.lexists(self.cwd / path)
        shown = f"names {_printable(path[:_SHOWN_PATH])}, which" if known else "names a file that"
        try:
            value = _read_text(self.cwd / path, _SECRET_LIMIT_BYTES).strip()
        except _WrongError as wrong:
            self._note(name, f"{shown} {wrong}; {right}")
            return None
        if not value:
            self._note(name, f"{shown} is empty; {right}")
            return None
        return self._storable(name, value)

    def _storable(self, name: str, value: str) -> str | None:
        """Return `value` if C strings and UTF-8 hold it, as libpq, HTTP and paths want it."""
        # Python keeps the bytes of a variable that is not UTF-8 as lone surrogates.
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            self._note(name, "holds a NUL or is not UTF-8; it must be text")
            return None
        return value

    def _note(self, name: str, wrong: str) -> None:
        self.mistakes.append(f"environment: {name} {wrong}.")


@dataclass(slots=True)
class _Table:
    """One table of the file: hands out checked values, and notes what is wrong or unknown."""

    values: Mapping[str, object]
    place: str
    """What stands before a key in a sentence: `assets.toml: queue.`"""

    environment: _Environment
    mistakes: list[str]
    path: str = ""
    symbol: str = ""
    """Of the asset that this table describes, in brackets: people know it better than a number."""

    known: list[str] = field(default_factory=list)
    tables: "list[_Table]" = field(default_factory=list)

    def read(self, key: str, kind: _Kind[_T], default: _T, *, env: str | None = None) -> _T:
        """Return the variable `env`, else the file's value, else `default`; both are checked."""
        in_file = self._in_file(key, kind)
        in_environment = self.environment.read(env, kind) if env is not None else None
        if in_environment is not None:
            return in_environment
        return in_file if in_file is not None else default

    def need(self, key: str, kind: _Kind[_T]) -> _T | None:
        """Return the file's value; None, and a mistake, where it is missing or wrong."""
        if key not in self.values:
            self.note(key, "is missing; every asset needs one")
        return self._in_file(key, kind)

    def table(self, key: str) -> "_Table":
        """Return the table `key`, an empty one where it is missing or wrong."""
        self.known.append(key)
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.note(key, f"is {_shown(value)}; it must be a table, written [{key}]")
            value = {}
        return self._child(key, value)

    def rows(self, key: str) -> "list[_Table]":
        """Return the tables of the array `key`, without those that are none."""
        self.known.append(key)
        value = self.values.get(key, [])
        if not isinstance(value, list):
            self.note(key, f"is {_shown(value)}; it must be tables, each written [[{key}]]")
            return []
        rows = []
        for number, row in enumerate(value, start=1):
            path = f"{key}[{number}]"
            if isinstance(row, dict):
                rows.append(self._child(path, row))
            else:
                self.note(path, f"is {_shown(row)}; it must be a table, written [[{key}]]")
        return rows

    def note(self, key: str, wrong: str) -> None:
        """Note what is wrong with `key`."""
        self.mistakes.append(f"{self._name(key)} {wrong}.")

    def note_unknown_keys(self) -> None:
        """Note each key that nobody has asked for, here and in the tables below."""
        for key in self.values:
            if key not in self.known:
                self.note(_shown_key(key), _unknown(key, self.known))
        for table in self.tables:
            table.note_unknown_keys()

    def _in_file(self, key: str, kind: _Kind[_T]) -> _T | None:
        self.known.append(key)
        if key not in self.values:
            return None
        return kind.judge(self._name(key), self.values[key], self.mistakes)

    def _name(self, key: str) -> str:
        return f"{self.place}{key}{self.symbol}"

    def _child(self, path: str, values: Mapping[str, object]) -> "_Table":
        symbol = values.get("symbol")
        known = isinstance(symbol, str) and re.fullmatch(SYMBOL_PATTERN, symbol)
        child = _Table(
            values=values,
            place=f"{self.place}{path}.",
            environment=self.environment,
            mistakes=self.mistakes,
            path=path,
            symbol=f" ({symbol})" if known else "",
        )
        self.tables.append(child)
        return child


_KEPT_ELSEWHERE = {
    "POLYGON_API_KEY": "api_key apikey key token secret polygon_api_key massive_api_key",
    "DATABASE_URL": (
        "database database_url db postgres postgresql conninfo dsn password"
        " db_host db_port db_name db_user db_password"
    ),
    "REDIS_URL": "redis redis_url",
}
"""What people put into a settings file, by the variable it belongs into."""


def _unknown(key: str, known: list[str]) -> str:
    """Say what `key` may have been meant to be."""
    for variable, keys in _KEPT_ELSEWHERE.items():
        if key.lower() in keys.split():
            file = f"{variable}_FILE to the path of a file that holds it"
            return f"does not belong in the file; set {variable} in the environment, or {file}"
    import difflib  # noqa: PLC0415  only a mistake needs it

    close = difflib.get_close_matches(key[:_SHOWN_CHARACTERS].lower(), known, n=1)
    right = f"did you mean {close[0]}" if close else f"known here: {', '.join(known)}"
    return f"is not a setting; {right}"


# --- Showing what somebody wrote -----------------------------------------------------------------

_SHOWN_CHARACTERS = 40
_SHOWN_INTEGER = 10**18
_SHOWN_PATH = 250


def _shown(value: object) -> str:
    """Return a value as its file has it, in so few characters that no terminal suffers."""
    if isinstance(value, str):
        dots = "…" if len(value) > _SHOWN_CHARACTERS else ""
        return f'"{_printable(value[:_SHOWN_CHARACTERS])}{dots}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        # Python refuses to write a number of thousands of digits, which hexadecimal TOML may hold.
        return str(value) if abs(value) < _SHOWN_INTEGER else "a huge number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list) else "a date or time"


def _shown_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key) else _shown(key)


def _printable(text: str) -> str:
    """Return `text` with what would move a terminal's cursor, or break its encoding, escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


# --- What a setting may be -----------------------------------------------------------------------


def _whole(low: int, high: int) -> _Kind[int]:
    def check(value: object) -> int:
        # In Python true is an integer, in TOML it is not.
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise _WrongError(f"is {_shown(value)}; it must be a whole number from {low} to {high}")

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text

    return _Kind(check, from_text)


def _number(low: float, high: float) -> _Kind[float]:
    def check(value: object) -> float:
        # The range is compared first: nan is in none, and a huge integer fits no float.
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise _WrongError(f"is {_shown(value)}; it must be a number from {low} to {high}")

    def from_text(text: str) -> object:
        return float(text) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text

    return _Kind(check, from_text)


def _choice(options: Mapping[str, _T], note: str = "") -> _Kind[_T]:
    listed = ", ".join(f'"{option}"' for option in options)

    def check(value: object) -> _T:
        if isinstance(value, str) and value in options:
            return options[value]
        raise _WrongError(f"is {_shown(value)}; it must be one of {listed}{note}")

    return _Kind(check, str.lower)


def _check_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _WrongError(f"is {_shown(value)}; it must be true or false")


def _flag_from_text(text: str) -> object:
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    return False if text.lower() in {"false", "0", "no", "off"} else text


_FLAG = _Kind(_check_flag, _flag_from_text)

SYMBOL_PATTERN = r"[A-Z0-9][A-Z0-9._-]{0,31}"


def _check_symbol(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(SYMBOL_PATTERN, value):
        return value
    raise _WrongError(
        f"is {_shown(value)}; it must be 1 to 32 characters of A-Z, 0-9, dot, _ and -,"
        " the first a letter or a digit"
    )


_SYMBOL = _Kind(_check_symbol)


def _ticker(asset_type: AssetType | None) -> _Kind[str]:
    """Return what fits the type; where the type itself is wrong, what fits any."""
    types = tuple(AssetType) if asset_type is None else (asset_type,)

    def check(value: object) -> str:
        if isinstance(value, str) and any(
            re.fullmatch(MARKETS[kind].prefix + SYMBOL_PATTERN, value) for kind in types
        ):
            return value
        right = " or ".join(
            f'a {kind} ticker begins with "{MARKETS[kind].prefix}",'
            f' such as "{_ticker_for(kind, value)}"'
            for kind in types
        )
        raise _WrongError(f"is {_shown(value)}; {right}")

    return _Kind(check)


def _ticker_for(kind: AssetType, value: object) -> str:
    """Return the ticker that `value` may have been meant to be, else an example."""
    pair = re.sub(r"^[A-Za-z]:|[/ _-]", "", value).upper() if isinstance(value, str) else ""
    if not re.fullmatch(SYMBOL_PATTERN, pair):
        pair = MARKETS[kind].example
    return MARKETS[kind].prefix + pair


_NAME_CHARACTERS = 200


def _check_name(value: object) -> str:
    if (
        isinstance(value, str)
        and 0 < len(value.strip()) <= len(value) <= _NAME_CHARACTERS
        and not re.search(r"[\x00-\x1f\x7f-\x9f]", value)
    ):
        return value
    raise _WrongError(
        f"is {_shown(value)}; it must be 1 to {_NAME_CHARACTERS} characters, none of them a"
        " line end or another control character"
    )


_NAME = _Kind(_check_name)


def _check_ports(value: object) -> str:
    # One for all hosts, or one for each, as libpq has it.
    ports = value.split(",") if isinstance(value, str) else []
    if ports and all(re.fullmatch(r"[0-9]{1,5}", port) and int(port) in _PORT for port in ports):
        return ",".join(ports)
    raise _WrongError(f"is {_shown(value)}; it must be a port from 1 to 65535")


_PORT = range(1, 65_536)
_PORTS = _Kind(_check_ports)


def _any_host(host: str) -> bool:
    return bool(host)


def _loopback(host: str) -> bool:
    import ipaddress  # noqa: PLC0415  hardly anybody uses http

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _base_url(may_be_plain: Callable[[str], bool]) -> _Kind[str]:
    """Return what a base URL may be; `may_be_plain` says to which hosts http:// may go.

    No sentence shows the URL: people put keys into them.
    """

    def check(value: object) -> str:
        scheme, host = _scheme_and_host(value)
        if scheme == "http" and not may_be_plain(host):
            raise _WrongError(
                "sends the key over http:// to another machine; it must begin with https://, or"
                " provider.allow_insecure_http must be true"
            )
        return str(value).rstrip("/")

    return _Kind(check)


_URL_PATTERN = r"""(?x)
    (https?)://
    (?: \[ ([0-9A-Fa-f:.]+) \] | ([A-Za-z0-9._-]+) )
    (?: : ([0-9]{1,5}) )?
    (?: / [A-Za-z0-9._~%/+-]* )?
"""


def _scheme_and_host(value: object) -> tuple[str, str]:
    # A pattern, because urlsplit forgives too much, and costs a start more than all the rest.
    match = re.fullmatch(_URL_PATTERN, value) if isinstance(value, str) else None
    if match is None or int(match[4] or 443) not in _PORT:
        raise _WrongError(
            "is not a base URL; it must be https:// and a host, such as"
            ' "https://api.polygon.io", without user, query or fragment'
        )
    return match[1], match[2] or match[3].lower()


def _secret(shape: _Shape) -> _Kind[Secret | None]:
    """Return what a secret that may stand in the file may be."""

    def check(value: object) -> Secret:
        match = re.fullmatch(shape.pattern, value) if isinstance(value, str) else None
        if match is None:
            raise _WrongError(shape.otherwise)
        return Secret(match[1])

    return _Kind(check)


def _check_command(value: object) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        words = tuple(value)
        # What no process can be given: a NUL. What no program is called: nothing.
        if words[0].strip() and not any("\0" in word for word in words):
            return words
    raise _WrongError(
        f"is {_shown(value)}; it must be an array of strings, a program and its arguments, such as"
        ' ["/usr/local/bin/tell-me"] or ["sh", "-c", "…"]'
    )


_COMMAND = _Kind(_check_command)

_API_KEY = _Shape(
    r"\s*([!-~]+)\s*",
    "holds a space or another character that no key has; it must be the key and nothing else",
)
_PASSWORD = _Shape(r"(.+)", "is empty")
_DATABASE_URL = _Shape(
    r"(postgres(?:ql)?://.*|\s*[a-z_]+\s*=.*)",
    "is no address of a PostgreSQL database; it must begin with postgresql:// or be of the form"
    " host=… dbname=…",
)
_REDIS_URL = _Shape(
    r"\s*((?:rediss?|unix)://\S+)\s*",
    "is no address of a Redis server; it must begin with redis://, rediss:// or unix://",
)
_PING_URL = _Shape(
    r"""(?x) \s* (
        (?: https:// (?: \[ [0-9A-Fa-f:.]+ \] | [A-Za-z0-9._-]+ )
          | http:// (?: localhost | 127\.[0-9.]+ | \[::1\] ) )
        (?: : [0-9]{1,5} )?
        (?: / (?: [A-Za-z0-9._~%/+:@!$&'()*,;=-] | \{command\} )* )?
        (?: \? (?: [A-Za-z0-9._~%/+:@!$&'()*,;=?-] | \{command\} )* )?
    ) \s*""",
    "is no URL to ping; it must begin with https:// (http:// only for this machine), without user"
    " and fragment, and with no placeholder but {command}",
)
