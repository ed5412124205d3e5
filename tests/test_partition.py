"""`asset-sync db partition` keeps every bar and all that belongs to the table, and goes back."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest
from conftest import with_ether
from machine import Machine, until
from test_store import FIVE_MINUTES_MS, NOON_MS, bar, save_bars, stored_bars

from asset_sync import database
from asset_sync.database import Connection, DatabaseError, Row, query
from asset_sync.demo.server import StandIn
from asset_sync.secret import Secret
from asset_sync.spans import Span
from asset_sync.store import ledger, market, months, partitioning
from asset_sync.store.months import BARS, DEFAULT, Month
from asset_sync.store.partitioning import Layout

ROLE = f"asset_sync_test_reader_{os.getpid()}"


def fill(db: Connection) -> None:
    """Store bars of two assets: two months of them, and some at odd times."""
    query(
        db,
        f"""
        insert into trading.symbols (symbol) values ('EURUSD'), ('GBPUSD');
        insert into {BARS} (ticker_id, ts, open, high, low, close, volume, vwap, trades)
        select s.id, ts, 1.1, 1.3, 1.0, 1.2 + extract(minute from ts) / 1000, 321, null, 12
        from trading.symbols s,
          generate_series(timestamptz '2025-12-20 00:00Z', '2026-02-10 00:00Z', '2 hours') as ts;
        insert into {BARS} (ticker_id, ts, open, high, low, close)
        select id, ts, 1, 'NaN', '-infinity', 1 from trading.symbols, unnest(array[
          '1999-12-31 23:55Z', '2026-01-01 00:00Z', '2026-01-31 23:55Z', '2026-01-31 23:59:59.999Z',
          '2039-06-01 00:00Z', 'infinity', '-infinity', '0001-01-01 00:00Z BC'
        ]::timestamptz[]) as ts
        on conflict do nothing
        """,
    )


def rows(db: Connection, of: str = BARS) -> list[Row]:
    return query(db, f"select bar::text from {of} bar order by ticker_id, ts")


def layout_of(db: Connection) -> Layout:
    return partitioning.survey(db).layout


# What belongs to the table, its views, and what reads it.
_SHAPE = f"""
select 'column', a.attname, format_type(atttypid, atttypmod) || attnotnull || attgenerated::text
    || coalesce(pg_get_expr(adbin, adrelid), '') || coalesce(attacl::text, '')
    || coalesce(col_description(attrelid, attnum), '') || attstorage::text
  from pg_attribute a left join pg_attrdef d on adrelid = attrelid and adnum = attnum
  where attrelid = '{BARS}'::regclass and attnum > 0 and not attisdropped
union all
select 'constraint', conname, pg_get_constraintdef(oid)
    || coalesce(obj_description(oid, 'pg_constraint'), '')
  from pg_constraint where conrelid = '{BARS}'::regclass
union all
select 'index', i::text, replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ')
    || coalesce(obj_description(indexrelid, 'pg_class'), '')
  from pg_index, lateral (select indexrelid::regclass) as named (i)
  where indrelid = '{BARS}'::regclass
union all
select 'table', obj_description(oid, 'pg_class'), relowner::regrole::text || coalesce((
    select string_agg(entry::text, ',' order by entry::text)
    from aclexplode(coalesce(relacl, acldefault('r', relowner))) as entry), '')
  from pg_class where oid = '{BARS}'::regclass
union all
select 'view', oid::regclass::text, pg_get_viewdef(oid) || relowner::regrole
    || coalesce(relacl::text, '') || coalesce(reloptions::text, '')
    || coalesce(obj_description(oid, 'pg_class'), '')
  from pg_class where relkind = 'v' and relnamespace = 'market_data'::regnamespace
order by 1, 2
"""


def shape(db: Connection) -> list[Row]:
    return query(db, _SHAPE)


@pytest.fixture
def reader(db: Connection) -> Iterator[str]:
    """A role of another program, with no rights."""
    query(db, f"create role {ROLE}; grant usage on schema market_data to {ROLE}")
    yield ROLE
    query(db, f"drop owned by {ROLE}; drop role {ROLE}")


@pytest.fixture
def machine(url: str, db: Connection, api: StandIn, tmp_path: Path) -> Iterator[Machine]:
    with with_ether(url, db, api, tmp_path) as one:
        yield one


# --- there and back ------------------------------------------------------------------------------


def test_every_bar_is_the_same_in_partitions_and_in_one_table_again(db: Connection) -> None:
    fill(db)
    before = rows(db)

    partitioning.partition(db)
    assert layout_of(db) is Layout.MONTHS
    assert rows(db) == before
    january = Month(datetime(2026, 1, 1, tzinfo=UTC).date())
    assert rows(db, january.partition) == query(
        db,
        f"""
        select bar::text from {BARS} bar where ts >= '2026-01-01Z' and ts < '2026-02-01Z'
        order by ticker_id, ts
        """,
    )
    [(odd,)] = query(db, f"select count(distinct ts) from {DEFAULT}")
    assert odd == 4

    partitioning.unite(db)
    assert layout_of(db) is Layout.TABLE
    assert rows(db) == before


def test_all_that_belongs_to_the_table_is_kept(db: Connection, reader: str) -> None:
    fill(db)
    query(
        db,
        f"""
        alter table {BARS} add column source text default 'polygon',
          add column middle double precision generated always as ((high + low) / 2) stored,
          add constraint positive check (volume > 0),
          alter column close type numeric(18, 8);
        comment on constraint positive on {BARS} is 'No empty bars.';
        comment on constraint ohlcv_5m_pkey on {BARS} is 'One bar of an asset at a time.';
        create index "by time" on {BARS} using brin (ts) where volume > 10;
        comment on index market_data."by time" is 'For "reports".';
        create unique index on {BARS} (ticker_id, ts, source);
        alter table {BARS} set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
        revoke update on {BARS} from current_user;
        grant select on {BARS} to public;
        grant insert, delete on {BARS} to {reader} with grant option;
        grant update (source, middle) on {BARS} to {reader};
        alter default privileges in schema market_data grant truncate on tables to {reader};
        """,
    )
    before, options = shape(db), "select reloptions from pg_class where oid = %s::regclass"
    stored = rows(db)
    [fillfactor] = query(db, options, (BARS,))

    partitioning.partition(db)
    assert shape(db) == before
    assert query(db, options, (DEFAULT,)) == [fillfactor]

    partitioning.unite(db)
    assert shape(db) == before
    assert query(db, options, (BARS,)) == [fillfactor]
    assert rows(db) == stored


def test_a_table_of_another_owner_keeps_it(db: Connection, reader: str) -> None:
    query(
        db, f"grant create on schema market_data to {reader}; alter table {BARS} owner to {reader}"
    )
    owners = "select distinct relowner::regrole::text from pg_class where relname ~ '^ohlcv_5m'"

    partitioning.partition(db)

    assert query(db, f"{owners} and relkind in ('r', 'p')") == [(reader,)]


def test_views_show_the_partitioned_table_with_their_rights(db: Connection, reader: str) -> None:
    fill(db)
    query(
        db,
        f"""
        create view market_data.hours with (security_barrier = true) as
          select ticker_id, date_trunc('hour', ts) as hour, max(high) as high
          from {BARS} group by 1, 2;
        comment on view market_data.hours is 'Larger bars.';
        grant select on market_data.hours to {reader};
        create view market_data."top hours" as select * from market_data.hours where high > 1;
        create view market_data.names as
          select s.symbol, bar.* from {BARS} bar join trading.symbols s on s.id = bar.ticker_id;
        """,
    )
    before, shown = shape(db), rows(db, "market_data.names")

    for change in (partitioning.partition, partitioning.unite):
        change(db)
        assert shape(db) == before
        assert rows(db, "market_data.names") == shown
    save_bars(db, [bar()])
    assert len(rows(db, "market_data.names")) == len(shown) + 1


OBSTACLES = {
    "a materialized view": (
        f"create materialized view market_data.daily as select max(close) from {BARS}",
        "materialized view market_data.daily",
    ),
    "a trigger": (
        f"""
        create function noted() returns trigger language plpgsql as 'begin return new; end';
        create trigger noted before insert on {BARS} for each row execute function noted()
        """,
        f"trigger noted on table {BARS}",
    ),
    "a rule": (
        f"create rule quiet as on delete to {BARS} do instead nothing",
        f"rule quiet on table {BARS}",
    ),
    "a foreign key to it": (
        f"""
        create table marks (id bigint, ts timestamptz,
          constraint marked foreign key (id, ts) references {BARS})
        """,
        "constraint marked on table marks",
    ),
    "a function of its rows": (
        f"create function middle({BARS}) returns float8 language sql as 'select $1.high'",
        f"function middle({BARS})",
    ),
    "a publication": (f"create publication stream for table {BARS}", "in publication stream"),
    "a publication of all": ("create publication everything for all tables", "everything"),
    "row level security": (f"alter table {BARS} enable row level security", "row level security"),
    "a policy": (f"create policy mine on {BARS} using (true)", "policy mine"),
    "an identity": (
        f"alter table {BARS} add id bigint generated always as identity",
        "the identity of column id",
    ),
    "a sequence": (f"alter table {BARS} add id bigserial", "sequence market_data.ohlcv_5m_id_seq"),
    "a unique index without time": (
        f"alter table {BARS} add id bigint; create unique index by_id on {BARS} (id)",
        "unique index market_data.by_id, which has no ts",
    ),
    "a constraint that is not valid": (
        f"alter table {BARS} add constraint up check (high >= low) not valid",
        "constraint up, which is not valid",
    ),
    "a child": (f"create table market_data.kid () inherits ({BARS})", "table market_data.kid"),
    "a parent": (
        f"create table market_data.bars (like {BARS}); alter table {BARS} inherit market_data.bars",
        "its parent table",
    ),
    "a replica identity": (f"alter table {BARS} replica identity full", "its replica identity"),
    "no log": (f"alter table {BARS} set unlogged", "that it is unlogged"),
}


@pytest.mark.parametrize(("sql", "named"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_a_copy_would_lose_is_named_and_nothing_is_changed(
    db: Connection, sql: str, named: str
) -> None:
    query(db, sql)
    # so that the next test gets another database
    query(db, "alter table trading.symbols add used boolean")
    before = shape(db)

    told = partitioning.survey(db).obstacles
    assert any(named in one for one in told), told
    with pytest.raises(DatabaseError) as refused:
        partitioning.partition(db)

    assert str(refused.value) == "\n".join(told)
    assert shape(db) == before
    assert layout_of(db) is Layout.TABLE


def test_a_role_that_does_not_own_the_table_is_told(
    db: Connection, reader: str, connect: Callable[[], Connection]
) -> None:
    query(db, f"create view market_data.own as select ts from {BARS}")
    query(db, f"grant select on {BARS} to {reader}")
    other = connect()
    query(other, f"set role {reader}")
    assert partitioning.survey(other).obstacles == [
        "This role does not own market_data.own: use the role that does.",
        f"This role does not own {BARS}: use the role that does.",
    ]


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_what_it_will_do_and_asks(machine: Machine, db: Connection) -> None:
    query(db, f"create view market_data.own as select ts from {BARS}")

    told = machine.tell("db", "partition")

    assert told.code == 2
    said = " ".join(told.err.split())
    assert "holds about 1 bars" in said
    assert "more space" in said
    assert "wait for about" in said
    assert "Made again, with their rights: market_data.own." in said
    assert "--yes does it without asking" in said
    assert layout_of(db) is Layout.TABLE


def test_the_command_partitions_and_goes_back(machine: Machine, db: Connection) -> None:
    told = machine.tell("db", "partition", "--yes")
    assert told.code == 0, told.err
    assert "--undo" in told.out
    assert layout_of(db) is Layout.MONTHS

    again = machine.tell("db", "partition")
    assert (again.code, again.out) == (0, f"{BARS} is partitioned by month already.\n")
    status = machine.tell("db", "status", "--json")
    assert status.code == 0
    assert json.loads(status.out)["notes"] == []

    assert machine.tell("db", "partition", "--undo", "--yes").code == 0
    assert layout_of(db) is Layout.TABLE
    again = machine.tell("db", "partition", "--undo")
    assert (again.code, again.out) == (0, f"{BARS} is one ordinary table already.\n")


def test_an_obstacle_ends_the_command_before_it_asks(machine: Machine, db: Connection) -> None:
    query(db, f"alter table {BARS} replica identity full")
    told = machine.tell("db", "partition", "--yes")
    assert told.code == 3
    assert "cannot keep its replica identity" in told.err


@pytest.mark.parametrize("undo", [[], ["--undo"]], ids=["partition", "undo"])
def test_a_hypertable_is_left_alone(machine: Machine, db: Connection, undo: list[str]) -> None:
    query(
        db,
        """
        create schema _timescaledb_catalog;
        create table _timescaledb_catalog.hypertable (schema_name name, table_name name);
        insert into _timescaledb_catalog.hypertable values ('market_data', 'ohlcv_5m')
        """,
    )
    before = shape(db)
    told = machine.tell("db", "partition", "--yes", *undo)
    assert told.code == 0
    assert told.out == f"{BARS} is a hypertable of TimescaleDB: it is left alone.\n"
    assert shape(db) == before


def test_partitions_of_somebody_else_are_left_alone(machine: Machine, db: Connection) -> None:
    query(
        db,
        f"""
        drop table {BARS};
        create table {BARS} (ticker_id bigint, ts timestamptz, open float8, high float8, low float8,
          close float8, volume float8, vwap float8, trades bigint, primary key (ticker_id, ts)
        ) partition by range (ts);
        create table market_data.everything partition of {BARS} default
        """,
    )
    for words in ([], ["--undo"]):
        told = machine.tell("db", "partition", "--yes", *words)
        assert told.code == 0
        assert told.out == f"{BARS} is partitioned in another way: it is left alone.\n"
    assert months.missing(db) == []


# --- while runs work -----------------------------------------------------------------------------


def copied(db: Connection) -> bool:
    """Whether another session waits for the lock with which the copy takes the table's place."""
    return bool(
        query(
            db,
            """
            select from pg_locks where mode = 'AccessExclusiveLock' and not granted
              and relation = %s::regclass
            """,
            (BARS,),
        )
    )


def holds(db: Connection) -> bool:
    """Whether runs are kept from taking slots."""
    [(held,)] = query(db, "select blocked_until > now() from asset_sync.limiter")
    return bool(held)


def test_a_call_in_flight_is_stored_first_and_runs_wait_without_an_error(
    url: str, db: Connection, connect: Callable[[], Connection], tmp_path: Path
) -> None:
    watcher = connect()

    over: list[bool] = []

    def latency(_: random.Random) -> float:
        until(lambda: over or holds(watcher))  # the command waits for the first call
        return 0.0 if over else 2.0

    with (
        StandIn("free", latency=latency) as api,
        with_ether(url, db, api, tmp_path) as machine,
        connect().cursor() as cursor,
    ):
        cursor.execute(f"begin; select count(*) from {BARS}")
        [(bars,)] = cursor.fetchall()
        run = machine.start("sync", "queue", "--json")
        until(lambda: query(db, "select from asset_sync.slots where token is not null"))
        change = machine.start("db", "partition", "--yes")
        assert machine.end(run).code == 0
        until(lambda: copied(db))

        # The table can be read meanwhile, and a run makes no call whose answer it could not store.
        query(db, f"set local lock_timeout = '5s'; select count(*) from {BARS}")
        query(db, "update asset_sync.queue set state = 'waiting', not_before = now()")
        meanwhile = machine.run("sync", "queue", "--json", "--max-runtime", "2")
        assert meanwhile.code == 0, meanwhile.err
        assert json.loads(meanwhile.out)["reason_ended"] == "budget_used_up"
        assert len(api.log) == 1
        cursor.execute("commit")

        told = machine.end(change)
        assert told.code == 0, told.err
        assert "Waiting for the calls in flight." in told.err
        assert "Waiting for another program that reads the bars." in told.err
        assert layout_of(db) is Layout.MONTHS
        [(stored,)] = query(db, f"select count(*) from {BARS}")
        assert stored > bars

        over.append(True)
        after = machine.run("sync", "queue", "--json")
        assert after.code == 0, after.err
        assert json.loads(after.out)["updated"] == ["ETHUSDT"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_an_interrupted_change_leaves_the_table_as_it_was(
    machine: Machine, db: Connection, connect: Callable[[], Connection], sent: signal.Signals
) -> None:
    fill(db)
    before, all_rows = shape(db), rows(db)
    reader = connect()
    with reader.cursor() as cursor:
        cursor.execute(f"begin; select count(*) from {BARS}")
        change = machine.start("db", "partition", "--yes")
        until(lambda: copied(db))
        change.send_signal(sent)
        change.wait()
        cursor.execute("commit")
    until(
        lambda: (
            not query(
                db,
                "select from pg_stat_activity where query ~ 'lock table'"
                " and pid <> pg_backend_pid() and state = 'active'",
            )
        )
    )

    assert layout_of(db) is Layout.TABLE
    assert (shape(db), rows(db)) == (before, all_rows)
    assert query(db, "select from pg_class where relname ~ 'ohlcv_5m_(new|old|default|2)'") == []
    # Only a process that is killed cannot let the runs go on; they do when the time is over.
    assert holds(db) is (sent is signal.SIGKILL)


# --- new months, and old bars --------------------------------------------------------------------


def this_month(db: Connection) -> Month:
    [(first,)] = query(db, "select date_trunc('month', now() at time zone 'UTC')::date")
    return Month(first)


@pytest.fixture
def partitioned(db: Connection) -> Connection:
    partitioning.partition(db)
    return db


def test_a_run_makes_the_partition_of_the_next_month(
    machine: Machine, partitioned: Connection, db: Connection
) -> None:
    after = this_month(db).next
    query(db, f"drop table {after.partition}")
    assert months.missing(db) == [after]
    assert f"no partition for {after.first:%Y-%m}" in machine.tell("db", "status").out

    assert machine.tell("sync", "queue").code == 0

    assert months.missing(db) == []
    assert after.partition.split(".")[1] in months.partitions(db)


def test_bars_of_a_month_without_a_partition_are_stored_and_move_later(
    partitioned: Connection, db: Connection
) -> None:
    query(db, f"alter table {BARS} add doubled float8 generated always as (close * 2) stored")
    query(db, f"alter table {DEFAULT} set (fillfactor = 80)")
    sent = [bar(number) for number in range(3)]
    assert save_bars(db, sent) == 3
    [march] = months.missing(db)
    assert len(rows(db, DEFAULT)) == 3
    stored = rows(db)

    assert list(months.make_missing(db)) == [march]

    assert rows(db) == stored == rows(db, march.partition)
    assert rows(db, DEFAULT) == []
    options = "select reloptions from pg_class where oid = %s::regclass"
    assert query(db, options, (march.partition,)) == [(["fillfactor=80"],)]
    assert save_bars(db, [*sent, bar(3)]) == 1
    assert len(rows(db, march.partition)) == 4
    partitioning.unite(db)
    assert [one.start_ms for one in stored_bars(db)] == [
        NOON_MS + number * FIVE_MINUTES_MS for number in range(4)
    ]


def test_a_late_bar_of_years_ago_and_one_of_the_future_are_stored(partitioned: Connection) -> None:
    long_ago, later = bar(-2_000_000), bar(2_000_000)
    assert save_bars(partitioned, [long_ago, later]) == 2
    assert stored_bars(partitioned) == [long_ago, later]
    assert save_bars(partitioned, [long_ago._replace(close=1.085), later]) == 1


def test_no_reader_is_kept_waiting_for_a_new_partition(
    partitioned: Connection, db: Connection, connect: Callable[[], Connection]
) -> None:
    save_bars(db, [bar()])
    reader = connect()
    with reader.cursor() as cursor:
        cursor.execute(f"begin; select count(*) from {BARS}")
        months.make_missing_quietly(db)
        assert len(months.missing(db)) == 1
        cursor.execute("commit")
    months.make_missing_quietly(db)
    assert months.missing(db) == []


def test_two_runs_make_a_partition_once(partitioned: Connection, db: Connection, url: str) -> None:
    save_bars(db, [bar()])

    def make(_: int) -> None:
        with database.session(Secret(url)) as own:
            months.make_missing_quietly(own)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make, range(4)))
    assert months.missing(db) == []
    assert len(rows(db)) == 1


def test_a_role_without_the_right_leaves_the_bars_in_the_default_partition(
    partitioned: Connection, db: Connection, reader: str, connect: Callable[[], Connection]
) -> None:
    save_bars(db, [bar()])
    query(db, f"grant select, insert, update on {BARS} to {reader}")
    other = connect()
    query(other, f"set role {reader}")
    months.make_missing_quietly(other)
    assert len(rows(db, DEFAULT)) == 1


# --- the queries of a run ------------------------------------------------------------------------


def scans(db: Connection, act: Callable[[Connection], object]) -> list[tuple[str, str]]:
    """Return how the statements of an act read bars: each scan and its partition."""
    sent: list[str] = []

    class Recording(psycopg2.extensions.cursor):
        def execute(self, sql: str, parameters: object = None) -> None:  # type: ignore[override]
            super().execute(sql, parameters)  # type: ignore[arg-type]
            sent.append((self.query or b"").decode())

    factory, db.cursor_factory = db.cursor_factory, Recording
    act(db)
    db.cursor_factory = factory
    statement = sent[-1].split("; ")[-1]
    [(plan,)] = query(db, f"explain (format json) {statement.replace('%', '%%')}")
    found: list[tuple[str, str]] = []

    def walk(node: dict[str, object]) -> None:
        name = str(node.get("Relation Name", ""))
        if name.startswith("ohlcv_5m"):
            found.append((str(node["Node Type"]), name))
        for child in node.get("Plans", ()):  # type: ignore[attr-defined]
            walk(child)

    walk(plan[0]["Plan"])
    return found


WEEK = Span(datetime(2025, 3, 3, tzinfo=UTC), datetime(2025, 3, 10, tzinfo=UTC))
WEEK_PARTITION = "ohlcv_5m_2025_03"


@pytest.fixture
def two_years(db: Connection) -> Connection:
    """Twenty assets with two years of bars, in monthly partitions."""
    query(
        db,
        f"""
        insert into trading.symbols (symbol) select 'S' || n from generate_series(1, 20) n;
        insert into {BARS} (ticker_id, ts, open, high, low, close)
        select id, ts, 1, 1, 1, 1 from generate_series(
          timestamptz '2024-01-01 00:00Z', '2025-12-31 23:00Z', '4 hours') as ts, trading.symbols
        """,
    )
    partitioning.partition(db)
    return db


def test_no_query_of_a_run_reads_a_whole_partition(two_years: Connection) -> None:
    def count(db: Connection) -> None:
        with db.cursor() as cursor:
            ledger.count_bars(cursor, "S7", [WEEK])

    for act in (
        lambda db: market.newest_bars(db, ["S7"]),
        lambda db: ledger.without_bars(db, "S7", WEEK),
        count,
    ):
        found = scans(two_years, act)
        # the planner may read the newest ones, which are empty
        assert ("Seq Scan", WEEK_PARTITION) not in found
        assert WEEK_PARTITION in {name for _, name in found}


def test_the_holes_of_a_week_are_looked_for_in_its_month_only(two_years: Connection) -> None:
    found = scans(two_years, lambda db: ledger.without_bars(db, "S7", WEEK))
    assert {name for _, name in found} == {WEEK_PARTITION}
