"""Settings: each mistake gives a sentence, no secret is shown, sources have one order."""

import dataclasses
import errno
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn

from asset_sync import settings
from asset_sync.hours import CRYPTO, FX, METALS, US, Hours
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.provider.current import PLANS, hours_of
from asset_sync.secret import Secret
from asset_sync.settings import (
    SHIPPED_FILE,
    SYSTEM_FILE,
    VARIABLES,
    BatchSettings,
    HealthSettings,
    HistorySettings,
    MonitoringSettings,
    ProviderSettings,
    QueueSettings,
    RateLimit,
    Settings,
    SettingsError,
    load,
    search_places,
)

REPOSITORY = Path(__file__).parent.parent
HIDDEN = "s3cret-Tr4ding-v4lue"


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    place = tmp_path / "cwd"
    place.mkdir()
    return place


def settings_of(cwd: Path, toml: str, **environ: str) -> Settings:
    (cwd / "assets.toml").write_text(toml, encoding="utf-8")
    return load(Path("assets.toml"), environ, cwd=cwd)


def mistakes_of(cwd: Path, toml: str, **environ: str) -> tuple[str, ...]:
    """Return the sentences about mistakes, with FILE for the file's path."""
    with pytest.raises(SettingsError) as caught:
        settings_of(cwd, toml, **environ)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    return tuple(
        mistake.replace(str(cwd / "assets.toml"), "FILE") for mistake in caught.value.mistakes
    )


def asset_toml(table: str = "secondary_assets", **changes: str | None) -> str:
    """Return a valid asset with some lines changed; lines that are None are left out."""
    lines: dict[str, str | None] = {
        "symbol": '"EURUSD"',
        "polygon_ticker": '"C:EURUSD"',
        "asset_type": '"forex"',
    }
    lines |= changes
    body = "\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None)
    return f"[[{table}]]\n{body}\n"


# --- The file ------------------------------------------------------------------------------------


def test_an_empty_file_gives_the_defaults_of_the_free_plan_and_no_assets(cwd: Path) -> None:
    assert settings_of(cwd, "") == Settings(
        provider=ProviderSettings(plan=PLANS["free"], api_key=None),
        rate_limit=RateLimit(calls=5, period_seconds=60, hold_for_priority=True),
        queue=QueueSettings(),
        batch=BatchSettings(),
        history=HistorySettings(),
        health=HealthSettings(),
        monitoring=MonitoringSettings(),
        conninfo=None,
        bus_url=None,
        assets=(),
        source=cwd / "assets.toml",
        shipped=False,
    )


def test_every_setting_of_the_file_is_read(cwd: Path) -> None:
    read = settings_of(
        cwd,
        """
        [provider]
        plan = "starter"
        base_url = "https://api.massive.com/"
        connect_timeout_seconds = 1
        read_timeout_seconds = 2.5
        call_timeout_seconds = 3
        parallel_calls = 4
        allow_insecure_http = true
        [rate_limit]
        calls = 7
        period_seconds = 0.5
        hold_for_priority = false
        [queue]
        max_size = 8
        max_attempts = 9
        retry_delay_seconds = 10
        aging_seconds = 0
        [batch]
        interval_minutes = 1.5
        priority_assets_enabled = false
        [history]
        enabled = false
        days = 12
        keep_revisions_days = 0
        [health]
        success_rate_percent = 99.5
        latency_ms = 1000
        queue_size = 11
        rate_limit_waits = 0
        stale_after_frequencies = 1.5
        [monitoring]
        ping_url = "https://hc.example/a-{command}"
        on_failure = ["mail-me", "-s", "it failed"]
        """,
    )

    assert read.provider == ProviderSettings(
        plan=PLANS["starter"],
        base_url="https://api.massive.com",
        api_key=None,
        connect_timeout_seconds=1,
        read_timeout_seconds=2.5,
        call_timeout_seconds=3,
        parallel_calls=4,
        allow_insecure_http=True,
    )
    assert read.rate_limit == RateLimit(7, 0.5, hold_for_priority=False)
    assert read.queue == QueueSettings(8, 9, 10, 0)
    assert read.batch == BatchSettings(1.5, priority_assets_enabled=False)
    assert read.batch.interval_seconds == 90
    assert read.history == HistorySettings(enabled=False, days=12, keep_revisions_days=0)
    assert read.health == HealthSettings(99.5, 1000, 11, 0, 1.5)
    assert read.monitoring == MonitoringSettings(
        Secret("https://hc.example/a-{command}"), ("mail-me", "-s", "it failed")
    )


def test_every_key_of_an_asset_is_read(cwd: Path) -> None:
    text = asset_toml(
        "priority_assets", name='"Euro"', priority="4", update_frequency_seconds="60"
    ) + asset_toml(
        symbol='"BTCUSD"',
        polygon_ticker='"X:BTCUSD"',
        asset_type='"crypto"',
        name='"Bitcoin"',
        priority='"low"',
        update_frequency_seconds="900",
    )

    assert settings_of(cwd, text).assets == (
        Asset("EURUSD", "C:EURUSD", AssetType.FOREX, "Euro", Level.CRITICAL, 4, 60),
        Asset("BTCUSD", "X:BTCUSD", AssetType.CRYPTO, "Bitcoin", Level.LOW, 0, 900),
    )


def test_an_asset_may_leave_out_name_priority_and_frequency(cwd: Path) -> None:
    text = asset_toml("priority_assets") + asset_toml(
        symbol='"GBPUSD"', polygon_ticker='"C:GBPUSD"'
    )

    assert settings_of(cwd, text).assets == (
        Asset("EURUSD", "C:EURUSD", AssetType.FOREX, "EURUSD", Level.CRITICAL, 1, 300),
        Asset("GBPUSD", "C:GBPUSD", AssetType.FOREX, "GBPUSD", Level.MEDIUM, 0, 300),
    )


def test_an_asset_may_have_hours_of_a_name_or_of_its_own(cwd: Path) -> None:
    lines = ("Mon-Fri 08:00-22:00 Europe/Berlin", "Sun 18:00 - Fri 17:00")
    text = (
        asset_toml(hours='"us"')
        + asset_toml(symbol='"A"', hours=str(list(lines)))
        + asset_toml(symbol='"B"')
    )

    named, own, left_out = settings_of(cwd, text).assets

    assert (named.hours, own.hours, left_out.hours) == ("us", lines, None)
    assert hours_of(named) is US
    assert hours_of(own) is hours_of(own)  # made once
    assert not hours_of(own).is_open(datetime(2026, 7, 12, 21, 55, tzinfo=UTC))
    assert hours_of(own).is_open(datetime(2026, 7, 12, 22, 0, tzinfo=UTC))


@pytest.mark.parametrize(
    ("kind", "ticker", "usual"),
    [
        (AssetType.FOREX, "C:EURUSD", FX),
        (AssetType.FOREX, "C:XAUUSD", METALS),
        (AssetType.FOREX, "C:XAGEUR", METALS),
        (AssetType.FOREX, "C:XPTUSD", METALS),
        (AssetType.FOREX, "C:XPDUSD", METALS),
        (AssetType.FOREX, "C:USDXAU", FX),
        (AssetType.CRYPTO, "X:BTCUSD", CRYPTO),
        (AssetType.CRYPTO, "X:XAUUSD", CRYPTO),
    ],
)
def test_hours_that_are_left_out_are_those_of_the_market(
    kind: AssetType, ticker: str, usual: Hours
) -> None:
    assert hours_of(Asset("A", ticker, kind, "A", Level.LOW, 0, 300)) is usual


def test_every_wrong_line_of_hours_is_named(cwd: Path) -> None:
    own = '["Mon 25:00-26:00", "Tue 08:00-12:00", "Wed 08:00-08:00"]'
    [mistake] = mistakes_of(cwd, asset_toml(hours=own))

    assert mistake == (
        'FILE: secondary_assets[1].hours (EURUSD) is wrong: "Mon 25:00-26:00" has 25:00; times are'
        " 00:00 to 23:55 by steps of five minutes, and 24:00 as an end;"
        ' "Wed 08:00-08:00" begins and ends at the same time; a whole day is 00:00-24:00.'
    )


def test_no_time_zone_is_read_with_settings_whose_hours_name_none(cwd: Path) -> None:
    (cwd / "assets.toml").write_text(asset_toml(hours='["Mon-Fri 08:00-22:00"]'))
    program = (
        "import sys; from pathlib import Path; from asset_sync.settings import load;"
        "load(Path('assets.toml'), {}, cwd=Path()); sys.exit('zoneinfo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=cwd, check=True)


def test_a_switched_off_asset_is_known_but_not_kept_fresh(cwd: Path) -> None:
    text = (
        asset_toml("priority_assets", enabled="false")
        + asset_toml(symbol='"GBPUSD"', polygon_ticker='"C:GBPUSD"', enabled="false")
        + asset_toml(symbol='"USDJPY"', polygon_ticker='"C:USDJPY"', enabled="true")
    )

    read = settings_of(cwd, text)

    assert [asset.symbol for asset in read.assets] == ["USDJPY"]
    assert (read.critical, read.others) == ((), read.assets)
    assert [asset.symbol for asset in read.switched_off] == ["EURUSD", "GBPUSD"]
    assert read.named == (*read.assets, *read.switched_off)


def test_a_symbol_may_occur_only_once_even_if_one_of_the_two_is_switched_off(cwd: Path) -> None:
    [mistake] = mistakes_of(cwd, asset_toml(enabled="false") + asset_toml())

    assert "a symbol may stand only once" in mistake


@pytest.mark.parametrize("value", ['"no"', "0", '"false"'])
def test_only_false_switches_an_asset_off(cwd: Path, value: str) -> None:
    [mistake] = mistakes_of(cwd, asset_toml(enabled=value))

    assert "secondary_assets[1].enabled (EURUSD)" in mistake


def test_critical_assets_are_ordered_by_priority_then_place_and_others_by_place(
    cwd: Path,
) -> None:
    text = "".join(
        asset_toml("priority_assets", symbol=f'"{symbol}"', priority=priority)
        for symbol, priority in (("THIRD", "9"), ("FIRST", "1"), ("SECOND", "1"))
    )
    text += asset_toml(symbol='"LOW"', priority='"low"')
    text += asset_toml(symbol='"HIGH"', priority='"high"')

    read = settings_of(cwd, text)

    assert [asset.symbol for asset in read.critical] == ["FIRST", "SECOND", "THIRD"]
    assert [asset.symbol for asset in read.others] == ["LOW", "HIGH"]


def test_a_file_may_begin_with_a_byte_order_mark(cwd: Path) -> None:
    (cwd / "assets.toml").write_bytes(b"\xef\xbb\xbf[queue]\r\nmax_size = 8\r\n")
    assert load(None, {}, cwd=cwd).queue.max_size == 8


# --- Plans and the limit in force ----------------------------------------------------------------


def test_a_free_key_has_five_calls_a_minute_and_only_bars() -> None:
    free = PLANS["free"]
    assert (free.calls, free.period_seconds, free.history_days) == (5, 60, 720)
    assert free.feeds == (Feed.BARS,)


@pytest.mark.parametrize("name", ["starter", "developer", "advanced"])
def test_a_paid_key_has_a_hundred_calls_a_second_and_snapshots_first(name: str) -> None:
    assert PLANS[name].name == name
    assert (PLANS[name].calls, PLANS[name].period_seconds) == (100, 1)
    assert PLANS[name].feeds == (Feed.SNAPSHOT, Feed.BARS)


@pytest.mark.parametrize(
    ("toml", "environ", "calls", "period_seconds"),
    [
        ('provider.plan = "advanced"', {}, 100, 1),
        ('provider.plan = "advanced"\nrate_limit.calls = 50', {}, 50, 1),
        ("rate_limit = {calls = 4, period_seconds = 61}", {}, 4, 61),
        ("", {"POLYGON_TIER": "Developer"}, 100, 1),
        ("rate_limit.calls = 4", {"POLYGON_TIER": "starter"}, 4, 1),
        ("rate_limit.calls = 4", {"POLYGON_RATE_LIMIT": "3"}, 3, 60),
        ("", {"POLYGON_TIER": "starter", "POLYGON_RATE_LIMIT": "3"}, 3, 1),
    ],
)
def test_the_limit_comes_from_the_environment_or_else_the_file_or_else_the_plan(
    cwd: Path, toml: str, environ: dict[str, str], calls: int, period_seconds: float
) -> None:
    assert settings_of(cwd, toml, **environ).rate_limit == RateLimit(calls, period_seconds)


# --- The environment over the file ---------------------------------------------------------------

FULL_FILE = """
provider = {plan = "developer", base_url = "https://file.example"}
rate_limit.calls = 50
batch = {interval_minutes = 7, priority_assets_enabled = true}
queue.max_size = 70
"""


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("POLYGON_TIER", "starter", lambda s: s.provider.plan.name == "starter"),
        ("POLYGON_BASE_URL", "https://e.example", lambda s: s.provider.base_url[8:] == "e.example"),
        ("POLYGON_RATE_LIMIT", "2", lambda s: s.rate_limit.calls == 2),
        ("POLYGON_PARALLEL_CALLS", "3", lambda s: s.provider.calls_in_flight == 3),
        ("BATCH_INTERVAL_MINUTES", "2.5", lambda s: s.batch.interval_seconds == 150),
        ("PRIORITY_ASSETS_ENABLED", "no", lambda s: not s.batch.priority_assets_enabled),
        ("QUEUE_MAX_SIZE", " 9 ", lambda s: s.queue.max_size == 9),
        ("POLYGON_API_KEY", HIDDEN, lambda s: s.provider.api_key == Secret(HIDDEN)),
        ("POLYGON_API_KEY", f" {HIDDEN}\n", lambda s: s.provider.api_key == Secret(HIDDEN)),
        ("MASSIVE_API_KEY", HIDDEN, lambda s: s.provider.api_key == Secret(HIDDEN)),
        ("REDIS_URL", "redis://cache", lambda s: s.bus_url == Secret("redis://cache")),
        ("REDIS_URL", "unix:///run/r.sock", lambda s: s.bus_url is not None),
        ("PING_URL", "https://hc/1", lambda s: s.monitoring.ping_url == Secret("https://hc/1")),
    ],
)
def test_a_variable_overrides_the_file(
    cwd: Path, name: str, value: str, read: Callable[[Settings], bool]
) -> None:
    assert not read(settings_of(cwd, FULL_FILE))
    assert read(settings_of(cwd, FULL_FILE, **{name: value}))


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE"])
def test_each_word_for_yes_is_read_as_true(cwd: Path, word: str) -> None:
    toml = "batch.priority_assets_enabled = false"
    assert settings_of(cwd, toml, PRIORITY_ASSETS_ENABLED=word).batch.priority_assets_enabled


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "Off"])
def test_each_word_for_no_is_read_as_false(cwd: Path, word: str) -> None:
    assert not settings_of(cwd, "", PRIORITY_ASSETS_ENABLED=word).batch.priority_assets_enabled


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_counts_as_unset(cwd: Path, empty: str) -> None:
    emptied = dict.fromkeys(VARIABLES, empty) | dict.fromkeys(settings.LIBPQ_VARIABLES, empty)
    assert settings_of(cwd, FULL_FILE, **emptied) == settings_of(cwd, FULL_FILE)


def test_polygon_api_key_overrides_massive_api_key(cwd: Path) -> None:
    read = settings_of(cwd, "", POLYGON_API_KEY="polygon", MASSIVE_API_KEY="massive")
    assert read.provider.api_key == Secret("polygon")


class Recorder(Mapping[str, str]):
    """An empty environment that records which variables are read."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_the_list_of_variables_is_complete() -> None:
    recorder = Recorder()
    with pytest.raises(SettingsError):  # No file is named, so that all places are searched.
        load(Path("/does/not/exist"), recorder)
    load(None, recorder, cwd=SHIPPED_FILE.parent)

    others = {"HOME", "SUDO_UID", "XDG_CONFIG_HOME", *settings.LIBPQ_VARIABLES}
    assert recorder.asked == set(VARIABLES) | others


# --- The database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pass@one:5432,two:5433/prices?target_session_attrs=read-write",
        "postgres://localhost/prices",
        "host=one,two dbname=prices password=ends\\ ",
        "  service = prices",
    ],
)
def test_database_url_is_used_unchanged(cwd: Path, url: str) -> None:
    assert settings_of(cwd, "", DATABASE_URL=url).conninfo == Secret(url)


@pytest.mark.parametrize(
    "value", ["plain", r"it's", "back\\slash", "a b", "\\", "'", "x='y' \\' z", " rim ", "é\n"]
)
def test_db_variables_reach_libpq_unchanged(cwd: Path, value: str) -> None:
    conninfo = settings_of(
        cwd,
        "",
        DB_HOST="one,two",
        DB_PORT="5432,5433",
        DB_NAME="prices",
        DB_USER="o'neil \\",
        DB_PASSWORD=value,
    ).conninfo

    assert conninfo is not None
    assert parse_dsn(conninfo.reveal()) == {
        "host": "one,two",
        "port": "5432,5433",
        "dbname": "prices",
        "user": "o'neil \\",
        "password": value,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("DB_HOST", "host"),
        ("DB_PORT", "port"),
        ("DB_NAME", "dbname"),
        ("DB_USER", "user"),
        ("DB_PASSWORD", "password"),
    ],
)
def test_each_db_variable_alone_names_a_server(cwd: Path, name: str, part: str) -> None:
    conninfo = settings_of(cwd, "", **{name: "5432"}).conninfo
    assert conninfo is not None
    assert parse_dsn(conninfo.reveal()) == {part: "5432"}


@pytest.mark.parametrize("name", settings.LIBPQ_VARIABLES)
def test_libpqs_own_variables_are_read_by_libpq(cwd: Path, name: str) -> None:
    assert settings_of(cwd, "", **{name: "x"}).conninfo == Secret("")


def test_database_url_overrides_db_variables_and_these_override_libpqs(cwd: Path) -> None:
    libpq = {"PGHOST": "libpq"}
    parts = libpq | {"DB_HOST": "parts", "DB_PORT": "never read"}
    url = parts | {"DATABASE_URL": "postgresql://url"}

    assert settings_of(cwd, "", **url).conninfo == Secret("postgresql://url")
    assert settings_of(cwd, "", **parts | {"DB_PORT": "1"}).conninfo == Secret(
        "host='parts' port='1'"
    )
    assert settings_of(cwd, "", **libpq).conninfo == Secret("")
    assert settings_of(cwd, "").conninfo is None


# --- Secrets -------------------------------------------------------------------------------------

SECRETS = {
    "POLYGON_API_KEY": HIDDEN,
    "MASSIVE_API_KEY": HIDDEN,
    "DATABASE_URL": f"postgresql://user:{HIDDEN}@host/prices",
    "DB_PASSWORD": HIDDEN,
    "REDIS_URL": f"redis://:{HIDDEN}@cache",
    "PING_URL": f"https://hc.example/{HIDDEN}",
}


def test_no_secret_is_shown_in_any_text_form_of_the_settings(cwd: Path) -> None:
    names = ("POLYGON_API_KEY", "DATABASE_URL", "REDIS_URL", "PING_URL")
    read = settings_of(cwd, "", **{name: SECRETS[name] for name in names})
    assert read.provider.api_key is not None
    assert read.provider.api_key.reveal() == HIDDEN

    secret = read.provider.api_key
    for shown in (
        repr(read),
        str(read),
        repr(dataclasses.asdict(read)),
        f"{secret} {secret!r} {secret!s} {secret:>40} {secret!a}",
        "%s %r" % (secret, secret),  # noqa: UP031  logging formats like this
    ):
        assert HIDDEN not in shown
    assert str(secret) == repr(secret) == f"{secret}" == "***"


def test_a_secret_has_a_fingerprint_and_can_be_compared(cwd: Path) -> None:
    secret = Secret("abc")
    assert secret.fingerprint() == hashlib.sha256(b"abc").hexdigest()[:12]
    assert (secret == Secret("abc"), secret == Secret("abd"), secret == "abc") == (
        True,
        False,
        False,
    )
    assert len({secret, Secret("abc")}) == 1


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_can_be_read_from_a_file(cwd: Path, name: str) -> None:
    (cwd / "credential").write_text(f"\n {SECRETS[name]} \n", encoding="utf-8")

    read = settings_of(cwd, "", **{f"{name}_FILE": str(cwd / "credential")})

    found = {read.provider.api_key, read.conninfo, read.bus_url, read.monitoring.ping_url}
    expected = f"password='{HIDDEN}'" if name == "DB_PASSWORD" else SECRETS[name]
    assert found == {Secret(expected), None}


def test_these_tests_cover_every_secret() -> None:
    assert set(SECRETS) == set(settings.SECRET_VARIABLES)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_set_twice_is_a_mistake(cwd: Path, name: str) -> None:
    (cwd / "credential").write_text(SECRETS[name], encoding="utf-8")
    environ = {name: SECRETS[name], f"{name}_FILE": str(cwd / "credential")}
    assert mistakes_of(cwd, "", **environ) == (
        f"environment: {name} and {name}_FILE are both set; set only one of them.",
    )


@pytest.mark.parametrize("name", SECRETS)
def test_a_secrets_file_that_cannot_be_used_is_named(cwd: Path, name: str) -> None:
    (cwd / "empty").write_text(" \n", encoding="utf-8")
    (cwd / "latin1").write_bytes(b"k\xe9y")
    (cwd / "huge").write_bytes(b"x" * (64 * 1024 + 1))
    (cwd / "loop").symlink_to("loop")

    for file, wrong in (
        ("empty", "is empty"),
        ("latin1", "is not UTF-8"),
        ("huge", "is larger than 64 KiB"),
        ("missing", "does not exist"),
        (".", "is a directory"),
        ("loop", f"cannot be read ({os.strerror(errno.ELOOP)})"),
    ):
        [mistake] = mistakes_of(cwd, "", **{f"{name}_FILE": str(cwd / file)})
        assert mistake.startswith(f"environment: {name}_FILE names {cwd / file}, which {wrong};")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_given_in_place_of_its_files_path_is_not_shown(cwd: Path, name: str) -> None:
    [mistake] = mistakes_of(cwd, "", **{f"{name}_FILE": SECRETS[name]})

    assert mistake.startswith(f"environment: {name}_FILE names a file that does not exist;")
    assert HIDDEN not in mistake


@pytest.mark.parametrize(
    ("name", "values", "verdict"),
    [
        (
            "POLYGON_API_KEY",
            (f"{HIDDEN} {HIDDEN}", f"{HIDDEN}é"),
            "holds a space or another character that no key has",
        ),
        ("MASSIVE_API_KEY", (f"{HIDDEN}\x07{HIDDEN}",), "another character that no key has"),
        (
            "DATABASE_URL",
            (HIDDEN, f"mysql://u:{HIDDEN}@h/d", f"postgresql+psycopg2://{HIDDEN}?a=b"),
            "is no address of a PostgreSQL database",
        ),
        ("REDIS_URL", (f"http://:{HIDDEN}@cache",), "is no address of a Redis server"),
        (
            "PING_URL",
            (
                HIDDEN,
                f"http://hc.example/{HIDDEN}",
                f"http://localhost.example/{HIDDEN}",
                f"https://user:{HIDDEN}@hc.example",
                f"https://hc.example/{HIDDEN}#top",
                f"https://hc.example/{HIDDEN}/{{lane}}",
                f"ftp://hc.example/{HIDDEN}",
            ),
            "is no URL to ping",
        ),
        *(
            (name, (f"{HIDDEN}\0", f"{HIDDEN}\udce9"), "holds a NUL or is not UTF-8")
            for name in (
                "POLYGON_API_KEY",
                "DATABASE_URL",
                "DB_PASSWORD",
                "DB_HOST",
                "QUEUE_MAX_SIZE",
            )
        ),
    ],
)
def test_the_variable_of_an_invalid_secret_is_named_and_its_value_is_not_shown(
    cwd: Path, name: str, values: tuple[str, ...], verdict: str
) -> None:
    for value in values:
        [mistake] = mistakes_of(cwd, "", **{name: value})
        assert mistake.startswith(f"environment: {name} ")
        assert verdict in mistake
        assert HIDDEN not in mistake


@pytest.mark.parametrize("value", [f'"http://hc.example/{HIDDEN}"', f"['{HIDDEN}']", "1"])
def test_an_invalid_ping_url_in_the_file_is_not_shown(cwd: Path, value: str) -> None:
    [mistake] = mistakes_of(cwd, f"monitoring.ping_url = {value}")

    assert mistake.startswith("FILE: monitoring.ping_url is no URL to ping;")
    assert HIDDEN not in mistake


@pytest.mark.parametrize(
    "url",
    [
        "https://hc-ping.com/0d338dcc-a054-11ec-b909-0242ac120002",
        "https://hc-ping.com/key/asset-sync-{command}?create=1",
        "https://[2001:db8::1]:8443/ping/a",
        "https://hc.example?check={command}",
        "http://127.0.0.1:8000/ping/a",
        "http://[::1]/a",
        "http://localhost",
    ],
)
def test_a_ping_url_is_used_unchanged(cwd: Path, url: str) -> None:
    for read in (
        settings_of(cwd, f'monitoring.ping_url = "{url}"'),
        settings_of(cwd, "", PING_URL=f" {url}\n"),
    ):
        assert read.monitoring.ping_url == Secret(url)


@pytest.mark.parametrize(
    "value", ["'mail me'", "[]", "['']", f"['{HIDDEN}', 1]", '["a", "b\\u0000"]']
)
def test_a_command_that_cannot_be_started_is_a_mistake(cwd: Path, value: str) -> None:
    [mistake] = mistakes_of(cwd, f"monitoring.on_failure = {value}")

    assert mistake.startswith("FILE: monitoring.on_failure is ")
    assert "a program and its arguments" in mistake
    assert HIDDEN not in mistake


def test_the_file_of_an_invalid_secret_is_named(cwd: Path) -> None:
    (cwd / "credential").write_text(f"{HIDDEN}\n{HIDDEN}", encoding="utf-8")

    [mistake] = mistakes_of(cwd, "", POLYGON_API_KEY_FILE="credential")

    assert mistake.startswith("environment: POLYGON_API_KEY_FILE holds a space or ")
    assert HIDDEN not in mistake


@pytest.mark.parametrize(
    ("toml", "key", "variable"),
    [
        ("provider.api_key = 'X'", "provider.api_key", "POLYGON_API_KEY"),
        ("POLYGON_API_KEY = 'X'", "POLYGON_API_KEY", "POLYGON_API_KEY"),
        ("[database]\nurl = 'X'", "database", "DATABASE_URL"),
        ("batch.db_password = 'X'", "batch.db_password", "DATABASE_URL"),
        ("redis_url = 'X'", "redis_url", "REDIS_URL"),
    ],
)
def test_a_secret_in_the_file_is_sent_where_it_belongs(
    cwd: Path, toml: str, key: str, variable: str
) -> None:
    assert mistakes_of(cwd, toml.replace("X", HIDDEN)) == (
        (
            f"FILE: {key} does not belong in the file; set {variable} in the environment,"
            f" or {variable}_FILE to the path of a file that holds it."
        ),
    )


# --- Mistakes in the file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("queue.max_sise = 1", "queue.max_sise is not a setting; did you mean max_size"),
        (
            "batch.colour = 1",
            "batch.colour is not a setting; known here: interval_minutes, priority_assets_enabled",
        ),
        ("queue = 5", "queue is 5; it must be a table, written [queue]"),
        (
            'queue.max_size = "1000"',
            'queue.max_size is "1000"; it must be a whole number from 1 to 1000000',
        ),
        (
            "provider.plan = 'gold'",
            'provider.plan is "gold"; it must be one of "free", "starter", "developer", "advanced"',
        ),
        (asset_toml(symbol=None), "secondary_assets[1].symbol is missing; every asset needs one"),
        (
            asset_toml(symbol='"eurusd"'),
            (
                'secondary_assets[1].symbol is "eurusd"; it must be 1 to 32 characters of A-Z, 0-9,'
                " dot, _ and -, the first a letter or a digit"
            ),
        ),
        (
            asset_toml(symbol='"XAUUSD"', polygon_ticker='"XAUUSD"'),
            (
                'secondary_assets[1].polygon_ticker (XAUUSD) is "XAUUSD";'
                ' a forex ticker begins with "C:", such as "C:XAUUSD"'
            ),
        ),
        (
            f'provider.base_url = "https://{HIDDEN}@api.polygon.io"',
            (
                "provider.base_url is not a base URL; it must be https:// and a host, such as"
                ' "https://api.polygon.io", without user, query or fragment'
            ),
        ),
        (
            'provider.base_url = "http://api.polygon.io"',
            (
                "provider.base_url sends the key over http:// to another machine; it must begin"
                " with https://, or provider.allow_insecure_http must be true"
            ),
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_the_key_and_the_valid_values(
    cwd: Path, toml: str, sentence: str
) -> None:
    assert mistakes_of(cwd, toml) == (f"FILE: {sentence}.",)


@pytest.mark.parametrize(
    ("key", "values", "verdict"),
    [
        ("qeue", ("{max_size = 1}",), "did you mean queue"),
        ("queue.MAX_SIZE", ("1",), "did you mean max_size"),
        ("queue", ("[{}]",), "must be a table"),
        ("priority_assets", ("{}",), "must be tables, each written [[priority_assets]]"),
        ("secondary_assets[1]", (), "must be a table, written [[secondary_assets]]"),
        ("queue.max_size", ("true", "5.0", "2026-01-01"), "a whole number from 1 to 1000000"),
        ("queue.max_attempts", ("101",), "a whole number from 1 to 100"),
        ("queue.retry_delay_seconds", ("0",), "a whole number from 1 to 86400"),
        ("queue.aging_seconds", ("-1",), "a whole number from 0 to 604800"),
        ("rate_limit.calls", ("0", "9" * 100), "a whole number from 1 to 10000"),
        ("rate_limit.period_seconds", ("nan", "1e999", "9" * 400), "a number from 0.1 to 86400"),
        ("rate_limit.hold_for_priority", ("'yes'",), "true or false"),
        ("provider.call_timeout_seconds", ("-1", "true"), "a number from 0.1 to 600"),
        ("provider.plan", ("1",), 'one of "free", "starter"'),
        ("batch.interval_minutes", ("false", "0.4"), "a number from 0.5 to 1440"),
        ("batch.priority_assets_enabled", ("1",), "true or false"),
        (
            "provider.base_url",
            (
                "5",
                '""',
                '"api.polygon.io"',
                '"ftp://api.polygon.io"',
                '"https://"',
                f'"https://api.polygon.io?apiKey={HIDDEN}"',
                '"https://api.polygon.io#x"',
                '"https://api.polygon.io:99999"',
                '"https://[::1"',
                '"https://api.polygon.io:0"',
                '"https://api.polygon.io\\\\@evil.example"',
                '"https://a/../\\u202e"',
                '"https://api.polygon.io/a b"',
                '"https://api.polygon.io\\n"',
                '"https://api.polygon.io\\u0000"',
            ),
            "is not a base URL",
        ),
        (
            "provider.base_url",
            ('"http://127.0.0.1.evil.example"', '"http://192.168.0.1:80"'),
            "sends the key over http://",
        ),
    ],
)
def test_an_invalid_setting_is_named_with_its_valid_values(
    cwd: Path, key: str, values: tuple[str, ...], verdict: str
) -> None:
    lines = [f"{key} = {value}" for value in values] or ['secondary_assets = ["EURUSD"]']
    for toml in lines:
        [mistake] = mistakes_of(cwd, toml)
        assert mistake.startswith(f"FILE: {key} ")
        assert verdict in mistake
        assert HIDDEN not in mistake


@pytest.mark.parametrize(
    ("key", "values", "verdict"),
    [
        ("ticker", ('"C:EURUSD"',), "did you mean polygon_ticker"),
        ("zzz", ("1",), "known here: priority, symbol, asset_type, polygon_ticker, name, update_"),
        ("priority", ('"urgent"', '"critical"', "1"), 'one of "high", "medium", "low"'),
        ("asset_type", (None,), "is missing"),
        ("asset_type", ('"metal"',), 'one of "forex", "crypto" (metals are forex)'),
        ("update_frequency_seconds", ("0",), "a whole number from 1 to 2592000"),
        ("polygon_ticker", (None,), "is missing"),
        ("polygon_ticker", ('"X:EURUSD"', '"C:"', "7"), 'begins with "C:", such as "C:EURUSD"'),
        ("name", ('" "', '"a\\u0000"', f'"{"é" * 201}"'), "1 to 200 characters"),
        ("hours", ('"FX"', '"stocks"', '""', "[]", "[1]", "24", "{}"), 'one of "fx", "metals", '),
        ("hours", ('["Mon 08:00-12:00", 7]', '"Mon 08:00-12:00"'), "or an array of strings such"),
        ("hours", ('["fx"]', '["Mon-Fri 8-12"]'), '" must be days and times, such as "Mon-Fri '),
        ("hours", ('["Mon-Fri 08:03-12:00"]',), 'is wrong: "Mon-Fri 08:03-12:00" has 08:03; times'),
        (
            "hours",
            ('["Mon-Fri 08:00-12:00 Mars"]',),
            "cannot be used: Mars is no time zone that this machine knows.",
        ),
    ],
)
def test_an_invalid_key_of_an_asset_is_named_with_the_asset_and_its_valid_values(
    cwd: Path, key: str, values: tuple[str | None, ...], verdict: str
) -> None:
    for value in values:
        [mistake] = mistakes_of(cwd, asset_toml("secondary_assets", **{key: value}))
        assert mistake.startswith(f"FILE: secondary_assets[1].{key} (EURUSD) ")
        assert verdict in mistake


@pytest.mark.parametrize("value", ['"high"', "0"])
def test_the_priority_of_a_priority_asset_is_a_number(cwd: Path, value: str) -> None:
    [mistake] = mistakes_of(cwd, asset_toml("priority_assets", priority=value))

    assert mistake.startswith("FILE: priority_assets[1].priority (EURUSD) is ")
    assert "a whole number from 1 to 1000000" in mistake


@pytest.mark.parametrize("value", ['""', '"-EUR"', '"EUR\\n"', '"EUR\\u0000"', f'"{"A" * 33}"'])
def test_the_message_about_an_invalid_symbol_names_the_assets_place(cwd: Path, value: str) -> None:
    [mistake] = mistakes_of(cwd, asset_toml(symbol=value))

    assert mistake.startswith("FILE: secondary_assets[1].symbol is ")
    assert "1 to 32 characters of A-Z" in mistake


def test_the_message_about_a_malformed_ticker_shows_the_correct_form(cwd: Path) -> None:
    [mistake] = mistakes_of(cwd, asset_toml(asset_type='"crypto"', polygon_ticker='"eth-usd"'))

    assert mistake.endswith('a crypto ticker begins with "X:", such as "X:ETHUSD".')


@pytest.mark.parametrize(
    ("toml", "shown"),
    [
        ("queue.max_size = 2026-01-01", "is a date or time;"),
        ("queue.max_size = 0.5", "is 0.5;"),
        ("rate_limit.period_seconds = 1e999", "is inf;"),
        (f"rate_limit.calls = {'9' * 100}", "is a huge number;"),
        (f"rate_limit.calls = 0x{'f' * 5000}", "is a huge number;"),
        (asset_toml(symbol=f'"{"A" * 41}"'), f'is "{"A" * 40}…";'),
        (asset_toml(symbol='"EUR\\u0000"'), 'is "EUR\\x00";'),
        (
            '"a\\u001b b" = 1',
            '"a\\x1b b" is not a setting; known here: provider, rate_limit, queue,',
        ),
    ],
)
def test_values_in_messages_are_printable_on_any_terminal(cwd: Path, toml: str, shown: str) -> None:
    [mistake] = mistakes_of(cwd, toml)

    assert shown in mistake


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("POLYGON_TIER", "gold", 'is "gold"; it must be one of "free", '),
        ("POLYGON_RATE_LIMIT", "0", "is 0; it must be a whole number from 1 to 10000"),
        ("POLYGON_RATE_LIMIT", "5.0", 'is "5.0"; it must be a whole number'),
        ("POLYGON_RATE_LIMIT", "1_0", 'is "1_0"; it must be a whole number'),
        ("POLYGON_RATE_LIMIT", "٣", 'is "٣"; it must be a whole number'),
        ("QUEUE_MAX_SIZE", "9" * 5000, f'is "{"9" * 40}…"; it must be a whole number'),
        ("BATCH_INTERVAL_MINUTES", "nan", 'is "nan"; it must be a number from 0.5 to 1440'),
        ("BATCH_INTERVAL_MINUTES", "0", "is 0.0; it must be a number from 0.5 to 1440"),
        ("PRIORITY_ASSETS_ENABLED", "ja", 'is "ja"; it must be true or false'),
        ("POLYGON_BASE_URL", f"https://{HIDDEN}@h", "is not a base URL"),
        ("POLYGON_BASE_URL", "http://h", "sends the key over http:// to another machine"),
        ("DB_PORT", "99999", 'is "99999"; it must be a port from 1 to 65535'),
        ("DB_PORT", "5432,", 'is "5432,"; it must be a port'),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    cwd: Path, name: str, value: str, verdict: str
) -> None:
    [mistake] = mistakes_of(cwd, "", **{name: value})

    assert mistake.startswith(f"environment: {name} {verdict}")
    assert HIDDEN not in mistake


def test_all_mistakes_in_the_file_and_the_environment_are_reported_at_once(cwd: Path) -> None:
    text = (
        "rate_limit.calls = -5\nqueue.sise = 1\n"
        + asset_toml("priority_assets", symbol='"A"', priority='"first"')
        + asset_toml(symbol='"A"', polygon_ticker='"A"', colour="1")
    )
    found = mistakes_of(cwd, text, POLYGON_RATE_LIMIT="x", POLYGON_API_KEY="a b")

    assert [re.split(r" (?:is|holds|stands) ", mistake)[0] for mistake in found] == [
        "environment: POLYGON_API_KEY",
        "FILE: rate_limit.calls",
        "environment: POLYGON_RATE_LIMIT",
        "FILE: priority_assets[1].priority (A)",
        "FILE: secondary_assets[1].polygon_ticker (A)",
        "FILE: secondary_assets[1].symbol (A)",
        "FILE: queue.sise",
        "FILE: secondary_assets[1].colour (A)",
    ]


def test_a_repeated_asset_is_named_with_its_first_place(cwd: Path) -> None:
    text = asset_toml("priority_assets") + asset_toml(symbol='"B"') + asset_toml()

    assert mistakes_of(cwd, text) == (
        (
            "FILE: secondary_assets[2].symbol (EURUSD) stands in priority_assets[1] already;"
            " a symbol may stand only once."
        ),
    )


def test_if_the_type_is_invalid_the_ticker_is_not_reported_too(cwd: Path) -> None:
    sentences = mistakes_of(cwd, asset_toml(asset_type="1", polygon_ticker='"X:BTCUSD"'))
    assert [sentence.split()[1] for sentence in sentences] == ["secondary_assets[1].asset_type"]

    sentences = mistakes_of(cwd, asset_toml(asset_type="1", polygon_ticker='"BTCUSD"'))
    assert sentences[1].endswith(
        'a forex ticker begins with "C:", such as "C:BTCUSD" or'
        ' a crypto ticker begins with "X:", such as "X:BTCUSD".'
    )


def test_a_mistake_in_the_file_is_reported_even_if_a_variable_overrides_the_value(
    cwd: Path,
) -> None:
    assert len(mistakes_of(cwd, "queue.max_size = 0", QUEUE_MAX_SIZE="5")) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://127.9.9.9", "http://[::1]:1", "http://LocalHost:80/x"]
)
def test_http_is_allowed_to_this_machine(cwd: Path, url: str) -> None:
    assert settings_of(cwd, "", POLYGON_BASE_URL=url).provider.base_url == url


def test_http_to_another_machine_needs_an_explicit_setting(cwd: Path) -> None:
    toml = "provider = {base_url = 'http://10.0.0.1', allow_insecure_http = true}"
    assert settings_of(cwd, toml).provider.base_url == "http://10.0.0.1"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[queue]\nmax_size = = 5\n", "is not TOML: Invalid value (at line 2, column 12)"),
        (b"[queue]\nmax_size = 5\nmax_size = 5", "is not TOML: Cannot overwrite a value"),
        (b"a = \0", "is not TOML: Invalid value (at line 1, column 5)"),
        (b"a = " + b"9" * 5000, "is not usable: it holds a number of thousands of digits"),
        (b"a = " + b"[" * 100_000, "is not usable: its values are nested too deeply"),
        (b"# \xe9", "is not UTF-8; it must be a readable TOML file in UTF-8, of at most 1 MiB"),
        (b"#" * (1024 * 1024 + 1), "is larger than 1024 KiB; it must be "),
    ],
)
def test_the_message_about_invalid_toml_names_the_line(
    cwd: Path, content: bytes, sentence: str
) -> None:
    path = cwd / "assets.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load(None, {}, cwd=cwd)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{path} {sentence}")


def test_a_file_of_the_greatest_size_is_read(cwd: Path) -> None:
    path = cwd / "assets.toml"
    path.write_bytes(b"#" * (1024 * 1024))
    assert load(None, {}, cwd=cwd).source == path


# --- Which file ----------------------------------------------------------------------------------


def test_the_first_file_of_the_search_order_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test may not write into the machine's own /etc.
    monkeypatch.setattr(settings.files, "SYSTEM_FILE", tmp_path / "etc" / "assets.toml")
    environ = {
        "ASSET_SYNC_CONFIG": str(tmp_path / "named.toml"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "HOME": str(tmp_path / "home"),
    }
    flag = tmp_path / "flag.toml"
    places = [
        flag,
        tmp_path / "named.toml",
        tmp_path / "cwd" / "assets.toml",
        tmp_path / "xdg" / "asset-sync" / "assets.toml",
        tmp_path / "etc" / "assets.toml",
    ]
    for number, place in enumerate(places, start=1):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"queue.max_size = {number}", encoding="utf-8")

    for number, place in enumerate(places, start=1):
        if number == 3:
            del environ["ASSET_SYNC_CONFIG"]
        read = load(flag if number == 1 else None, environ, cwd=tmp_path / "cwd")
        assert (read.queue.max_size, read.source, read.shipped) == (number, place, False)
        place.unlink()

    read = load(None, environ, cwd=tmp_path / "cwd")
    assert (read.source, read.shipped) == (SHIPPED_FILE, True)


def test_the_users_directory_is_under_home_unless_xdg_says_otherwise(tmp_path: Path) -> None:
    under_home = Path("/home/u/.config/asset-sync/assets.toml")
    tail = (SYSTEM_FILE, SHIPPED_FILE)
    here = (tmp_path / "assets.toml",)

    assert Path("/etc/asset-sync/assets.toml") == SYSTEM_FILE
    assert search_places({}, tmp_path) == here + tail
    assert search_places({"HOME": "/home/u"}, tmp_path) == (*here, under_home, *tail)
    relative = {"HOME": "/home/u", "XDG_CONFIG_HOME": "relative"}
    assert search_places(relative, tmp_path) == (*here, under_home, *tail)
    xdg = {"HOME": "/home/u", "XDG_CONFIG_HOME": "/xdg"}
    assert search_places(xdg, tmp_path) == (*here, Path("/xdg/asset-sync/assets.toml"), *tail)


def test_a_named_file_must_exist(cwd: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(Path("gone.toml"), {"POLYGON_RATE_LIMIT": "x"}, cwd=cwd)
    file, environment = caught.value.mistakes
    assert file.startswith(f"{cwd / 'gone.toml'} (--config) does not exist;")
    assert environment.startswith("environment: POLYGON_RATE_LIMIT ")

    with pytest.raises(SettingsError, match=r"gone.toml \(ASSET_SYNC_CONFIG\) does not exist;"):
        load(None, {"ASSET_SYNC_CONFIG": "gone.toml"}, cwd=cwd)


def test_an_unreadable_file_is_a_mistake_and_is_not_skipped(cwd: Path) -> None:
    path = cwd / "assets.toml"

    path.mkdir()
    assert refusal(path).startswith(f"{path} is a directory;")
    path.rmdir()
    path.symlink_to("nowhere")
    assert refusal(path).startswith(f"{path} does not exist;")
    path.unlink()
    path.symlink_to("assets.toml")
    assert refusal(path).startswith(f"{path} cannot be read ({os.strerror(errno.ELOOP)});")


def test_an_impossible_path_is_a_mistake_and_not_a_traceback(cwd: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(Path("a\0\x1b"), {}, cwd=cwd)
    assert str(caught.value).startswith(f"{cwd}/a\\x00\\x1b (--config) is no path that can exist;")


# --- Owner and mode of the file ------------------------------------------------------------------


@pytest.fixture
def file() -> Iterator[Path]:
    """A settings file in a current directory that other accounts can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "assets.toml"
        path.write_text("queue.max_size = 8", encoding="utf-8")
        path.chmod(0o644)
        yield path


@pytest.fixture
def theirs(file: Path, other_account: str) -> Path:
    """The same file, owned by another account."""
    shutil.chown(file, other_account, other_account)
    return file


def refusal(path: Path, config: Path | None = None, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, environ, cwd=path.parent)
    return str(caught.value)


@pytest.mark.parametrize("config", [None, Path("assets.toml")])
def test_a_settings_file_that_everybody_may_write_is_refused(
    file: Path, config: Path | None
) -> None:
    file.chmod(0o666)

    sentence = refusal(file, config)

    assert f"can be changed by every account: run `chmod o-w {file}`." in sentence


def test_another_accounts_file_is_refused_unless_it_was_named(theirs: Path) -> None:
    assert refusal(theirs) == (
        f"{theirs} was only found in the current directory and belongs to another account "
        f"(asset_sync_other): name it, if you trust it: `--config {theirs}`; or make it yours: "
        f"`chown -h 0 {theirs}`."
    )


def test_a_link_that_another_account_put_in_the_current_directory_is_refused(
    cwd: Path, tmp_path: Path, other_account: str
) -> None:
    (tmp_path / "mine.toml").write_text("", encoding="utf-8")
    link = cwd / "assets.toml"
    link.symlink_to(tmp_path / "mine.toml")
    os.chown(link, pwd.getpwnam(other_account).pw_uid, -1, follow_symlinks=False)

    assert "belongs to another account" in refusal(link)


def test_a_file_that_another_group_may_write_is_refused_unless_it_was_named(
    file: Path, other_account: str
) -> None:
    shutil.chown(file, group=other_account)
    file.chmod(0o664)

    assert f"can be changed by its group: run `chmod g-w {file}`" in refusal(file)
    assert load(file, {}, cwd=file.parent).queue.max_size == 8


def test_a_containers_named_file_may_belong_to_any_account(theirs: Path) -> None:
    assert load(theirs, {}).queue.max_size == 8
    assert load(None, {"ASSET_SYNC_CONFIG": str(theirs)}).queue.max_size == 8


@pytest.mark.parametrize("config", [None, Path("assets.toml")])
def test_a_configmap_of_links_is_read(cwd: Path, config: Path | None) -> None:
    """Kubernetes mounts a file as a link into `..data`, which is a link to a dated directory."""
    (cwd / "..2026_11_21").mkdir()
    (cwd / "..2026_11_21" / "assets.toml").write_text("queue.max_size = 8", encoding="utf-8")
    (cwd / "..data").symlink_to("..2026_11_21")
    (cwd / "assets.toml").symlink_to("..data/assets.toml")

    assert load(config, {}, cwd=cwd).queue.max_size == 8


def test_a_file_that_only_the_users_own_group_may_write_is_accepted(
    theirs: Path, other_account: str
) -> None:
    theirs.chmod(0o664)
    os.seteuid(pwd.getpwnam(other_account).pw_uid)
    try:
        assert load(None, {}, cwd=theirs.parent).queue.max_size == 8
    finally:
        os.seteuid(0)


def test_sudo_in_a_users_home_reads_that_users_file(theirs: Path, other_account: str) -> None:
    caller = str(pwd.getpwnam(other_account).pw_uid)

    assert load(None, {"SUDO_UID": caller}, cwd=theirs.parent).queue.max_size == 8
    assert "belongs to another account" in refusal(theirs, SUDO_UID="12345")


def test_every_account_may_use_roots_file(file: Path, other_account: str) -> None:
    os.seteuid(pwd.getpwnam(other_account).pw_uid)
    try:
        assert load(None, {}, cwd=file.parent).queue.max_size == 8
    finally:
        os.seteuid(0)


# --- The file that is shipped --------------------------------------------------------------------


def test_the_shipped_file_changes_no_default(cwd: Path) -> None:
    shipped, empty = load(SHIPPED_FILE, {}), settings_of(cwd, "")
    assert dataclasses.replace(shipped, assets=(), source=empty.source, shipped=False) == empty


def test_the_shipped_file_shows_every_setting(cwd: Path) -> None:
    text = SHIPPED_FILE.read_text(encoding="utf-8").replace("# calls", "calls")
    text = text.replace("# period_seconds", "period_seconds").replace("# parallel", "parallel")
    text = text.replace("# ping_url", "ping_url").replace("# on_failure", "on_failure")
    read = settings_of(cwd, text)
    assert read.rate_limit == RateLimit(5, 60)

    for part in (read.provider, read.rate_limit, read.queue, read.batch, read.monitoring):
        for field in dataclasses.fields(part):
            assert field.name == "api_key" or f"\n{field.name} = " in text


def test_the_shipped_assets_are_gold_the_euro_and_bitcoin_then_four_others() -> None:
    read = load(SHIPPED_FILE, {})
    assert [(asset.symbol, asset.position) for asset in read.critical] == [
        ("XAUUSD", 1),
        ("EURUSD", 2),
        ("BTCUSD", 3),
    ]
    assert [(asset.symbol, asset.ticker, asset.level) for asset in read.others] == [
        ("ETHUSDT", "X:ETHUSDT", Level.MEDIUM),
        ("GBPUSD", "C:GBPUSD", Level.MEDIUM),
        ("USDJPY", "C:USDJPY", Level.MEDIUM),
        ("XAGUSD", "C:XAGUSD", Level.MEDIUM),
    ]


def test_the_file_at_the_top_of_the_repository_is_the_shipped_one() -> None:
    top = REPOSITORY / "assets.toml"
    assert top.read_bytes() == SHIPPED_FILE.read_bytes()
    assert load(top, {}).assets == load(SHIPPED_FILE, {}).assets


# --- Start-up ------------------------------------------------------------------------------------


def test_reading_the_settings_imports_no_slow_module() -> None:
    # Modules that the interpreter loaded before (many under coverage) do not count.
    program = (
        "import sys; before = set(sys.modules);"
        "from asset_sync.settings import load, SHIPPED_FILE; load(SHIPPED_FILE, {});"
        "print(*sorted({'hashlib', 'difflib', 'json', 'logging', 'rich', 'requests',"
        "'psycopg2', 'typer', 'importlib.resources'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == []
