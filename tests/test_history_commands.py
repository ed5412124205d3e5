"""`asset-sync history`: what it says of the past, and what it fetches."""

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import commandline
import pytest
from commandline import Told
from machine import Machine, until

from asset_sync.database import Connection, query, transaction
from asset_sync.demo import replay
from asset_sync.demo.server import StandIn
from asset_sync.hours import BAR_LENGTH, CRYPTO, FX, METALS
from asset_sync.model import Feed
from asset_sync.ops import history
from asset_sync.ops.history import ASKED_EMPTY, NEVER_ASKED
from asset_sync.settings import Settings, load
from asset_sync.spans import Span, difference, intersection, union
from asset_sync.store import entitlements, ledger
from asset_sync.store.ledger import Ledger
from asset_sync.sync import coverage, loop
from asset_sync.sync.progress import Filled, Noted, Progress, Waiting
from asset_sync.sync.scope import account

DAYS = 100
RATE = "[rate_limit]\ncalls = 40\nperiod_seconds = 1\n"
BITCOIN = "X:BTCUSD"


def block(symbol: str, ticker: str, kind: str = "crypto", hours: str = "crypto") -> str:
    return (
        f'[[secondary_assets]]\nsymbol = "{symbol}"\npolygon_ticker = "{ticker}"\n'
        f'asset_type = "{kind}"\nhours = "{hours}"\n'
    )


TWO = f"{RATE}[history]\ndays = {DAYS}\n" + block("BTCUSD", BITCOIN) + block("ETHUSDT", "X:ETHUSDT")


@pytest.fixture
def fast() -> Iterator[StandIn]:
    """The stand-in with a window of a second."""
    with StandIn("free", calls=40, period_seconds=1.0) as api:
        yield api


@pytest.fixture
def machine(tmp_path: Path, url: str, fast: StandIn) -> Iterator[Machine]:
    with Machine(tmp_path, url, fast) as machine:
        machine.file(TWO)
        yield machine


def first_sync(machine: Machine) -> None:
    told = machine.tell("sync", "queue", "--max-runtime", "20")
    assert told.code == 0, told.err


def status(machine: Machine) -> dict[str, Any]:
    told = machine.tell("history", "status", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert isinstance(found, dict)
    return found


def on_a_screen(machine: Machine, *arguments: str) -> Told:
    return commandline.asset_sync(
        *arguments, environ=machine.environ, directory=machine.home, columns=80
    )


def asked(api: StandIn, ticker: str) -> list[tuple[int, int]]:
    """Give the ranges of bars that were asked, in milliseconds, without the first sync's."""
    path = rf"/aggs/ticker/{re.escape(ticker)}/range/\d+/minute/(\d+)/(\d+)"
    found = [re.search(path, one.method_path) for one in api.log]
    return [(int(match[1]), int(match[2])) for match in found if match]


def bars_of(db: Connection, symbol: str) -> set[int]:
    rows = query(
        db,
        """
        select extract(epoch from ts)::bigint * 1000 from market_data.ohlcv_5m bar
        join trading.symbols s on s.id = bar.ticker_id where s.symbol = %s
        """,
        (symbol,),
    )
    return {start for (start,) in rows}


def assert_complete(db: Connection, symbol: str, ticker: str, days: int = DAYS) -> None:
    """Check that every bar of the stand-in is there, up to where the ordinary calls continue."""
    now = int(time.time() * 1000)
    start = now - days * replay.DAY_MS + replay.HOUR_MS
    held = {one.start_ms for one in replay.bars(ticker, start, now - replay.HOUR_MS, now)}
    assert held
    assert not held - bars_of(db, symbol)


def assert_asked_once(api: StandIn, ticker: str) -> None:
    ranges = sorted(asked(api, ticker))
    assert len(ranges) > 2
    for (_, end), (start, _) in pairwise(ranges):
        assert start >= end


# --- status --------------------------------------------------------------------------------------


def test_before_the_first_run_nothing_was_asked(machine: Machine) -> None:
    found = status(machine)

    assert list(found) == [
        "assets",
        "asked_percent",
        "calls_left",
        "spare_calls_per_day",
        "done_at",
        "revisions",
    ]
    [bitcoin, ether] = found["assets"]
    assert bitcoin == {
        "symbol": "BTCUSD",
        "oldest_bar": None,
        "newest_bar": None,
        "expected_bars": DAYS * 288,
        "asked_percent": 0.0,
        "bars": 0,
        "holes": {"never_asked": DAYS * 288, "asked_empty": 0},
        "calls_left": 3,
    }
    assert ether["symbol"] == "ETHUSDT"
    assert (found["asked_percent"], found["calls_left"]) == (0.0, 6)
    assert found["spare_calls_per_day"] > 100_000
    assert found["done_at"] is not None


def test_a_first_sync_leaves_the_past_before_it_unasked(machine: Machine) -> None:
    first_sync(machine)

    found = status(machine)

    [bitcoin, _] = found["assets"]
    assert 30 < bitcoin["asked_percent"] < 45
    assert bitcoin["bars"] + bitcoin["holes"]["never_asked"] == pytest.approx(
        bitcoin["expected_bars"] - bitcoin["holes"]["asked_empty"], abs=2
    )
    assert bitcoin["calls_left"] == 2
    assert bitcoin["oldest_bar"] < bitcoin["newest_bar"]


@pytest.mark.parametrize("columns", [80])
def test_the_table_fits_into_a_terminal(machine: Machine, columns: int) -> None:
    first_sync(machine)

    for arguments in (("status",), ("holes", "BTCUSD")):
        shown = on_a_screen(machine, "history", *arguments)
        assert shown.code == 0
        assert all(len(line) <= columns for line in shown.out.splitlines())
        piped = machine.tell("history", *arguments)
        assert "\x1b" not in piped.out
    told = machine.tell("history", "status")
    assert re.search(r"^BTCUSD +\d{4}-\d\d-\d\d .* 2$", told.out, re.MULTILINE)
    assert "4 calls to go" in told.out
    assert "Runs fetch no history ([history] enabled = false)" in told.out


@pytest.mark.parametrize("arguments", [("holes", "BTCUSB"), ("fill", "BTCUSB")])
def test_a_mistyped_symbol_gets_the_likely_one(
    machine: Machine, arguments: tuple[str, str]
) -> None:
    told = machine.tell("history", *arguments)

    assert told.code == 2
    assert "Did you mean BTCUSD?" in re.sub(r"[\s│]+", " ", told.err)


@pytest.mark.parametrize("command", ["holes", "fill"])
def test_an_asset_that_is_switched_off_is_named_as_such(machine: Machine, command: str) -> None:
    machine.file(
        """
        [[secondary_assets]]
        symbol = "BTCUSD"
        polygon_ticker = "X:BTCUSD"
        asset_type = "crypto"
        enabled = false
        """
    )
    told = machine.tell("history", command, "BTCUSD")

    assert told.code == 2
    assert "BTCUSD is switched off" in re.sub(r"[\s│]+", " ", told.err)


# --- fill ----------------------------------------------------------------------------------------


def test_fill_fetches_every_bar_and_asks_for_none_twice(
    machine: Machine, db: Connection, fast: StandIn
) -> None:
    first_sync(machine)
    assert not machine.tell("history", "fill").err.count("warning")

    for symbol, ticker in (("BTCUSD", BITCOIN), ("ETHUSDT", "X:ETHUSDT")):
        assert_complete(db, symbol, ticker)
        assert_asked_once(fast, ticker)
    found = status(machine)
    assert (found["asked_percent"], found["calls_left"], found["done_at"]) == (100.0, 0, None)
    shown = machine.tell("history", "status").out
    assert "All of the past that is wanted was asked." in shown
    again = machine.tell("history", "fill")
    assert again.code == 0
    assert again.out == (
        "history: 0 calls, 0 bars written. Nothing was missing that can be asked now.\n"
    )
    assert query(db, "select distinct command from asset_sync.runs order by 1") == [
        ("history",),
        ("queue",),
    ]


def test_fill_prints_a_line_for_each_call_if_it_is_no_terminal(machine: Machine) -> None:
    first_sync(machine)

    told = machine.tell("history", "fill", "BTCUSD")

    assert told.code == 0
    lines = [line for line in told.err.splitlines() if ": history " in line]
    assert len(lines) == 2
    assert re.search(r"run \d+: BTCUSD: history \d{4}-\d\d-\d\d to .*, [\d,]+ new bars", lines[0])
    assert re.fullmatch(
        r"history: 2 calls, [\d,]+ bars written\. Nothing more is to be asked now\.\n", told.out
    )
    as_json = machine.tell("history", "fill", "ETHUSDT", "--log-format", "json")
    events = [json.loads(line) for line in as_json.err.splitlines()]
    filled = [one for one in events if one["event"] == "filled"]
    assert {one["symbol"] for one in filled} == {"ETHUSDT"}
    assert all(one["from"] < one["until"] for one in filled)


def test_fill_keeps_to_the_days_that_are_named(
    machine: Machine, db: Connection, fast: StandIn
) -> None:
    first_sync(machine)
    before = len(asked(fast, BITCOIN))
    today = datetime.now(UTC)
    # earlier than the settings want, and not as late as what is there
    since, end = today.date() - timedelta(days=130), today.date() - timedelta(days=110)

    told = machine.tell("history", "fill", "BTCUSD", "--since", f"{since}", "--until", f"{end}")

    assert told.code == 0, told.err
    [(start_ms, end_ms)] = asked(fast, BITCOIN)[before:]
    assert datetime.fromtimestamp(start_ms / 1000, UTC).date() == since
    assert datetime.fromtimestamp(end_ms / 1000, UTC).date() == end
    ranges = [
        hole
        for hole in json.loads(machine.tell("history", "holes", "BTCUSD", "--json").out)["holes"]
        if hole["class"] == NEVER_ASKED
    ]
    assert len(ranges) == 1
    again = machine.tell("history", "fill", "BTCUSD", "--since", f"{since}", "--until", f"{end}")
    assert again.out.startswith("history: 0 calls")
    assert len(asked(fast, BITCOIN)) == before + 1


def test_fill_refuses_days_that_end_before_they_begin(machine: Machine) -> None:
    told = machine.tell("history", "fill", "--since", "2025-06-02", "--until", "2025-06-01")

    assert told.code == 2


def test_fill_says_if_the_day_is_before_the_past_that_is_wanted(machine: Machine) -> None:
    told = machine.tell("history", "fill", "--until", "2020-01-01")

    assert told.code == 2
    assert "--until is before the past that is wanted" in told.err


def test_a_fill_whose_reader_has_gone_is_no_bug(machine: Machine) -> None:
    first_sync(machine)
    process = machine.start("history", "fill")
    assert process.stdout is not None
    process.stdout.close()

    told = machine.end(process)
    assert (told.code, "bug" in told.err) == (1, False)


def test_fill_names_the_assets_that_no_run_has_refreshed(machine: Machine) -> None:
    told = machine.tell("history", "fill")

    assert told.code == 0
    assert "BTCUSD, ETHUSDT: never refreshed yet." in told.err
    assert told.out.startswith("history: 0 calls")


def settings_of(machine: Machine) -> Settings:
    return load(machine.home / "assets.toml", machine.environ)


def refuse_before(machine: Machine, db: Connection, moment: datetime) -> None:
    """Let it be known that the API refuses what lies before this moment."""
    settings = settings_of(machine)
    with transaction(db) as cursor:
        cursor.execute("update asset_sync.ledger set past_begins = %s", (moment,))
        symbols = [asset.symbol for asset in settings.assets]
        entitlements.note_missing(cursor, *account(settings), "past", symbols)


def test_a_fill_that_is_interrupted_between_calls_is_resumed(
    machine: Machine, db: Connection, fast: StandIn
) -> None:
    first_sync(machine)

    def interrupt(progress: Progress) -> None:
        if isinstance(progress, Filled):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.fill(db, settings_of(machine), ["BTCUSD", "ETHUSDT"], tell=interrupt)
    report = loop.fill(db, settings_of(machine), ["BTCUSD", "ETHUSDT"])

    assert report.api_calls_used == 2
    for symbol, ticker in (("BTCUSD", BITCOIN), ("ETHUSDT", "X:ETHUSDT")):
        assert_complete(db, symbol, ticker)
        assert_asked_once(fast, ticker)


def test_a_fill_that_waits_for_an_asset_that_is_due_says_so(
    machine: Machine, db: Connection, fast: StandIn
) -> None:
    first_sync(machine)
    assert machine.tell("queue", "add", "BTCUSD").code == 0
    calls, told = len(fast.log), []

    def listen(progress: Progress) -> None:
        if isinstance(progress, Noted):
            told.append(progress.text)
        if isinstance(progress, Waiting) and told:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.fill(db, settings_of(machine), ["ETHUSDT"], tell=listen)

    [note] = told
    assert note.startswith("BTCUSD is due, so history waits until a run has refreshed it")
    assert len(fast.log) == calls


def test_a_fill_that_fails_for_an_asset_says_so_once_and_exits_1(
    machine: Machine, fast: StandIn
) -> None:
    machine.file(f"{TWO}[queue]\nretry_delay_seconds = 3600\n")
    first_sync(machine)
    fast.set_faults(["not-found@X:ETHUSDT"])

    told = machine.tell("history", "fill")

    assert told.code == 1
    assert told.err.count("failed: ETHUSDT") == 1
    assert told.out.endswith("1 failed. What failed is asked again later.\n")


def test_a_queue_run_whose_history_fails_says_so_and_exits_0(
    machine: Machine, fast: StandIn
) -> None:
    machine.file(f"{TWO}[queue]\nretry_delay_seconds = 3600\n")
    first_sync(machine)
    fast.set_faults(["not-found@X:ETHUSDT"])

    told = machine.tell("sync", "queue", "--json", "--max-runtime", "20", HISTORY_ENABLED="true")

    found = json.loads(told.out)
    assert told.code == 0
    assert [one["symbol"] for one in found["history_failed"]] == ["ETHUSDT"]
    assert found["failed"] == []


def test_ctrl_c_during_a_call_ends_a_fill_with_130(tmp_path: Path, url: str) -> None:
    slow = {"on": False}

    def latency(_: object) -> float:
        return 30.0 if slow["on"] else 0.0

    with (
        StandIn("free", calls=40, period_seconds=1.0, latency=latency) as api,
        Machine(tmp_path, url, api) as machine,
    ):
        machine.file(TWO)
        first_sync(machine)
        calls = len(api.log)
        slow["on"] = True
        process = machine.start("history", "fill")
        until(lambda: len(api.log) > calls)
        process.send_signal(signal.SIGINT)
        told = machine.end(process)
        assert told.code == 130, told.err
        assert "interrupted" in told.err


# --- holes ---------------------------------------------------------------------------------------

FOREX = (("EURUSD", "C:EURUSD"), ("GBPUSD", "C:GBPUSD"), ("USDJPY", "C:USDJPY"))
THREE = RATE + "".join(block(*one, kind="forex", hours="fx") for one in FOREX)


def plant(db: Connection, symbol: str, ticker: str, settled: list[Span], *without: Span) -> None:
    """Store every expected bar of the settled ranges outside of some, as answers would."""
    opened = [span for one in settled for span in difference(FX.spans(*one), without)]
    with transaction(db) as cursor:
        cursor.execute(
            "insert into trading.symbols (symbol) values (%s) on conflict do nothing", (symbol,)
        )
        for span in opened:
            cursor.execute(
                """
                insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close, volume)
                select id, ts, 1, 1, 1, 1, 1 from trading.symbols,
                  generate_series(%s::timestamptz, %s - interval '5 min', '5 min') as ts
                where symbol = %s
                """,
                (*span, symbol),
            )
        known = Ledger()
        ledger.lock(cursor, symbol, Feed.BARS, ticker)
        for span in settled:
            known = known.with_settled(span)
        days = coverage.asked_days(FX, known, Span(settled[0].start, settled[-1].end))
        came = ledger.count_bars(cursor, symbol, [span for day in days for span in day.asked])
        weeks = coverage.weeks(days, came)
        ledger.save_weeks(cursor, symbol, weeks, tried=False, forget_at=timedelta(days=700))
        ledger.save(cursor, symbol, Feed.BARS, known, None)


def wednesday(weeks_ago: int) -> datetime:
    """Give 0:00 UTC of a Wednesday."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=(today.weekday() - 2) % 7 + 7 * weeks_ago)


@pytest.fixture
def forex(machine: Machine) -> Machine:
    machine.file(THREE)
    return machine


def holes(machine: Machine, symbol: str) -> list[dict[str, str | None]]:
    told = machine.tell("history", "holes", symbol, "--json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert list(document) == ["holes"]
    found = document["holes"]
    assert isinstance(found, list)
    return found


def test_a_planted_gap_is_one_hole_with_its_next_try(forex: Machine, db: Connection) -> None:
    start = wednesday(3)
    gap = Span(start + timedelta(hours=10), start + timedelta(hours=12))
    plant(db, "EURUSD", "C:EURUSD", [Span(wednesday(6), wednesday(1))], gap)

    *_, unasked = found = holes(forex, "EURUSD")

    assert [hole["class"] for hole in found] == [ASKED_EMPTY, NEVER_ASKED]
    assert set(unasked) == {"symbol", "from", "until", "class", "next_try_at"}
    assert unasked["next_try_at"] is None
    empty = found[0]
    assert (empty["from"], empty["until"]) == tuple(moment.isoformat() for moment in gap)
    retry = datetime.fromisoformat(str(empty["next_try_at"])) - datetime.now(UTC)
    assert timedelta(hours=23) < retry <= timedelta(days=1)
    [euro, *_] = status(forex)["assets"]
    assert euro["holes"]["asked_empty"] == 24
    shown = forex.tell("history", "holes", "EURUSD", HISTORY_ENABLED="true").out
    assert re.search(rf"{gap.start:%Y-%m-%d %H:%M} .* 2 h +asked, empty", shown)
    assert "with a spare call" in shown


def test_a_try_that_is_overdue_is_now_and_without_history_in_runs_fill_is_next(
    forex: Machine, db: Connection
) -> None:
    start = wednesday(3) + timedelta(hours=10)
    gap = Span(start, start + timedelta(hours=2))
    plant(db, "EURUSD", "C:EURUSD", [Span(wednesday(6), wednesday(1))], gap)
    query(db, "update asset_sync.weeks set next_try_at = now() - interval '1 hour'")
    [(now,)] = query(db, "select now()")

    [at] = [hole["next_try_at"] for hole in holes(forex, "EURUSD") if hole["class"] == ASKED_EMPTY]

    assert datetime.fromisoformat(str(at)) >= now
    assert "never asked   by history fill" in forex.tell("history", "holes", "EURUSD").out


def test_status_names_the_assets_whose_older_bars_the_api_refuses(
    forex: Machine, db: Connection
) -> None:
    plant(db, "EURUSD", "C:EURUSD", [Span(wednesday(6), wednesday(1))])
    assert "refuses" not in forex.tell("history", "status").out

    refuse_before(forex, db, wednesday(6))

    refused = f"The API refuses bars of EURUSD before {wednesday(6):%Y-%m-%d}"
    told = forex.tell("history", "status").out
    assert refused in told
    assert "is wanted was asked" not in told
    assert refused in forex.tell("history", "holes", "EURUSD").out


def test_a_range_between_two_that_were_asked_is_a_hole(forex: Machine, db: Connection) -> None:
    asked = [Span(wednesday(8), wednesday(6)), Span(wednesday(4), wednesday(1))]
    plant(db, "EURUSD", "C:EURUSD", asked, Span(wednesday(1), wednesday(1)))

    found = [hole for hole in holes(forex, "EURUSD") if hole["class"] == NEVER_ASKED]

    assert (found[0]["from"], found[0]["until"]) == (
        wednesday(6).isoformat(),
        wednesday(4).isoformat(),
    )
    assert len(found) == 2


@pytest.mark.parametrize("silent", [2, 3])
def test_a_day_on_which_all_three_assets_are_silent_is_no_hole(
    forex: Machine, db: Connection, silent: int
) -> None:
    day = wednesday(3).date()
    [(_, [opened])] = [one for one in FX.days(wednesday(4), wednesday(2)) if one[0] == day]
    nothing = Span(opened.start, opened.start)
    for number, (symbol, ticker) in enumerate(FOREX):
        without = opened if number < silent else nothing
        plant(db, symbol, ticker, [Span(wednesday(6), wednesday(1))], without)

    found = [hole for hole in holes(forex, "EURUSD") if hole["class"] == ASKED_EMPTY]
    empty = [one["holes"]["asked_empty"] for one in status(forex)["assets"]]

    if silent == 3:
        assert (found, empty) == ([], [0, 0, 0])
    else:
        assert [(hole["from"], hole["until"]) for hole in found] == [
            (opened.start.isoformat(), opened.end.isoformat())
        ]
        assert empty == [288, 288, 0]


def test_what_is_there_and_what_is_missing_add_up_to_what_is_expected(
    forex: Machine, db: Connection
) -> None:
    """Neither a holiday nor a hole before the wanted past counts as missing."""
    begins, day = wednesday(6) + timedelta(hours=5), wednesday(3).date()
    [(_, [holiday])] = [one for one in FX.days(wednesday(4), wednesday(2)) if one[0] == day]
    before = Span(wednesday(6) + timedelta(hours=2), wednesday(6) + timedelta(hours=3))
    gap = Span(wednesday(5), wednesday(5) + timedelta(hours=1))
    for symbol, ticker in FOREX:
        plant(db, symbol, ticker, [Span(wednesday(6), wednesday(1))], before, gap, holiday)
    refuse_before(forex, db, begins)

    found = history.history_of(db, settings_of(forex)).assets

    for asset in found:
        assert (asset.never_asked, asset.asked_empty) == (0, 12)
        there = [at for at in bars_of(db, asset.symbol) if at >= begins.timestamp() * 1000]
        assert asset.expected_bars == len(there) + 12
        assert asset.there_percent == round(100 * len(there) / asset.expected_bars, 1)


def test_other_hours_in_the_settings_change_what_is_missing_everywhere(
    forex: Machine, db: Connection
) -> None:
    settled = Span(wednesday(6), wednesday(1))
    plant(db, "EURUSD", "C:EURUSD", [settled], Span(settled.start, settled.start))
    refuse_before(forex, db, settled.start)
    assert forex.tell("db", "init").code == 0
    assert status(forex)["assets"][0]["holes"]["asked_empty"] == 0

    forex.file(RATE + block("EURUSD", "C:EURUSD", "forex", "crypto"))
    assert forex.tell("db", "init").code == 0

    weekends = CRYPTO.expected_bars(*settled) - FX.expected_bars(*settled)
    [euro] = status(forex)["assets"]
    assert euro["holes"]["asked_empty"] == weekends
    found = holes(forex, "EURUSD")
    lengths = [
        datetime.fromisoformat(str(hole["until"])) - datetime.fromisoformat(str(hole["from"]))
        for hole in found
    ]
    assert sum(lengths, timedelta()) == weekends * BAR_LENGTH
    assert None not in {hole["next_try_at"] for hole in found}


def test_the_daily_break_between_two_ranges_that_were_asked_is_no_call_to_go(
    machine: Machine, db: Connection
) -> None:
    machine.file(RATE + block("XAUUSD", "C:XAUUSD", "forex", "metals"))
    closes = METALS.spans(wednesday(3), wednesday(2))[0].end
    asked = [Span(wednesday(6), closes), Span(closes + timedelta(hours=1), wednesday(1))]
    plant(db, "XAUUSD", "C:XAUUSD", asked, Span(closes, closes))
    refuse_before(machine, db, asked[0].start)

    [gold] = history.history_of(db, settings_of(machine)).assets

    assert (gold.never_asked, gold.calls_left) == (0, 0)


def test_another_ticker_begins_anew_with_nothing_asked_and_nothing_missing(
    forex: Machine, db: Connection
) -> None:
    settled = Span(wednesday(6), wednesday(1))
    plant(db, "EURUSD", "C:EURUSD", [settled], Span(wednesday(3), wednesday(2)))
    with transaction(db) as cursor:
        ledger.lock(cursor, "EURUSD", Feed.BARS, "C:EURUSX")

    forex.file(RATE + block("EURUSD", "C:EURUSX", "forex", "fx"))

    [euro] = history.history_of(db, settings_of(forex)).assets
    assert (euro.asked_bars, euro.asked_empty, euro.there) == (0, 0, 0)


def test_over_two_years_each_planted_hole_is_found_and_no_closure_is_reported(
    forex: Machine, db: Connection
) -> None:
    """The two years have both changes of the clock, twice, Christmas, New Year and a holiday."""
    settled = Span(wednesday(102), wednesday(1))
    day = wednesday(30).date()
    [(_, [holiday])] = [one for one in FX.days(wednesday(31), wednesday(29)) if one[0] == day]
    generator = random.Random(11)
    weeks = FX.spans(*settled)
    planted = {}
    for symbol, ticker in FOREX:
        lost = [Span(week.start, week.start + BAR_LENGTH) for week in weeks[1::5]]
        for week in generator.sample(weeks[1:-1], 20):
            bars = generator.choice([1, 7, 100])
            start = week.start + BAR_LENGTH * generator.randrange(week.length // BAR_LENGTH - bars)
            lost.append(Span(start, start + BAR_LENGTH * bars))
        planted[symbol] = [span for span in union(lost) if not intersection([span], [holiday])]
        plant(db, symbol, ticker, [settled], *planted[symbol], holiday)

    for symbol, spans in planted.items():
        found = [hole for hole in holes(forex, symbol) if hole["class"] == ASKED_EMPTY]
        assert len(spans) > 30
        assert [(hole["from"], hole["until"]) for hole in reversed(found)] == [
            (span.start.isoformat(), span.end.isoformat()) for span in spans
        ]


def test_without_a_hole_it_says_so(forex: Machine, db: Connection) -> None:
    span = Span(wednesday(3), wednesday(1))
    plant(db, "EURUSD", "C:EURUSD", [span], Span(span.start, span.start))
    forex.file(f"{RATE}[history]\ndays = 14\n" + block("EURUSD", "C:EURUSD", "forex", "fx"))

    assert holes(forex, "EURUSD") == []
    assert forex.tell("history", "holes", "EURUSD").out.startswith("EURUSD: no hole.")

    forex.file(THREE)
    refuse_before(forex, db, span.start)
    assert "EURUSD: no hole since then." in forex.tell("history", "holes", "EURUSD").out


def test_revisions_are_counted(machine: Machine, db: Connection) -> None:
    query(db, "insert into asset_sync.revisions (symbol, ts) values ('BTCUSD', now())")

    assert status(machine)["revisions"] == 1
    assert "stored: 1." in machine.tell("history", "status").out


# --- figures -------------------------------------------------------------------------------------


def test_the_calls_are_those_that_asking_range_by_range_takes() -> None:
    until_ = datetime(2025, 11, 20, 12, tzinfo=UTC)
    since = until_ - timedelta(days=720)
    known = Ledger(tail=Span(until_ - timedelta(days=40), until_)).with_settled(
        Span(since + timedelta(days=100), since + timedelta(days=103))
    )
    calls, left = 0, known
    while (span := coverage.next_unasked(FX, left, since)) is not None:
        calls += 1
        left = left.with_settled(span)

    times = history._OpenTimes(FX.spans(since, until_))

    assert coverage.calls_for(times.reached_time, known.gaps(since)) == calls == 14
    assert times.bars(Span(since, until_)) == FX.expected_bars(since, until_)
    middle = Span(since + timedelta(days=3, minutes=7), since + timedelta(days=400, minutes=3))
    assert times.bars(middle) == FX.expected_bars(*middle)
    assert times.reached_time(middle) == FX.open_time(*middle)


def test_the_status_of_1000_assets_counts_the_holes_of_each(
    db: Connection, machine: Machine
) -> None:
    many = "".join(block(f"A{number}", f"C:A{number}", "forex", "metals") for number in range(1000))
    machine.file(RATE + many)
    now = datetime.now(UTC)
    query(
        db,
        """
        insert into asset_sync.ledger (symbol, feed, ticker, asked, tail_from, tail_until)
        select 'A' || n, 'bars', 'C:A' || n, (
            select range_agg(tstzrange(start, start + interval '20 days'))
            from generate_series(%(now)s - interval '700 days', %(now)s, '33 days') as start
            where start < %(now)s - interval '60 days'
          ), %(now)s - interval '20 days', %(now)s from generate_series(0, 999) as n;
        insert into asset_sync.weeks (symbol, week, bars, empty_slots, asked_at)
        select 'A' || n, week::date, 1300, 5, now() from generate_series(0, 999) as n,
          generate_series(date_trunc('week', now()) - interval '98 weeks', now(), '7 days') week;
        analyze asset_sync.weeks
        """,
        {"now": now},
    )

    found = history.history_of(db, settings_of(machine))

    assert len(found.assets) == 1000
    assert {one.unasked_ranges >= 19 for one in found.assets} == {True}
    assert {one.asked_empty > 0 for one in found.assets} == {True}
