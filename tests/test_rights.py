"""A role that may only run syncs, made with the SQL on the page on JSON and tables."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from machine import Machine
from psycopg2.extensions import make_dsn

from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn

PAGE = Path(__file__).parents[1] / "docs" / "json-and-tables.md"
ROLE = f"asset_sync_test_syncer_{os.getpid()}"
PASSWORD = "made-up"
FILE = """
rate_limit.calls = 1000
[[priority_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""


def sql_of_the_page() -> list[str]:
    """Return the statements under the heading, with the name of the tests' own role."""
    section = PAGE.read_text().split("\n## Rights\n")[1]
    [block] = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return [one.replace("syncer", ROLE) for one in block.split(";") if one.strip()]


class Syncer(Machine):
    def __init__(self, home: Path, url: str, admin: Connection) -> None:
        super().__init__(home, url, POLYGON_API_KEY="demo-key")
        self.url, self.admin = url, admin
        self.file(FILE)


@pytest.fixture
def syncer(url: str, db: Connection, tmp_path: Path) -> Iterator[Syncer]:
    [(allowed,)] = query(
        db, "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
    )
    if not allowed:
        pytest.skip("the role of TEST_DATABASE_URL may not create roles")
    for statement in sql_of_the_page():
        query(db, statement)
    query(db, f"alter role {ROLE} password '{PASSWORD}'")
    as_syncer = make_dsn(url, user=ROLE, password=PASSWORD)
    try:
        yield Syncer(tmp_path, as_syncer, db)
    finally:
        query(db, f"drop owned by {ROLE}; drop role {ROLE}")


def test_the_documented_role_can_do_all_that_a_run_does(syncer: Syncer) -> None:
    # An old run and its call, which this run deletes.
    query(
        syncer.admin,
        """
        with old as (
          insert into asset_sync.runs (command, host, pid, started_at)
          values ('queue', 'old', 1, '2000-01-01') returning id
        )
        insert into asset_sync.calls (run_id, at, feed, symbols, outcome, duration_ms)
        select id, '2000-01-01', 'bars', '{}', 'ok', 1 from old
        """,
    )
    with StandIn("starter", calls=1000) as api:
        api_at = {"POLYGON_BASE_URL": api.base_url, "POLYGON_TIER": "starter"}
        for lane in ("priority", "queue"):
            assert syncer.tell("sync", lane, "--dry-run", **api_at).code == 0
            told = syncer.tell("sync", lane, **api_at)
            assert (told.code, told.out[:-1].split(",")[0]) == (0, f"{lane}: 1 refreshed")
        # The other things it writes: failures, denials (also a second time), a block after a 429.
        for fault in ("not-found", "forbidden:1", "forbidden:1", "rate-limit"):
            query(
                syncer.admin,
                """
                update asset_sync.queue set state = 'waiting', not_before = 'epoch';
                update asset_sync.entitlements set noted_at = '-infinity';
                """,
            )
            api.set_faults([fault])
            told = syncer.tell("sync", "queue", "--max-runtime", "0.5", **api_at)
            assert told.code in {0, 1}, told.err
    for command in (
        *(("queue", "status"), ("queue", "list"), ("runs",), ("assets", "list"), ("db", "status")),
        *(("metrics",), ("report",), ("doctor", "--offline")),
    ):
        told = syncer.tell(*command)
        assert told.code == 0, told
    assert "database" not in syncer.tell("health").out
    [(old, kinds)] = query(
        syncer.admin,
        """
        select (select count(*) from asset_sync.runs where started_at < '2001-01-01'),
          (select array_agg(distinct outcome order by outcome) from asset_sync.calls)
        """,
    )
    assert old == 0
    assert kinds == ["feed_denied", "ok", "rate_limited", "ticker_unknown"]


def test_a_run_without_the_rights_to_what_only_readers_need_does_its_work_without_a_word(
    syncer: Syncer,
) -> None:
    query(
        syncer.admin,
        f"revoke all on asset_sync.symbol_hours, asset_sync.expected_bars from {ROLE}",
    )
    with StandIn("free", calls=1000) as api:
        told = syncer.tell("-q", "sync", "queue", POLYGON_BASE_URL=api.base_url)

    assert told == (0, "", "")
    assert query(syncer.admin, "select count(*) from asset_sync.expected_bars") == [(0,)]


FORBIDDEN = [
    "drop table asset_sync.queue",
    "drop table market_data.ohlcv_5m",
    "drop schema trading cascade",
    "alter table asset_sync.slots add column more int",
    "alter table trading.symbols drop column metadata",
    "truncate asset_sync.calls",
    "truncate market_data.ohlcv_5m",
    "create table asset_sync.mine ()",
    "create table trading.mine ()",
    "create schema mine",
    "create index on market_data.ohlcv_5m (close)",
    "delete from market_data.ohlcv_5m",
    "delete from trading.symbols",
    "delete from asset_sync.slots",
    "delete from asset_sync.queue",
    "update trading.symbols set symbol = 'X'",
    "update asset_sync.calls set outcome = 'ok'",
    "insert into data_sources.api_providers (code) values ('x')",
    "insert into asset_sync.migrations (version, name) values (99, 'x')",
    "insert into asset_sync.limiter (id) values (1)",
    "select name from trading.symbols",
    "select * from data_sources.api_providers",
    "select * from elsewhere.secrets",
    "create role another",
    "copy (select 1) to program 'true'",
]


def test_the_documented_role_can_do_nothing_else(syncer: Syncer) -> None:
    query(syncer.admin, "create schema elsewhere; create table elsewhere.secrets (what text)")
    connection = psycopg2.connect(syncer.url)
    try:
        connection.autocommit = True
        for statement in FORBIDDEN:
            with (
                connection.cursor() as cursor,
                pytest.raises(psycopg2.errors.InsufficientPrivilege),
            ):
                cursor.execute(statement)
    finally:
        connection.close()


READ_FIRST = {
    ("asset_sync.migrations", "select"),
    ("asset_sync.limiter", "select"),
    ("data_sources.api_providers", "select"),
}


def test_the_doctor_names_each_right_that_is_missing(syncer: Syncer) -> None:
    granted = query(
        syncer.admin,
        """
        select table_schema || '.' || table_name, lower(privilege_type), ''
        from information_schema.role_table_grants where grantee = %(role)s
        union all
        select distinct on (1, 2) table_schema || '.' || table_name, lower(privilege_type),
          '(' || column_name || ')'
        from information_schema.role_column_grants where grantee = %(role)s
          and table_name in ('symbols', 'api_providers')
        """,
        {"role": ROLE},
    )
    for table, right, column in granted:
        query(syncer.admin, f"revoke {right} {column} on {table} from {ROLE}")
        told = json.loads(syncer.tell("doctor", "--offline", "--json").out)
        query(syncer.admin, f"grant {right} {column} on {table} to {ROLE}")
        errors = [one["text"] for one in told["findings"] if one["grade"] == "error"]
        if (table, right) in READ_FIRST:
            assert table.split(".")[1] in errors[0], "it is read before the rights are"
        else:
            assert errors[0] == f"the role lacks {right} on {table}: see Rights in the README"
    assert len(granted) == 49 + 4


def test_a_run_needs_each_documented_right(syncer: Syncer) -> None:
    """Without the right, a run ends with an error or in another way than before."""
    rights = query(
        syncer.admin,
        """
        select table_schema || '.' || table_name, privilege_type
        from information_schema.role_table_grants where grantee = %s order by 1, 2
        """,
        (ROLE,),
    )
    assert len(rights) == 49
    # The rights that a run without errors needs; the other test uses the rest.
    with StandIn("free", calls=1000) as api:
        assert syncer.tell("sync", "queue", POLYGON_BASE_URL=api.base_url).code == 0
        for table, right in rights:
            if table == "asset_sync.entitlements" and right != "SELECT":
                continue
            if table in {"asset_sync.symbol_hours", "asset_sync.expected_bars"}:  # for readers
                continue
            if table == "asset_sync.lags" and right != "SELECT":  # no bar came late
                continue
            query(
                syncer.admin,
                f"""
                update asset_sync.queue set state = 'waiting', not_before = 'epoch',
                  lease_token = null, lease_until = null;
                revoke {right} on {table} from {ROLE}
                """,
            )
            told = syncer.tell("sync", "queue", POLYGON_BASE_URL=api.base_url)
            ended = query(
                syncer.admin, "select reason_ended from asset_sync.runs order by id desc limit 1"
            )
            query(syncer.admin, f"grant {right} on {table} to {ROLE}")
            assert told.code == 3 or ended == [(None,)], (table, right)
            if told.code == 3:
                assert "grant it the right" in told.err
