"""Reads the file and the environment as the sections declare them, and collects every mistake."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from asset_sync.model import Asset, Level
from asset_sync.secret import Secret
from asset_sync.settings.files import (
    SHIPPED_FILE,
    read_text,
    refuse_what_others_write,
    search_places,
)
from asset_sync.settings.kinds import SYMBOL_PATTERN, Kind, SecretKind
from asset_sync.settings.mistakes import (
    SettingsError,
    WrongError,
    printable,
    shown,
    shown_key,
    unknown,
)
from asset_sync.settings.sections import (
    CONFIG_VARIABLE,
    LIBPQ_VARIABLES,
    Addresses,
    AssetBlock,
    BatchSettings,
    DatabaseParts,
    HealthSettings,
    MonitoringSettings,
    ProviderSettings,
    QueueSettings,
    RateLimit,
    Setting,
    Settings,
    declared,
)

_FILE_LIMIT_BYTES = 1024 * 1024
_SECRET_LIMIT_BYTES = 64 * 1024
_SHOWN_PATH = 250

_T = TypeVar("_T")


def load(config: Path | None, environ: Mapping[str, str], *, cwd: Path | None = None) -> Settings:
    """Return the settings of the first file found; the environment overrides the file.

    `config` is what `--config` names; relative paths start at `cwd`. A file that every account may
    write is refused. A file of another account is refused unless the user names it. An empty
    variable counts as unset. `POLYGON_API_KEY` overrides `MASSIVE_API_KEY`; `DATABASE_URL`
    overrides `DB_*`, and these override libpq's own variables.

    Raises `SettingsError` with all mistakes of the file and of the environment. In its messages,
    `secondary_assets[2]` is the second block of its kind.
    """
    mistakes: list[str] = []
    environment = _Environment(environ, cwd or Path(), mistakes)
    source, named_by = _find(config, environment)
    document = _Table(
        _parsed(source, named_by, environment), f"{printable(str(source))}: ", environment
    )
    provider = document.section("provider", ProviderSettings)
    plan = provider.plan
    rate_limit = document.section(
        "rate_limit", RateLimit, calls=plan.calls, period_seconds=plan.period_seconds
    )
    queue = document.section("queue", QueueSettings)
    batch = document.section("batch", BatchSettings)
    health = document.section("health", HealthSettings)
    monitoring = document.section("monitoring", MonitoringSettings)
    addresses = environment.section(Addresses)
    conninfo = addresses.database or _conninfo(environment)
    assets, switched_off = _assets(document)
    document.note_unknown_keys()
    if mistakes:
        raise SettingsError(mistakes)
    return Settings(
        provider=provider,
        rate_limit=rate_limit,
        queue=queue,
        batch=batch,
        health=health,
        monitoring=monitoring,
        conninfo=conninfo,
        bus_url=addresses.bus,
        assets=assets,
        switched_off=switched_off,
        source=source,
        shipped=source == SHIPPED_FILE,
    )


# --- The file ------------------------------------------------------------------------------------


def _find(config: Path | None, environment: "_Environment") -> tuple[Path, str]:
    """Return the file to read, and who named it; whether a named file exists is not checked."""
    if config is not None:
        return environment.cwd / config, " (--config)"
    named = environment.text(CONFIG_VARIABLE)
    if named is not None:
        return environment.cwd / named, f" ({CONFIG_VARIABLE})"
    places = search_places(environment.variables, environment.cwd)
    # A link whose target is missing counts as found: its error tells the user about the file.
    return next((place for place in places if os.path.lexists(place)), SHIPPED_FILE), ""


def _parsed(source: Path, named_by: str, environment: "_Environment") -> Mapping[str, object]:
    """Return the file's content, or note why there is none and return an empty one."""
    mistakes = environment.mistakes
    name = printable(str(source)) + named_by
    try:
        found_here = not named_by and source.parent == environment.cwd
        refuse_what_others_write(source, environment.variables, found_here=found_here)
    except WrongError as wrong:
        mistakes.append(f"{name} {wrong}.")
        return {}
    try:
        return tomllib.loads(read_text(source, _FILE_LIMIT_BYTES))
    except WrongError as wrong:
        right = "it must be a readable TOML file in UTF-8, of at most 1 MiB"
        mistakes.append(f"{name} {wrong}; {right}.")
    except tomllib.TOMLDecodeError as error:
        mistakes.append(f"{name} is not TOML: {printable(str(error))}.")
    except ValueError:
        mistakes.append(f"{name} is not usable: it holds a number of thousands of digits.")
    except RecursionError:
        mistakes.append(f"{name} is not usable: its values are nested too deeply.")
    return {}


class _Table:
    """One table of the file, which notes what is wrong or unknown in it."""

    __slots__ = ("_environment", "_known", "_mistakes", "_place", "_tables", "_values", "symbol")

    def __init__(
        self, values: Mapping[str, object], place: str, environment: "_Environment"
    ) -> None:
        """Hold the table; `place` is what precedes a key in a sentence, `assets.toml: queue.`."""
        self._values = values
        self._place = place
        self._environment = environment
        self._mistakes = environment.mistakes
        self._known: list[str] = []
        self._tables: list[_Table] = []
        symbol = values.get("symbol")
        known = isinstance(symbol, str) and re.fullmatch(SYMBOL_PATTERN, symbol)
        self.symbol: str | None = str(symbol) if known else None
        """The symbol of the asset described here; messages name it beside the block's number."""

    def section(self, key: str, section: type[_T], **defaults: object) -> _T:
        """Return the section in table `key`; a missing or wrong table counts as empty."""
        self._known.append(key)
        values = self._values.get(key, {})
        if not isinstance(values, dict):
            self.note(key, f"is {shown(values)}; it must be a table, written [{key}]")
            values = {}
        return section(**self._child(key, values).read(section, defaults))

    def rows(self, key: str) -> "list[tuple[int, _Table]]":
        """Return the tables of the array `key` with their numbers; skip what is not a table."""
        self._known.append(key)
        rows = self._values.get(key, [])
        if not isinstance(rows, list):
            self.note(key, f"is {shown(rows)}; it must be tables, each written [[{key}]]")
            return []
        tables = []
        for number, row in enumerate(rows, start=1):
            path = f"{key}[{number}]"
            if isinstance(row, dict):
                tables.append((number, self._child(path, row)))
            else:
                self.note(path, f"is {shown(row)}; it must be a table, written [[{key}]]")
        return tables

    def read(self, section: type, defaults: Mapping[str, object]) -> dict[str, object]:
        """Return the values: the environment overrides this table, and the table `defaults`."""
        values = dict(defaults)
        for key, setting in declared(section).items():
            kind = setting.kind_beside(values)
            if setting.in_file:
                if setting.default is ... and key not in values and key not in self._values:
                    self.note(key, "is missing; every asset needs one")
                _put(values, key, self._in_file(key, kind))
            _put(values, key, self._environment.read(setting, kind))
        return values

    def row(self, block: type[_T], **defaults: object) -> _T | None:
        """Return what this table describes; None if a value that it needs is missing or wrong."""
        values = self.read(block, defaults)
        return block(**values) if _complete(block, values) else None

    def note(self, key: str, wrong: str) -> None:
        """Note what is wrong with `key`."""
        self._mistakes.append(f"{self._name(key)} {wrong}.")

    def note_unknown_keys(self) -> None:
        """Note each key that is not a setting, here and in the tables below."""
        for key in self._values:
            if key not in self._known:
                self.note(shown_key(key), unknown(key, self._known))
        for table in self._tables:
            table.note_unknown_keys()

    def _in_file(self, key: str, kind: Kind[object]) -> object:
        self._known.append(key)
        if key not in self._values:
            return None
        return _checked(self._name(key), kind, self._values[key], self._mistakes)

    def _name(self, key: str) -> str:
        symbol = "" if self.symbol is None else f" ({self.symbol})"
        return f"{self._place}{key}{symbol}"

    def _child(self, path: str, values: Mapping[str, object]) -> "_Table":
        child = _Table(values, f"{self._place}{path}.", self._environment)
        self._tables.append(child)
        return child


def _complete(section: type, values: Mapping[str, object]) -> bool:
    return all(key in values for key, made in declared(section).items() if made.default is ...)


def _checked(place: str, kind: Kind[object], value: object, mistakes: list[str]) -> object:
    """Return the value if it is right; otherwise note the mistake and return None."""
    try:
        return kind.check(value)
    except WrongError as wrong:
        mistakes.append(f"{place} {wrong}.")
        return None


def _put(values: dict[str, object], key: str, value: object) -> None:
    """Set the value unless it is None."""
    if value is not None:
        values[key] = value


# --- The assets ----------------------------------------------------------------------------------


def _assets(document: _Table) -> tuple[tuple[Asset, ...], tuple[Asset, ...]]:
    """Return the assets that are enabled, and those that are switched off."""
    assets: dict[bool, list[Asset]] = {True: [], False: []}
    places: dict[str, str] = {}
    for array in ("priority_assets", "secondary_assets"):
        for number, table in document.rows(array):
            place = f"{array}[{number}]"
            usual = number if array == "priority_assets" else Level.MEDIUM
            block = table.row(AssetBlock, array=array, priority=usual)
            if table.symbol is not None:
                first = places.setdefault(table.symbol, place)
                if first != place:
                    wrong = f"stands in {first} already; a symbol may stand only once"
                    table.note("symbol", wrong)
            if block is not None:
                assets[block.enabled].append(_asset(block))
    return tuple(assets[True]), tuple(assets[False])


def _asset(block: AssetBlock) -> Asset:
    priority = block.priority
    return Asset(
        symbol=block.symbol,
        ticker=block.polygon_ticker,
        asset_type=block.asset_type,
        name=block.name or block.symbol,
        level=priority if isinstance(priority, Level) else Level.CRITICAL,
        position=0 if isinstance(priority, Level) else priority,
        update_frequency_seconds=block.update_frequency_seconds,
        hours=block.hours,
    )


# --- The environment -----------------------------------------------------------------------------


class _Environment:
    """The environment, which notes what is wrong in it."""

    __slots__ = ("cwd", "mistakes", "variables")

    def __init__(self, variables: Mapping[str, str], cwd: Path, mistakes: list[str]) -> None:
        self.variables = variables
        self.cwd = cwd
        self.mistakes = mistakes

    def section(self, section: type[_T]) -> _T:
        """Return a section that only the environment can set."""
        return section(**_Table({}, "", self).read(section, {}))

    def read(self, setting: Setting, kind: Kind[object]) -> object:
        """Return the value of the first of the setting's variables with a right one, or None."""
        for name in setting.env:
            if isinstance(kind, SecretKind):
                value: object = self._secret(name, kind)
            else:
                text = self.text(name)
                place = f"environment: {name}"
                value = text and _checked(place, kind, kind.from_text(text), self.mistakes)
            if value is not None:
                return value
        return None

    def text(self, name: str) -> str | None:
        """Return a variable without the white space around it; None when nothing is left."""
        value = self._verbatim(name)
        return value.strip() if value is not None else None

    def those_set(self, names: Iterable[str]) -> str:
        """Return the names of the variables that are set, for a sentence."""
        return ", ".join(name for name in names if self.text(name))

    def _secret(self, name: str, kind: SecretKind) -> Secret | None:
        """Return the secret in `name`, or in the file whose path is in `name`_FILE."""
        value, path = self._verbatim(name), self.text(f"{name}_FILE")
        if value is not None and path is not None:
            self._note(name, f"and {name}_FILE are both set; set only one of them")
            return None
        origin = source = name
        if path is not None:
            origin = f"{name}_FILE"
            source = f"{origin} ({printable(path)})"
            value = self._content(origin, path)
        if value is None:
            return None
        try:
            return Secret(kind.check(value).reveal(), source)
        except WrongError as wrong:
            self._note(origin, str(wrong))
            return None

    def _verbatim(self, name: str) -> str | None:
        value = self.variables.get(name, "")
        return self._storable(name, value) if value.strip() else None

    def _content(self, name: str, path: str) -> str | None:
        right = "it must be a file with nothing but the secret"
        # Some users put the secret itself here: only what looks like a path is shown.
        known = path.startswith("/") or os.path.lexists(self.cwd / path)
        named = f"names {printable(path[:_SHOWN_PATH])}, which" if known else "names a file that"
        try:
            value = read_text(self.cwd / path, _SECRET_LIMIT_BYTES).strip()
        except WrongError as wrong:
            self._note(name, f"{named} {wrong}; {right}")
            return None
        if not value:
            self._note(name, f"{named} is empty; {right}")
            return None
        return self._storable(name, value)

    def _storable(self, name: str, value: str) -> str | None:
        """Return `value` if a C string and UTF-8 can hold it: libpq, HTTP and paths need that."""
        # Python keeps the bytes of a variable that is not UTF-8 as lone surrogates.
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            self._note(name, "holds a NUL or is not UTF-8; it must be text")
            return None
        return value

    def _note(self, name: str, wrong: str) -> None:
        self.mistakes.append(f"environment: {name} {wrong}.")


def _conninfo(environment: _Environment) -> Secret | None:
    """Return the database's address from `DB_*`; an empty one if only libpq's `PG*` are set."""
    parts = environment.section(DatabaseParts)
    password = parts.password
    by_keyword = {
        "host": parts.host,
        "port": parts.port,
        "dbname": parts.dbname,
        "user": parts.user,
        "password": password.reveal() if password is not None else "",
    }
    ours = " ".join(f"{key}={_libpq_quoted(part)}" for key, part in by_keyword.items() if part)
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
