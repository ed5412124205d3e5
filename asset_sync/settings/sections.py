"""Every setting, declared once: its type, what it may be, its default, its variable, its meaning.

The reader (`reader.load`), the lists of variables at the end of this module, `docs/settings.md` and
the shipped `assets.toml` are made from these declarations. They are metadata of dataclass fields
and not pydantic models because of start-up: importing pydantic takes longer than a whole command
(see the comment beside typer in pyproject.toml).
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType
from typing import Generic, TypeVar, cast

from asset_sync import bus
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.current import PLANS
from asset_sync.provider.plan import Plan
from asset_sync.secret import Secret
from asset_sync.settings import kinds
from asset_sync.settings.kinds import FLAG, Kind, SecretKind, number, whole

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Depending(Generic[_T_co]):
    """A kind that depends on the value of the setting `on`, which is declared earlier."""

    __slots__ = ("by_value", "on", "otherwise")

    def __init__(
        self, on: str, by_value: Mapping[object, Kind[_T_co]], otherwise: Kind[_T_co]
    ) -> None:
        self.on = on
        self.by_value = by_value
        self.otherwise = otherwise

    @property
    def must_be(self) -> str:
        """The descriptions for the different values."""
        return "; ".join(dict.fromkeys(kind.must_be for kind in self.by_value.values()))


class Setting:
    """What is declared about a setting beside its name and type."""

    __slots__ = ("default", "doc", "env", "example", "in_file", "kind", "left_out")

    def __init__(
        self,
        kind: Kind[object] | Depending[object],
        default: object,
        doc: str,
        env: str,
        in_file: bool,  # noqa: FBT001  `setting` names them all
        example: object,
        left_out: str,
    ) -> None:
        self.kind = kind
        self.default = default
        self.doc = doc
        self.env = tuple(env.split())
        self.in_file = in_file
        self.example = example
        self.left_out = left_out

    def kind_beside(self, values: Mapping[str, object]) -> Kind[object]:
        """Return this setting's kind if the section's other settings have these values."""
        if isinstance(self.kind, Kind):
            return self.kind
        return self.kind.by_value.get(values.get(self.kind.on), self.kind.otherwise)


def setting(
    kind: Kind[_T] | Depending[_T],
    default: _T | EllipsisType = ...,
    *,
    doc: str,
    env: str = "",
    in_file: bool = True,
    example: object = None,
    left_out: str = "",
) -> _T:
    """Declare a field of a section: its kind, its default and its documentation.

    Without a `default`, the file must have a value or the reader supplies one. `env` names the
    environment variables that override the file, separated by spaces; the first that is set counts.
    `in_file` says whether the file may hold the setting. If there is no fixed default, `left_out`
    describes the value that is used, and `example` is the value that the shipped file shows.
    """
    made = field(
        default=MISSING if default is ... else default,
        metadata={"setting": Setting(kind, default, doc, env, in_file, example, left_out)},
    )
    return cast("_T", made)


@cache
def declared(section: type) -> Mapping[str, Setting]:
    """Return what is declared about each field of a section, by name."""
    return {
        made.name: made.metadata["setting"]
        for made in fields(section)
        if "setting" in made.metadata
    }


# --- The tables of the file ----------------------------------------------------------------------

_SECONDS = number(0.1, 600)


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """The provider: its address, the plan of the key, and the time limits of a call."""

    plan: Plan = setting(
        kinds.choice(PLANS),
        PLANS["free"],
        env="POLYGON_TIER",
        doc="The plan of the key, which says what the API allows.",
    )
    allow_insecure_http: bool = setting(
        FLAG, default=False, doc="Allows http:// to other machines, which shows them the key."
    )
    base_url: str = setting(
        Depending("allow_insecure_http", {True: kinds.INSECURE_BASE_URL}, kinds.BASE_URL),
        "https://api.polygon.io",
        env="POLYGON_BASE_URL",
        doc="The API's address.",
    )
    """Without a slash at its end."""

    api_key: Secret | None = setting(
        kinds.API_KEY,
        None,
        env="POLYGON_API_KEY MASSIVE_API_KEY",
        in_file=False,
        left_out="none",
        doc="The API key; without it nothing is fetched.",
    )
    connect_timeout_seconds: float = setting(
        _SECONDS, 5.0, doc="The longest wait for a connection."
    )
    read_timeout_seconds: float = setting(
        _SECONDS, 10.0, doc="The longest silence within an answer."
    )
    call_timeout_seconds: float = setting(
        _SECONDS, 30.0, doc="The longest whole call, even if its answer keeps arriving."
    )
    parallel_calls: int | None = setting(
        whole(1, 32),
        None,
        env="POLYGON_PARALLEL_CALLS",
        example=8,
        left_out="the plan's, 1 for free and 8 for the others",
        doc="How many calls a run keeps in flight; each has a database connection of its own.",
    )

    @property
    def calls_in_flight(self) -> int:
        """How many calls a run keeps in flight: as the settings say, or else as the plan does."""
        return self.parallel_calls or self.plan.parallel_calls


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How often the API may be called. A value set here is used even if the plan allows less."""

    calls: int = setting(
        whole(1, 10_000),
        env="POLYGON_RATE_LIMIT",
        doc="The calls that any period may hold.",
        example=5,
        left_out="the plan's, 5 for free and 100 for the others",
    )
    period_seconds: float = setting(
        number(0.1, 86_400),
        doc="The length of the period.",
        example=60,
        left_out="the plan's, 60 for free and 1 for the others",
    )
    hold_for_priority: bool = setting(
        FLAG, default=True, doc="Keeps calls free for the next priority run."
    )


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How items wait and how often they are tried."""

    max_size: int = setting(
        whole(1, 1_000_000),
        1000,
        env="QUEUE_MAX_SIZE",
        doc="The most items in the queue. Other due assets enter later; priority assets always do.",
    )
    max_attempts: int = setting(
        whole(1, 100), 3, doc="After so many failures of its own an asset is dead."
    )
    retry_delay_seconds: int = setting(
        whole(1, 86_400), 60, doc="The delay after the first failure; each further one doubles it."
    )
    aging_seconds: int = setting(
        whole(0, 604_800),
        600,
        doc="An asset counts as due so much later than one of the level above.",
    )


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How often cron starts a run."""

    # A queue run lasts the interval less ten seconds, and half of the interval at least.
    interval_minutes: float = setting(
        number(0.5, 1440),
        5.0,
        env="BATCH_INTERVAL_MINUTES",
        doc="How often cron starts the jobs.",
    )
    priority_assets_enabled: bool = setting(
        FLAG,
        default=True,
        env="PRIORITY_ASSETS_ENABLED",
        doc="Whether there are priority runs; if not, the queue serves their assets first.",
    )

    @property
    def interval_seconds(self) -> float:
        """The interval in seconds."""
        return self.interval_minutes * 60


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """How much of the past is fetched, and how long its changes are kept."""

    enabled: bool = setting(
        FLAG,
        default=True,
        env="HISTORY_ENABLED",
        doc="Whether history is fetched, with the calls that fresh data leaves over.",
    )
    days: int | None = setting(
        whole(1, 36_500),
        None,
        example=730,
        left_out="as many as the plan gives",
        doc="How many days back history is fetched.",
    )
    keep_revisions_days: int = setting(
        whole(0, 36_500),
        90,
        doc=(
            "How many days the values are kept that the provider changed, and when each bar came; 0"
            " keeps neither."
        ),
    )


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Thresholds beyond which `health` reports a problem."""

    success_rate_percent: float = setting(
        number(0, 100), 90.0, doc="Priority assets refreshed, of those tried in the last hour."
    )
    latency_ms: float = setting(
        number(1, 3_600_000),
        30_000.0,
        doc="How long 95 % of the last hour's priority runs took at most, without their waits.",
    )
    queue_size: int = setting(whole(0, 1_000_000), 500, doc="Items in the queue.")
    rate_limit_waits: int = setting(
        whole(0, 10_000), 10, doc="Priority runs of the last hour that waited for a slot."
    )
    stale_after_frequencies: float = setting(
        number(1, 1000),
        3.0,
        doc="An asset is stale after so many of its update frequencies without a success.",
    )


@dataclass(frozen=True, slots=True)
class MonitoringSettings:
    """Who is notified how each run of `sync` ended. Default: nobody."""

    ping_url: Secret | None = setting(
        kinds.PING_URL,
        None,
        env="PING_URL",
        example="https://hc-ping.com/your-ping-key/asset-sync-{command}",
        left_out="none",
        doc=(
            "A URL of healthchecks.io or a similar service; {command} becomes priority or queue."
            " Everybody who knows the URL can ping it: run chmod 600 on the file that holds it."
        ),
    )
    on_failure: tuple[str, ...] = setting(
        kinds.COMMAND,
        (),
        example=("/usr/local/bin/tell-me",),
        left_out="none",
        doc="The program that a failed run starts, and its arguments; no shell is used.",
    )


# --- What only the environment says --------------------------------------------------------------


@dataclass(eq=False, repr=False)
class Addresses:
    """The user's servers. Only the environment names them: their addresses hold passwords."""

    database: Secret | None = setting(
        kinds.DATABASE_URL,
        None,
        env="DATABASE_URL",
        left_out="what `DB_*` say, then what libpq's `PG*` say, else the embedded PostgreSQL",
        doc="The database, for libpq; several hosts are tried in turn.",
    )
    bus: Secret | None = setting(
        kinds.BUS_URL,
        None,
        env=bus.VARIABLE,
        left_out="none",
        doc=f"The {bus.NAME} server to which each new price is published.",
    )


@dataclass(eq=False, repr=False)
class DatabaseParts:
    """The database's address in parts, read only where DATABASE_URL is not set."""

    password: Secret | None = setting(
        kinds.PASSWORD, None, env="DB_PASSWORD", left_out="none", doc="The role's password."
    )
    host: str = setting(kinds.TEXT, "", env="DB_HOST", left_out="libpq's", doc="The host or hosts.")
    port: str = setting(
        kinds.PORTS,
        "",
        env="DB_PORT",
        left_out="libpq's",
        doc="The port, one for all hosts or one for each.",
    )
    dbname: str = setting(
        kinds.TEXT, "", env="DB_NAME", left_out="libpq's", doc="The database's name."
    )
    user: str = setting(kinds.TEXT, "", env="DB_USER", left_out="libpq's", doc="The role.")


# --- The assets ----------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class AssetBlock:
    """One asset as the file has it."""

    array: str
    """`priority_assets`, fetched in each cycle before all others, or `secondary_assets`."""

    priority: int | Level = setting(
        Depending(
            "array",
            {"priority_assets": kinds.POSITION, "secondary_assets": kinds.LEVEL},
            kinds.LEVEL,
        ),
        left_out="the place in the file; medium",
        doc="For a priority asset its order, 1 first; for another asset its level.",
    )
    symbol: str = setting(kinds.SYMBOL, doc="Your name for the asset.")
    asset_type: AssetType = setting(
        kinds.ASSET_TYPE, doc="The market; metals are traded as currencies."
    )
    polygon_ticker: str = setting(
        Depending(
            "asset_type",
            {kind: kinds.ticker(kind) for kind in AssetType},
            kinds.ticker(*AssetType),
        ),
        doc="The provider's name for the asset.",
    )
    name: str = setting(kinds.NAME, "", left_out="the symbol", doc="A name for people.")
    update_frequency_seconds: int = setting(
        whole(1, 2_592_000), 300, doc="How old the data may get."
    )
    hours: str | tuple[str, ...] | None = setting(
        kinds.HOURS,
        None,
        left_out="its market's",
        doc="When it trades; without a time zone in New York's wall time.",
    )
    history_days: int | None = setting(
        whole(1, 36_500),
        None,
        left_out="as [history] says",
        doc="How far back its past is fetched.",
    )
    enabled: bool = setting(FLAG, default=True, doc="Whether the asset is fetched.")


# --- All of it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of all settings."""

    provider: ProviderSettings
    rate_limit: RateLimit
    queue: QueueSettings
    batch: BatchSettings
    history: HistorySettings
    health: HealthSettings
    monitoring: MonitoringSettings
    conninfo: Secret | None
    """For libpq; None means that none is configured, so the embedded PostgreSQL is used.

    An empty `Secret` leaves everything to libpq's own `PG*` variables.
    """

    bus_url: Secret | None
    assets: tuple[Asset, ...]
    source: Path
    """The file that was read."""

    shipped: bool
    """Whether that is the file that comes with the package, because there was no other."""

    switched_off: tuple[Asset, ...] = ()
    """The assets with `enabled = false`, which only the list of assets shows."""

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
        """The other assets, in the order of the file."""
        return tuple(asset for asset in self.assets if asset.level is not Level.CRITICAL)


TABLES: Mapping[str, type] = {
    made.name: made.type
    for made in fields(Settings)
    if isinstance(made.type, type) and is_dataclass(made.type)
}
"""The sections that are tables of the file, by name."""

CONFIG_VARIABLE = "ASSET_SYNC_CONFIG"
"""The variable that names the settings file."""

_BY_VARIABLE = {
    name: made
    for section in (*TABLES.values(), Addresses, DatabaseParts)
    for made in declared(section).values()
    for name in made.env
}

PLAIN_VARIABLES = tuple(
    name for name, made in _BY_VARIABLE.items() if not isinstance(made.kind, SecretKind)
)
"""The variables of asset-sync that hold no secret."""

SECRET_VARIABLES = tuple(name for name in _BY_VARIABLE if name not in PLAIN_VARIABLES)
"""The variables of asset-sync that hold a secret; with `_FILE` at its end each holds a path."""

VARIABLES = (
    CONFIG_VARIABLE,
    *PLAIN_VARIABLES,
    *SECRET_VARIABLES,
    *(f"{name}_FILE" for name in SECRET_VARIABLES),
)
"""All variables of asset-sync; it also reads `HOME`, `XDG_CONFIG_HOME`, `SUDO_UID` and `PG*`."""

LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")
"""libpq's own variables that name a database; libpq itself reads them."""
