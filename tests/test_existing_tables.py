"""Platform tables that differ from ours: a run finds out before any call what it cannot store."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import commandline
import pytest
from conftest import ETHER, asset
from machine import Machine
from psycopg2.extensions import make_dsn

from asset_sync import database
from asset_sync.database import (
    Connection,
    DatabaseError,
    NotInitialisedError,
    SchemaStatus,
    query,
    transaction,
)
from asset_sync.demo.server import StandIn
from asset_sync.model import AssetType
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, load
from asset_sync.store import existing_tables

ASSETS = load(SHIPPED_FILE, {}).assets
SYMBOLS = "trading.symbols"
BARS = "market_data.ohlcv_5m"
STATUS = "data_sources.data_sync_status"

NUMBERS = " ".join(
    f"alter {name} type numeric(18, 8)," for name in ("open", "high", "low", "close", "volume")
)
TRIGGER = f"""
create function {{0}}() returns trigger language plpgsql as $$ begin {{1}}; end $$;
create trigger {{0}} before insert or update on {BARS} for each row execute function {{0}}()
"""


def status(db: Connection) -> SchemaStatus:
    return existing_tables.status(db, ASSETS)


def stored(db: Connection) -> list[database.Row]:
    return query(
        db,
        f"""
        select (select count(*) from {SYMBOLS}), (select count(*) from {BARS}),
          (select count(*) from {STATUS})
        """,
    )


REFUSING = {
    "a start without time zone": (
        f"alter table {BARS} alter ts type timestamp",
        [
            (
                f"A bar comes back without its time zone (ts) from {BARS}. The table differs: "
                "ts is timestamp without"
            )
        ],
    ),
    "metadata as json": (
        f"""
        alter table {SYMBOLS} alter metadata drop default, alter metadata type json,
          alter metadata set default '{{}}'
        """,
        [
            f"A last price cannot be stored in {SYMBOLS} (42883: ",
            "The table differs: metadata is json. To",
        ],
    ),
    "an enum of asset types": (
        f"""
        create type trading.kind as enum ('forex', 'crypto');
        alter table {SYMBOLS} alter asset_type type trading.kind using asset_type::trading.kind
        """,
        [f"A new asset cannot be stored in {SYMBOLS} (42804: ", "asset_type is trading.kind."],
    ),
    "checked asset types": (
        f"alter table {SYMBOLS} add constraint known check (asset_type in ('FX', 'CRYPTO'))",
        [f"A new asset cannot be stored in {SYMBOLS} (23514: ", "it has the constraint known."],
    ),
    "a generated average": (
        f"""
        alter table {BARS} drop vwap,
          add vwap float8 generated always as ((high + low) / 2) stored
        """,
        [f"A bar cannot be stored in {BARS} (428C9: ", "differs: vwap is generated. To correct it"],
    ),
    "a symbol that is too short": (
        f"alter table {SYMBOLS} alter symbol type varchar(3)",
        [f"A new asset cannot be stored in {SYMBOLS} (22001: ", "symbol is character varying(3)"],
    ),
    "an average that takes no null": (
        f"alter table {BARS} alter vwap set not null",
        [
            f"A bar cannot be stored in {BARS} (23502: ",
            "differs: vwap takes no null. To correct it",
        ],
    ),
    "an error that takes no null": (
        f"alter table {STATUS} alter error_message set not null",
        [f"A sync status cannot be stored in {STATUS} (23502: ", "error_message takes no null"],
    ),
    "a name that has to be unique": (
        f"""
        create unique index one_type on {SYMBOLS} (asset_type);
        insert into {SYMBOLS} (symbol, asset_type) values ('A', 'forex'), ('B', 'crypto')
        """,
        [f"A new asset cannot be stored in {SYMBOLS} (23505: ", "the unique index one_type. To"],
    ),
}


@pytest.mark.parametrize("change", REFUSING)
def test_each_refusal_of_an_existing_table_is_reported_with_a_cure_that_works(
    db: Connection, change: str
) -> None:
    sql, parts = REFUSING[change]
    query(db, sql)
    before = stored(db)

    found = status(db)

    assert not found.ready
    [problem] = found.problems
    assert "\n" not in problem
    assert [part for part in parts if part not in problem] == [], problem
    assert stored(db) == before, "what was tried is rolled back"
    [cure] = re.findall(r"`(.*?)`", problem)
    query(db, cure)
    assert status(db).problems == ()


def test_a_trigger_that_refuses_is_named(db: Connection) -> None:
    query(db, TRIGGER.format("guard", "raise exception 'not here'"))

    [problem] = status(db).problems

    assert problem.startswith(f"A bar cannot be stored in {BARS} (P0001: not here).")
    assert "check the trigger guard" in problem


def test_a_trigger_that_drops_rows_is_named(db: Connection) -> None:
    query(db, TRIGGER.format("drops", "return null"))

    [problem] = status(db).problems

    assert problem.startswith(f"A bar is lost after it was written to {BARS}.")
    assert "the trigger drops" in problem


def test_a_table_without_a_partition_for_today_is_reported(db: Connection) -> None:
    query(
        db,
        f"""
        alter table {BARS} rename to old;
        create table {BARS} (like market_data.old including all) partition by range (ts);
        create table market_data.of_2020 partition of {BARS}
          for values from ('2020-01-01') to ('2021-01-01')
        """,
    )

    [problem] = status(db).problems

    assert problem.startswith(f"A bar cannot be stored in {BARS} (23514: no partition")
    assert "it is partitioned" in problem


WORKING = {
    "ids that are uuids": (
        f"""
        drop table {BARS}, {STATUS};
        alter table {SYMBOLS} alter id drop identity;
        alter table {SYMBOLS} alter id type uuid using gen_random_uuid(),
          alter id set default gen_random_uuid();
        create table {STATUS} (
          ticker_id uuid references {SYMBOLS}, provider_id bigint, last_sync_timestamp timestamptz,
          sync_status text, error_message text, updated_at timestamptz,
          unique (ticker_id, provider_id));
        create table {BARS} (
          ticker_id uuid references {SYMBOLS}, ts timestamptz, open float8, high float8, low float8,
          close float8, volume float8, vwap float8, trades bigint, primary key (ticker_id, ts))
        """,
        [],
    ),
    "varchar": (f"alter table {SYMBOLS} alter symbol type varchar(20)", []),
    "a trigger": (
        TRIGGER.format("audit", "return new"),
        [f"{BARS} has the trigger audit, which may have effects."],
    ),
    "numbers that round": (
        f"alter table {BARS} {NUMBERS} alter vwap type numeric(10, 4)",
        [
            (
                f"{BARS} stores 1.08346789 in vwap as 1.0835, so each call rewrites the bars"
                " that it reads again."
            )
        ],
    ),
    "a time of writing without time zone": (
        f"alter table {SYMBOLS} alter updated_at type timestamp",
        [f"{SYMBOLS}.updated_at has no time zone: times are written in the session's."],
    ),
}


@pytest.mark.parametrize("change", WORKING)
def test_a_table_that_differs_but_works_is_no_problem(db: Connection, change: str) -> None:
    sql, notes = WORKING[change]
    query(db, sql)

    found = status(db)

    assert (found.problems, list(found.notes)) == ((), notes)
    assert stored(db) == [(0, 0, 0)]


def test_no_trial_is_made_in_tables_like_ours(db: Connection) -> None:
    """A trial would use up an id."""
    assert status(db).ready
    existing_tables.require_usable(db, ASSETS)

    assert query(db, "select is_called from trading.symbols_id_seq") == [(False,)]


def test_the_longest_symbol_is_tried(db: Connection) -> None:
    query(db, f"alter table {SYMBOLS} alter symbol type varchar(6)")
    short, long = (asset(name, asset_type=AssetType.CRYPTO) for name in ("BTCUSD", "ETHUSDT"))

    assert existing_tables.status(db, [short]).ready
    [problem] = existing_tables.status(db, [short, long]).problems
    assert "22001" in problem


def test_an_existing_asset_is_no_problem_even_if_it_could_not_be_added(db: Connection) -> None:
    """The platform has its own list of assets, with its own names for their types."""
    query(
        db,
        f"""
        alter table {SYMBOLS} add constraint known check (asset_type in ('FX', 'CRYPTO'));
        insert into {SYMBOLS} (symbol, asset_type) select unnest(%s::text[]), 'FX'
        """,
        ([asset.symbol for asset in ASSETS],),
    )

    assert status(db).ready


def test_a_table_that_refuses_some_assets_does_not_stop_runs_for_the_others(
    db: Connection,
) -> None:
    query(db, f"alter table {SYMBOLS} add constraint known check (asset_type in ('forex'))")

    existing_tables.require_usable(db, ASSETS)

    [problem] = status(db).problems
    assert "23514" in problem


def test_a_refused_new_asset_does_not_stop_runs_for_existing_assets(
    db: Connection,
) -> None:
    query(
        db,
        f"""
        alter table {SYMBOLS} add constraint known check (asset_type in ('FX', 'CRYPTO'));
        insert into {SYMBOLS} (symbol, asset_type) values ('EURUSD', 'FX')
        """,
    )

    existing_tables.require_usable(db, ASSETS)

    assert "23514" in status(db).problems[0]


def test_the_check_of_tables_does_not_wait_for_a_locked_table(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    query(db, TRIGGER.format("audit", "return new"))
    with transaction(connect()) as cursor:
        cursor.execute(f"lock table {BARS} in share mode")

        notes = status(db).notes

    assert notes[0].startswith(f"Not tried: a bar in {BARS} (canceling statement due to lock")


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture
def run(url: str, tmp_path: Path) -> Callable[..., commandline.Told]:
    machine = Machine(tmp_path, url, POLYGON_API_KEY="demo-key")
    machine.file(ETHER)
    return machine.tell


@pytest.mark.parametrize(
    "sql",
    [
        *(sql for sql, _ in REFUSING.values()),
        "delete from data_sources.api_providers",
        "delete from asset_sync.limiter",
    ],
)
def test_no_run_makes_a_call_whose_answer_cannot_be_stored(
    db: Connection, run: Callable[..., commandline.Told], sql: str
) -> None:
    query(db, sql)
    with StandIn("free") as api:
        for _ in range(2):
            told = run("sync", "queue", POLYGON_BASE_URL=api.base_url)
            assert told.code == 3
            assert len(told.err.splitlines()) == 1
            assert "`" in told.err, "what to do"
        assert api.log == []
    shown = run("db", "status")
    assert (shown.code, "problem: " in shown.out) == (3, True)
    looked = run("doctor", "--offline")
    assert (looked.code, "error" in looked.out) == (1, True)


def test_a_run_tries_differing_tables_once_and_again_only_if_they_change(
    db: Connection, run: Callable[..., commandline.Told]
) -> None:
    query(db, TRIGGER.format("audit", "return new"))
    existing_tables.require_usable(db, ASSETS)
    [(used,)] = query(db, "select last_value from trading.symbols_id_seq")

    existing_tables.require_usable(db, ASSETS)
    assert query(db, "select last_value from trading.symbols_id_seq") == [(used,)]

    query(db, "drop function audit cascade; " + TRIGGER.format("audit", "return null"))
    with pytest.raises(NotInitialisedError, match="is lost after"):
        existing_tables.require_usable(db, ASSETS)


def test_a_role_without_the_right_to_store_makes_no_call_and_tries_nothing(
    url: str, db: Connection
) -> None:
    query(db, TRIGGER.format("audit", "return new"))
    role = f"asset_sync_test_reader_{os.getpid()}"
    query(
        db,
        f"""
        create role {role} login password 'made-up';
        grant usage on schema trading, market_data, data_sources, asset_sync to {role};
        grant select on all tables in schema trading, market_data, data_sources, asset_sync
          to {role}
        """,
    )
    try:
        with database.raw_session(Secret(make_dsn(url, user=role, password="made-up"))) as reader:
            found = status(reader)
            assert found.problems == ()
            assert found.notes[0].startswith(f"Not tried: a new asset in {SYMBOLS} (permission")
            with pytest.raises(DatabaseError, match=r"lacks .*insert on market_data.ohlcv_5m"):
                existing_tables.require_usable(reader, ASSETS)
    finally:
        query(db, f"drop owned by {role}; drop role {role}")
