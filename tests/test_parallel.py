"""Several calls in flight in one run: every promise holds as with one call at a time."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import always_open
from machine import Machine, one_bar, until
from psycopg2.extensions import make_dsn

from asset_sync import database
from asset_sync.database import Connection, query
from asset_sync.demo.sandbox import bars_unlike_the_replay
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.secret import Secret
from asset_sync.settings import Settings, load
from asset_sync.sync import loop
from asset_sync.sync.progress import Listener, Progress, Recovered, Started, Warned
from asset_sync.sync.report import Ended, Report

IN_FLIGHT = 8
ASSETS = 24
SYMBOLS = [f"A{number:02}" for number in range(ASSETS)]
TICKERS = ("X:BTCUSD", "X:ETHUSDT")


def _ignore(_: Progress) -> None:
    pass


def toml(assets: int, provider: str = "", more: str = "") -> str:
    blocks = (
        f"""
[[secondary_assets]]
symbol = "{symbol}"
polygon_ticker = "{TICKERS[number % 2]}"
asset_type = "crypto"
"""
        for number, symbol in enumerate(SYMBOLS[:assets])
    )
    return f'[provider]\nplan = "starter"\n{provider}\n{more}\n{"".join(blocks)}'


class Job:
    """A paid plan's runs in this process, on the real clock."""

    def __init__(self, url: str, db: Connection, api: StandIn, path: Path) -> None:
        self.url, self.db, self.api, self._path = url, db, api, path
        self.heard: list[Progress] = []
        self.serve()

    def serve(self, assets: int = ASSETS, provider: str = "", more: str = "") -> None:
        """Set so many assets."""
        self._path.write_text(toml(assets, provider, more))
        environ = {
            "POLYGON_API_KEY": self.api.key,
            "POLYGON_BASE_URL": self.api.base_url,
            "DATABASE_URL": self.url,
            "HISTORY_ENABLED": "false",
        }
        self.settings: Settings = always_open(load(self._path, environ))

    def run(
        self, *, seconds: float = 30, limit: int | None = None, tell: Listener = _ignore
    ) -> Report:
        def listen(progress: Progress) -> None:
            assert threading.current_thread() is threading.main_thread()
            self.heard.append(progress)
            tell(progress)

        with database.session(self.settings.conninfo) as db:
            return loop.run(
                db,
                self.settings,
                Lane.QUEUE,
                max_runtime_seconds=seconds,
                limit=limit,
                tell=listen,
            )

    def fill(self, *symbols: str) -> Report:
        with database.session(self.settings.conninfo) as db:
            return loop.fill(db, self.settings, symbols, tell=self.heard.append)

    def warnings(self) -> list[str]:
        return [step.text for step in self.heard if isinstance(step, Warned)]

    def most_at_once(self, what: str = "true") -> int:
        """Return how many calls were under way at the same time, by the history of calls."""
        [(most,)] = query(
            self.db,
            f"""
            with call as (
              select at - make_interval(secs => duration_ms / 1000.0) as since, at as until, symbol
              from asset_sync.calls, unnest(symbols) as symbol where {what}
            )
            select max(others) from (
              select count(*) as others from call join call other
                on other.since <= call.since and call.since < other.until
                and other.symbol = call.symbol
              group by call.symbol, call.since
            ) at_once
            """,
        )
        return int(most or 0)

    def held(self) -> tuple[int, int]:
        """Return how many items are leased and how many slots are taken."""
        [row] = query(
            self.db,
            """
            select (select count(*) from asset_sync.queue where state = 'leased'),
              (select count(token) from asset_sync.slots)
            """,
        )
        return int(row[0]), int(row[1])

    def assert_counted(self, report: Report) -> None:
        """Check that the run's report, its row and its calls tell the same."""
        [row] = query(
            self.db,
            """
            select r.reason_ended, r.updated, r.failed, r.api_calls, r.bars_written, count(c),
              coalesce(sum(c.bars_written), 0)
            from asset_sync.runs r left join asset_sync.calls c on c.run_id = r.id
            where r.id = %s group by r.id
            """,
            (report.run_id,),
        )
        calls, bars = report.api_calls_used, report.bars_written
        ended = report.reason_ended.value
        assert row == (
            ended, len(report.updated), len(report.failed), calls, bars, calls, bars
        )  # fmt: skip


@pytest.fixture
def api() -> Iterator[StandIn]:
    """A paid plan whose calls take a quarter of a second."""
    with StandIn("starter", latency=(0.2, 0.3)) as server:
        yield server


@pytest.fixture
def job(url: str, db: Connection, api: StandIn, tmp_path: Path) -> Job:
    """Assets that were last synced an hour ago."""
    for number, symbol in enumerate(SYMBOLS):
        one_bar(db, symbol, TICKERS[number % 2])
    return Job(url, db, api, tmp_path / "assets.toml")


@pytest.fixture
def machine(job: Job, tmp_path: Path) -> Iterator[Machine]:
    """The same as another process."""
    with Machine(tmp_path, job.url, job.api) as machine:
        yield machine


# --- what is done -------------------------------------------------------------------------------


def test_a_run_serves_every_asset_once_with_several_calls_in_flight(job: Job) -> None:
    report = job.run()

    assert report.reason_ended is Ended.DONE
    assert sorted(report.updated) == SYMBOLS
    assert report.api_calls_used == ASSETS + 1, "one of them asks for all prices"
    assert job.most_at_once("feed = 'bars'") == 1, "of one asset"
    assert job.held() == (0, 0)
    job.assert_counted(report)
    stored, different = bars_unlike_the_replay(job.db)
    assert (stored > ASSETS, different) == (True, 0)
    assert [type(one) for one in job.heard].count(Started) == 1


def test_no_second_holds_more_calls_than_allowed_and_none_is_refused(job: Job) -> None:
    job.serve(provider="parallel_calls = 16", more="[rate_limit]\ncalls = 6")
    with StandIn("starter", calls=6, latency=(0.0, 0.5)) as strict:
        provider = replace(job.settings.provider, base_url=strict.base_url)
        job.settings = replace(job.settings, provider=provider)

        report = job.run()

        assert sorted(report.updated) == SYMBOLS
        assert (strict.refused, strict.most_in_a_window()) == (0, 6)
        job.assert_counted(report)


@pytest.mark.parametrize("limit", [1, 5])
def test_the_limit_counts_the_assets_of_all_calls(job: Job, limit: int) -> None:
    key = job.settings.provider.api_key
    assert key is not None
    denied = "insert into asset_sync.entitlements values (%s, 'starter', 'snapshot')"
    query(job.db, denied, (key.fingerprint(),))

    report = job.run(limit=limit)

    assert report.reason_ended is Ended.LIMIT
    assert len(report.updated) == report.api_calls_used == limit
    job.assert_counted(report)


def connections(job: Job, most: list[int]) -> Listener:
    """Note how many connections the run has at each of its events."""

    def count(_: Progress) -> None:
        [(number,)] = query(
            job.db,
            """
            select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'asset-sync'
              and pid <> pg_backend_pid()
            """,
        )
        most.append(int(number))

    return count


@pytest.mark.parametrize(("assets", "calls"), [(0, 1), (1, 2), (3, 4), (ASSETS, IN_FLIGHT)])
def test_a_run_opens_no_more_connections_than_it_has_calls_to_make(
    job: Job, assets: int, calls: int
) -> None:
    job.serve(assets)
    most: list[int] = []
    job.run(tell=connections(job, most))
    assert max(most) <= calls
    assert max(most) > 1 or calls == 1


def test_with_one_call_at_a_time_the_run_starts_no_thread(job: Job) -> None:
    job.serve(4, "parallel_calls = 1")
    most: list[int] = []
    names: set[str] = set()

    def look(progress: Progress) -> None:
        names.update(one.name for one in threading.enumerate() if "_work" in one.name)
        connections(job, most)(progress)

    assert job.run(tell=look).reason_ended is Ended.DONE
    assert (max(most), names) == (1, set())


def test_history_has_several_calls_in_flight(job: Job) -> None:
    job.serve(6, more="[history]\ndays = 100")
    query(job.db, "delete from market_data.ohlcv_5m")
    job.run()
    first = len(job.api.log)

    report = job.fill(*SYMBOLS[:6])

    assert report.reason_ended is Ended.DONE
    assert report.history_calls == len(job.api.log) - first > 6
    job.assert_counted(report)
    assert job.most_at_once("feed = 'history'") == 1, "of one asset"
    stamps = [one.at_seconds for one in job.api.log[first:]]
    assert min(b - a for a, b in pairwise(stamps)) < 0.15, "one at a time"


# --- what ends it -------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_back_every_item_and_slot(
    machine: Machine, job: Job, number: signal.Signals, code: int
) -> None:
    job.api.set_faults(["stall"])
    process = machine.start("sync", "queue")
    until(lambda: len(job.api.log) == IN_FLIGHT)
    process.send_signal(number)

    told = machine.end(process)

    assert told.code == code, told.err
    assert job.held() == (0, 0)
    [(waiting, attempts)] = query(
        job.db,
        "select count(*) filter (where state = 'waiting'), sum(attempts) from asset_sync.queue",
    )
    assert (waiting, attempts) == (2 * ASSETS, 0)
    assert query(job.db, "select reason_ended from asset_sync.runs") == [("interrupted",)]


def test_after_a_kill_the_next_run_does_the_rest(machine: Machine, job: Job) -> None:
    job.api.set_faults(["stall"])
    process = machine.start("sync", "queue")
    until(lambda: len(job.api.log) == IN_FLIGHT)
    process.kill()
    process.communicate()
    job.api.set_faults([])
    leased, taken = job.held()
    assert (leased, taken) == (ASSETS + IN_FLIGHT - 1, IN_FLIGHT)
    query(
        job.db,
        """
        update asset_sync.queue set lease_until = now() where state = 'leased';
        update asset_sync.slots set stamped_at = stamped_at - interval '1 minute'
        """,
    )

    told = machine.run("sync", "queue", "--json")

    assert told.code == 0, told.err
    assert sorted(json.loads(told.out)["updated"]) == SYMBOLS
    assert job.held()[0] == 0
    stored, different = bars_unlike_the_replay(job.db)
    assert (stored > ASSETS, different) == (True, 0)


def test_a_wrong_key_costs_no_more_calls_than_are_in_flight(job: Job) -> None:
    job.api.set_faults(["key-revoked"])

    report = job.run()

    assert report.reason_ended is Ended.KEY_REFUSED
    assert len(job.api.log) <= IN_FLIGHT
    assert job.held() == (0, 0)
    job.assert_counted(report)


def test_a_key_that_sees_nothing_of_today_is_found_out_once_and_loses_no_asset(job: Job) -> None:
    query(job.db, "update market_data.ohlcv_5m set ts = ts - interval '2 days'")
    job.api.set_faults(["today"])

    report = job.run()

    assert (sorted(report.updated), report.failed) == (SYMBOLS, [])
    [warning] = job.warnings()
    assert "does not include bars of the running day; using bars up to yesterday" in warning


def test_a_lapsed_plan_is_found_out_once_and_cuts_no_past_off(job: Job) -> None:
    job.serve(IN_FLIGHT)
    job.run()
    query(
        job.db,
        """
        update asset_sync.ledger set tail_from = date_trunc('day', now()) - interval '715 days',
          unasked_until = date_trunc('day', now()) - interval '715 days'
        """,
    )
    job.api.set_plan("free", calls=100, period_seconds=1.0)

    job.fill(*SYMBOLS[:IN_FLIGHT])

    assert query(job.db, "select count(past_begins) from asset_sync.ledger") == [(0,)]
    assert len(job.warnings()) == 1
    assert "does not include bars of so long ago" in job.warnings()[0]


def test_while_the_provider_answers_badly_calls_are_half_a_window_apart(job: Job) -> None:
    job.api.set_faults(["server-error"])

    report = job.run(seconds=5)

    assert report.updated == []
    stamps = [one.at_seconds for one in job.api.log]
    assert len(stamps) > IN_FLIGHT, "it goes on trying"
    later = stamps[IN_FLIGHT:]
    assert min(b - a for a, b in pairwise(later)) > 0.4
    job.assert_counted(report)


def test_after_an_outage_the_run_serves_all_with_several_calls_again(job: Job) -> None:
    job.serve(more="[queue]\nretry_delay_seconds = 1")
    job.api.set_faults(["server-error"])
    threading.Timer(2, job.api.set_faults, [[]]).start()

    report = job.run()

    assert sorted(report.updated) == SYMBOLS
    assert report.failed == []
    job.assert_counted(report)


def test_one_asset_whose_data_the_database_refuses_stops_no_other(job: Job) -> None:
    query(
        job.db,
        """
        create function public.refuse() returns trigger language plpgsql as $$
        begin
          if new.ticker_id = (select id from trading.symbols where symbol = 'A05') then
            raise exception 'no' using errcode = '22003';
          end if;
          return new;
        end
        $$;
        create trigger refuse before insert on market_data.ohlcv_5m
          for each row execute function public.refuse()
        """,
    )
    try:
        report = job.run()
    finally:
        query(job.db, "drop trigger refuse on market_data.ohlcv_5m; drop function public.refuse")

    assert [one.symbol for one in report.failed] == ["A05"]
    assert sorted(report.updated) == SYMBOLS, "A05 has its price, from the call for all prices"
    served = query(
        job.db,
        """
        select symbols[1] from asset_sync.calls where outcome = 'ok' and feed = 'bars' order by 1
        """,
    )
    assert [symbol for (symbol,) in served] == [one for one in SYMBOLS if one != "A05"]
    job.assert_counted(report)


def test_if_all_connections_are_ended_no_call_is_wasted_and_the_failure_is_told_once(
    job: Job,
) -> None:
    ended: list[float] = []

    def end_all(_: Progress) -> None:
        if len(job.api.log) > IN_FLIGHT and not ended:
            ended.append(time.monotonic())
            query(
                job.db,
                """
                select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name = 'asset-sync'
                  and pid <> pg_backend_pid()
                """,
            )

    report = job.run(tell=end_all)

    assert ended
    assert sorted(report.updated) == SYMBOLS
    assert len(job.api.log) == report.api_calls_used == ASSETS + 1
    job.assert_counted(report)
    said = [one for one in job.heard if isinstance(one, Warned | Recovered)]
    assert [type(one) for one in said] == [Warned, Recovered], said


def test_a_database_without_a_free_connection_gets_fewer_calls_at_a_time(job: Job) -> None:
    query(
        job.db,
        """
        create role asset_sync_some login password 'x' connection limit 2;
        grant pg_read_all_data, pg_write_all_data to asset_sync_some;
        grant usage on all sequences in schema asset_sync, data_sources, trading
          to asset_sync_some;
        """,
    )
    try:
        address = make_dsn(job.url, user="asset_sync_some", password="x")
        job.settings = replace(job.settings, conninfo=Secret(address))
        report = job.run()
    finally:
        query(job.db, "drop owned by asset_sync_some; drop role asset_sync_some")

    assert sorted(report.updated) == SYMBOLS
    [warned] = [one for one in job.heard if isinstance(one, Warned)]
    assert "free connection" in warned.text
