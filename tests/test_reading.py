"""`asset_sync.read` returns what is stored, for numpy, pandas, polars, pyarrow and duckdb."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psycopg2
import psycopg2.extensions
import pyarrow as pa
import pytest
from machine import until
from proxy import Proxy
from psycopg2.extras import wait_select
from servers import Server, binaries, pgbouncer, thrown_away

import asset_sync
from asset_sync import database
from asset_sync.database import Connection, copied, query
from asset_sync.reading import block
from asset_sync.reading.block import BLOCK_BARS, blocks
from asset_sync.secret import Secret
from asset_sync.store.bars_query import Every, Selection, bars_query

MONDAY = datetime(2025, 3, 3, tzinfo=UTC)
COLUMNS = ("symbol", "ts", "open", "high", "low", "close", "volume", "vwap", "trades")


def store(db: Connection, symbol: str, bars: int, *, start: datetime = MONDAY) -> None:
    """Store bars of which no two are equal; every third has no volume, mean price and trades."""
    query(
        db,
        """
        insert into trading.symbols (symbol) values (%(symbol)s) on conflict do nothing;
        insert into market_data.ohlcv_5m
        select id, %(start)s::timestamptz + n * interval '5 min', 1 + n, 2 + n, n, 1.5 + n,
          nullif(n %% 3, 0) * 1.5, nullif(n %% 3, 0) + 0.25, nullif(n %% 3, 0)
        from trading.symbols, generate_series(1, %(bars)s) n where symbol = %(symbol)s
        """,
        {"symbol": symbol, "bars": bars, "start": start - timedelta(minutes=5)},
    )


def rows_of(bars: asset_sync.Bars) -> list[tuple[object, ...]]:
    """Return the bars as rows, None for what is not known."""
    return [tuple(row.values()) for row in pa.table(bars).to_pylist()]


@contextmanager
def wait_callback() -> Iterator[None]:
    psycopg2.extensions.set_wait_callback(wait_select)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(None)


# --- which bars -------------------------------------------------------------------------------


def test_the_bars_are_those_that_are_stored(url: str, db: Connection) -> None:
    store(db, "EURUSD", 7)
    store(db, "BTCUSD", 4)

    bars = asset_sync.read(["EURUSD", "BTCUSD"], database_url=url)

    assert (len(bars), bars.columns, bars.every) == (11, COLUMNS, "5m")
    assert repr(bars) == "<11 bars (5m) of EURUSD, BTCUSD>"
    stored = query(
        db,
        """
        select symbol, ts, open, high, low, close, volume, vwap, trades
        from market_data.ohlcv_5m join trading.symbols s on s.id = ticker_id
        order by symbol desc, ts
        """,
    )
    assert rows_of(bars) == stored
    assert stored[2][6:] == (None, None, None)


def test_more_bars_than_fit_into_a_block_are_the_same_bars(
    url: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(db, "EURUSD", 12)
    in_one = rows_of(asset_sync.read("EURUSD", database_url=url))

    for size in (1, 5, 6, 12):
        monkeypatch.setattr(block, "BLOCK_BARS", size)
        assert rows_of(asset_sync.read("EURUSD", database_url=url)) == in_one
        selection = Selection(["EURUSD"])
        assert [len(one.ts) for one in blocks(db, selection)] == [
            min(size, 12 - done) for done in range(0, 12, size)
        ]


@pytest.mark.parametrize("every", list(Every))
def test_bars_of_each_length_are_those_of_the_query(url: str, db: Connection, every: Every) -> None:
    store(db, "EURUSD", 900)

    bars = asset_sync.read("EURUSD", every=every.value, database_url=url)

    of_the_query = query(db, bars_query(db, Selection(["EURUSD"], every=every)))
    width = 9 if every is Every.FIVE_MINUTES else 11
    assert rows_of(bars) == [row[:width] for row in of_the_query]
    assert bars.columns[9:] == ("bars", "expected")[: width - 9]


@pytest.mark.parametrize(
    "start",
    [
        date(2025, 3, 4),
        "2025-03-04",
        "2025-03-04T01:00+01:00",
        datetime(2025, 3, 4),  # noqa: DTZ001  # without a zone it is UTC
        datetime(2025, 3, 4, 1, tzinfo=timezone(timedelta(hours=1))),
        np.datetime64("2025-03-04"),
        np.datetime64("2025-03-04T00:00:00.000000000"),
        pd.Timestamp("2025-03-04"),
        pd.Timestamp("2025-03-04T01:00+01:00"),
    ],
)
def test_the_bars_start_at_the_start_or_later_and_before_the_end(
    url: str, db: Connection, start: asset_sync.Moment
) -> None:
    store(db, "EURUSD", 900)

    bars = asset_sync.read("EURUSD", start, "2025-03-04T00:20", database_url=url)

    minutes = bars.to_numpy()["ts"].astype("M8[m]").astype(str).tolist()
    assert minutes == [f"2025-03-04T00:{minute}" for minute in ("00", "05", "10", "15")]


def test_an_asset_is_read_once_although_it_is_named_twice(url: str, db: Connection) -> None:
    store(db, "EURUSD", 2)

    assert len(asset_sync.read(["EURUSD", "EURUSD"], database_url=url)) == 2


def test_a_bar_at_a_time_that_numpy_does_not_have_is_left_out(url: str, db: Connection) -> None:
    store(db, "EURUSD", 2)
    query(
        db,
        """
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, at::timestamptz, 1, 1, 1, 1
        from trading.symbols, unnest(array['infinity', '-infinity']) at
        """,
    )

    assert len(asset_sync.read("EURUSD", database_url=url)) == 2


# --- for which library ------------------------------------------------------------------------


def test_numpy_gets_an_array_for_each_column(url: str, db: Connection) -> None:
    store(db, "EURUSD", 2)
    store(db, "BTCUSD", 3)

    columns = asset_sync.read(["EURUSD", "BTCUSD"], database_url=url).to_numpy()

    assert tuple(columns) == COLUMNS
    assert columns["symbol"].tolist() == ["EURUSD"] * 2 + ["BTCUSD"] * 3
    assert columns["ts"].dtype == np.dtype("M8[us]")
    assert columns["ts"][0] == np.datetime64("2025-03-03T00:00")
    assert {columns[name].dtype for name in COLUMNS[2:]} == {np.dtype("f8")}
    assert columns["close"].tolist() == [2.5, 3.5, 2.5, 3.5, 4.5]
    assert math.isnan(columns["trades"][4])


def test_pandas_polars_pyarrow_and_duckdb_get_the_same_bars(url: str, db: Connection) -> None:
    store(db, "EURUSD", 2)
    store(db, "BTCUSD", 3)
    bars = asset_sync.read(["EURUSD", "BTCUSD"], database_url=url)

    frame = bars.to_pandas()
    assert frame.dtypes.astype(str).to_dict() == {
        "symbol": "category",
        "ts": "datetime64[us, UTC]",
        **dict.fromkeys(COLUMNS[2:], "float64"),
    }
    assert frame.groupby("symbol", observed=True)["close"].sum().to_dict() == {
        "EURUSD": 6.0,
        "BTCUSD": 10.5,
    }
    assert frame["ts"].iloc[-1] == pd.Timestamp("2025-03-03 00:10Z")

    table = pa.table(bars)
    assert table.schema.field("symbol").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("ts").type == pa.timestamp("us", "UTC")
    assert table.schema.field("trades").type == pa.int64()
    assert table["trades"].to_pylist() == [1, 2, 1, 2, None]

    assert bars.to_polars().rows() == rows_of(bars)
    assert pl.DataFrame(bars).equals(bars.to_polars())
    assert pd.DataFrame.from_arrow(bars)["close"].sum() == 16.5
    answer = duckdb.sql("select sum(close), max(ts) from bars")
    assert answer is not None
    assert answer.fetchall() == [(16.5, MONDAY + timedelta(minutes=10))]


def test_an_asset_without_bars_has_no_rows_and_all_columns(url: str, db: Connection) -> None:
    store(db, "EURUSD", 0)

    bars = asset_sync.read("EURUSD", database_url=url)

    assert len(bars) == 0
    assert bars.symbols == ("EURUSD",)
    assert tuple(bars.to_pandas().columns) == COLUMNS
    assert tuple(bars.to_polars().columns) == COLUMNS
    assert tuple(bars.to_numpy()) == COLUMNS


# --- where there is no COPY -------------------------------------------------------------------


def test_a_program_that_has_a_wait_callback_gets_the_same_bars(
    url: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(db, "EURUSD", 7)
    by_copy = rows_of(asset_sync.read("EURUSD", database_url=url))
    monkeypatch.setattr(block, "BLOCK_BARS", 3)

    with wait_callback():
        with (
            pytest.raises(psycopg2.ProgrammingError),
            copied(db, "copy (select 1) to stdout") as file,
        ):
            file.read(1)
        assert rows_of(asset_sync.read("EURUSD", database_url=url)) == by_copy


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own, to which PgBouncer may connect."""
    with thrown_away(binaries(150_000)) as started:
        with database.raw_session(Secret(started.url)) as db:
            database.migrate(db)
        yield started


def test_behind_pgbouncer_in_transaction_mode_the_bars_are_the_same(server: Server) -> None:
    with database.raw_session(Secret(server.url)) as db:
        store(db, "EURUSD", 7)
    direct = rows_of(asset_sync.read("EURUSD", database_url=server.url))
    assert len(direct) == 7

    with pgbouncer(server.url) as pooled:
        until(lambda: reachable(pooled))
        assert rows_of(asset_sync.read("EURUSD", database_url=pooled)) == direct


def reachable(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


# --- the connection ---------------------------------------------------------------------------


def test_reading_leaves_no_connection_open(
    url: str, db: Connection, connect: Callable[[], Connection]
) -> None:
    store(db, "EURUSD", 7)
    asset_sync.read("EURUSD", database_url=url)

    until(lambda: query(db, _OTHERS) == [])


_OTHERS = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


def test_a_reader_that_stops_early_ends_the_copy_and_its_connection(
    url: str, db: Connection
) -> None:
    store(db, "EURUSD", 5 * BLOCK_BARS)

    with database.raw_session(Secret(url)) as own:
        for read in blocks(own, Selection(["EURUSD"])):
            assert len(read.ts) == BLOCK_BARS
            break
        del read
        until(lambda: own.closed)
    until(lambda: query(db, _OTHERS) == [])


def test_a_server_that_stops_sending_ends_the_copy_after_the_time_for_an_answer(
    url: str, db: Connection
) -> None:
    endless = "copy (select pg_sleep(case n when 1 then 0 else 10 end) from generate_series(1, 2) n"
    with (
        database.raw_session(Secret(url)) as own,
        database.statement_timeout(0.3),
        pytest.raises(psycopg2.OperationalError, match="timeout expired"),
        copied(own, f"{endless}) to stdout") as file,
    ):
        file.read(1)
    assert own.closed


def test_a_connection_that_is_cut_is_an_error_and_no_end_of_the_bars(
    url: str, db: Connection
) -> None:
    store(db, "EURUSD", 5 * BLOCK_BARS)
    with Proxy(url) as proxy, database.raw_session(Secret(proxy.url)) as own:
        arriving = blocks(own, Selection(["EURUSD"]))
        next(arriving)
        proxy.cut()

        with pytest.raises(psycopg2.OperationalError):
            list(arriving)


def test_a_server_that_ends_the_connection_during_a_copy_leaves_no_traceback(
    url: str, db: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    many = "generate_series(1, 3000) a, generate_series(1, 3000) b"

    def copy() -> None:
        with (
            database.session(Secret(url)) as own,
            copied(own, f"copy (select 1 from {many}) to stdout") as file,
        ):
            file.read(1)
            query(db, "select pg_terminate_backend(%s)", (own.info.backend_pid,))
            file.readall()

    for _ in range(10):  # psycopg2 sees the server's last message in about two of five
        with pytest.raises(asset_sync.DatabaseError):
            copy()

    assert capfd.readouterr().err == ""


def test_a_mistake_in_the_statement_is_raised_as_that(db: Connection) -> None:
    with (
        pytest.raises(psycopg2.errors.UndefinedTable),
        copied(db, "copy (select from nowhere) to stdout") as file,
    ):
        file.read(1)


def test_nothing_can_be_written_by_a_copy(db: Connection) -> None:
    store(db, "EURUSD", 1)
    with (
        pytest.raises(psycopg2.errors.ReadOnlySqlTransaction),
        copied(db, "copy (delete from trading.symbols returning id) to stdout") as file,
    ):
        file.read(1)


# --- mistakes ---------------------------------------------------------------------------------


def test_each_mistake_is_a_sentence(url: str, db: Connection) -> None:
    store(db, "EURUSD", 1)
    unknown = "If `asset-sync assets list` names it, no run has fetched it yet."
    how = "write a day as 2025-01-31, or a moment as 2025-01-31T14:30."

    for mistake, sentence in (
        (
            {"symbols": "EURUS"},
            f"The database has no asset 'EURUS'. Did you mean EURUSD? {unknown}",
        ),
        ({"symbols": ["EURUSD", "nothing"]}, f"The database has no asset 'nothing'. {unknown}"),
        (
            {"symbols": "EURUSD", "every": "2h"},
            "There are no bars of '2h'; there are 5m, 15m, 1h, 4h, 1d, 1d-ny.",
        ),
        ({"symbols": "EURUSD", "start": "yesterday"}, f"start is 'yesterday': {how}"),
    ):
        with pytest.raises(asset_sync.ReadingError) as raised:
            asset_sync.read(**mistake, database_url=url)
        assert str(raised.value) == sentence
        assert isinstance(raised.value, asset_sync.AssetSyncError)

    for moment in (5, pd.NaT, np.datetime64("NaT"), "", "0001-01-01T00:00+14:00"):
        with pytest.raises(asset_sync.ReadingError) as raised:
            asset_sync.read("EURUSD", as_of=moment, database_url=url)  # type: ignore[arg-type]
        assert str(raised.value) == f"as_of is {moment!r}: {how}"

    for symbol in (None, 5, b"EURUSD", ["EURUSD"], "EUR\0USD", "\udcff"):
        with pytest.raises(asset_sync.ReadingError) as raised:
            asset_sync.last_price(symbol, database_url=url)  # type: ignore[arg-type]
        assert str(raised.value) == f"{symbol!r} is no symbol: name an asset as 'EURUSD'."
    with pytest.raises(asset_sync.ReadingError, match=r"^5 is no symbol: name an asset as"):
        asset_sync.read(5, database_url=url)  # type: ignore[arg-type]


def test_a_completion_offers_what_is_public() -> None:
    assert dir(asset_sync) == sorted(asset_sync.__all__)


def test_a_moment_of_which_nothing_is_kept_raises_a_public_error(url: str, db: Connection) -> None:
    store(db, "EURUSD", 1)

    with pytest.raises(asset_sync.AsOfError, match="Bars can be read as they were at"):
        asset_sync.read("EURUSD", as_of="2020-01-01", database_url=url)


def test_a_database_that_is_not_reachable_is_named_without_its_password() -> None:
    with pytest.raises(asset_sync.DatabaseError) as raised:
        asset_sync.read("EURUSD", database_url="postgresql://me:secret@127.0.0.1:1/market")

    assert '"market" at 127.0.0.1:1 is not reachable' in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("missing", ["numpy", "arro3"])
def test_without_the_extra_a_sentence_says_how_to_install_it(
    url: str, db: Connection, missing: str
) -> None:
    store(db, "EURUSD", 1)
    script = f"""
import sys
sys.modules[{missing!r}] = None
import asset_sync
try:
    asset_sync.read("EURUSD", database_url={url!r}).__arrow_c_stream__()
except asset_sync.ReadingError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.endswith("is not installed: pip install 'asset-sync[read]'\n"), done


def test_without_pandas_or_polars_a_sentence_says_which_is_missing(
    url: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(db, "EURUSD", 1)
    bars = asset_sync.read("EURUSD", database_url=url)

    for name, convert in (("pandas", bars.to_pandas), ("polars", bars.to_polars)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(asset_sync.ReadingError, match=f"^{name} is not installed: pip install"):
            convert()


def test_without_an_address_it_is_the_database_of_the_settings(
    url: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(db, "EURUSD", 3)
    monkeypatch.setenv("DATABASE_URL", url)

    assert len(asset_sync.read("EURUSD")) == 3
