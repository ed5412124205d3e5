"""SQL knows how many bars are expected, as the settings say it, without seeing the settings."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from conftest import ETHER, asset
from hypothesis import given
from hypothesis import strategies as st
from machine import Machine
from test_larger_bars import SIZES, VIEWS, bar, read, save, start_of

from asset_sync.database import Connection, Cursor, Row, query
from asset_sync.demo.server import StandIn
from asset_sync.hours import FX, METALS, NAMED, Hours
from asset_sync.model import Asset
from asset_sync.store import expected
from asset_sync.store.bars_query import Every, Selection

EURUSD = replace(asset("EURUSD"), hours=None)
PAST_DAYS = 720


def keep(db: Connection, *assets: Asset, past_days: int = PAST_DAYS) -> None:
    expected.keep(db, assets, past_days, _nothing)


def _nothing(_cursor: Cursor, _asset: Asset) -> None:
    """Count nothing anew."""


def written(db: Connection) -> list[Row]:
    """Return for each kind of hours how many days are written, the first and the last from now."""
    return query(
        db,
        """
        select hours, count(*), min(day) - (now() at time zone 'UTC')::date,
          max(day) - (now() at time zone 'UTC')::date
        from asset_sync.expected_bars group by 1 order by 1
        """,
    )


def versions(db: Connection) -> list[Row]:
    return query(
        db,
        """
        select xmin::text from asset_sync.expected_bars union
        select xmin::text from asset_sync.symbol_hours order by 1
        """,
    )


HOURS = [*NAMED.values(), Hours("Mon-Fri 08:05-22:55 Europe/Berlin"), Hours("Sat 23:50-00:10 UTC")]


@given(
    hours=st.sampled_from(HOURS),
    since=st.dates(date(2023, 1, 1), date(2027, 1, 1)),
    length=st.integers(0, 40),
    ends=st.tuples(st.integers(0, 40 * 96), st.integers(0, 40 * 96)),
)
def test_the_counts_between_two_quarters_are_those_of_the_hours(
    hours: Hours, since: date, length: int, ends: tuple[int, int]
) -> None:
    days = expected.expected_days(hours, since, since + timedelta(days=length))
    first, last = sorted(min(end, (length + 1) * 96 - 1) for end in ends)
    begin = datetime(since.year, since.month, since.day, tzinfo=UTC)

    def before(quarter: int) -> int:
        one = days[quarter // 96]
        assert one.day == since + timedelta(days=quarter // 96)
        return one.before + one.before_quarter[quarter % 96]

    assert before(last) - before(first) == hours.expected_bars(
        begin + first * timedelta(minutes=15), begin + last * timedelta(minutes=15)
    )


@pytest.mark.parametrize("every", SIZES)
@pytest.mark.parametrize(("name", "hours"), [("fx", FX), ("metals", METALS)])
def test_every_larger_bar_says_how_many_bars_were_expected(
    db: Connection, every: Every, name: str, hours: Hours
) -> None:
    [(now,)] = query(db, "select date_bin('5 min', now(), 'epoch')")
    first = start_of(every, now - timedelta(days=300))
    keep(db, replace(EURUSD, hours=name))
    save(db, *(bar(first + number * timedelta(hours=3)) for number in range(8 * 40)))

    rows = read(db, Selection(["EURUSD"], every=every))

    assert len(rows) > 30
    for row in rows:
        end = start_of(every, row.ts + timedelta(hours=26 if "1d" in every else 0.25))
        if every in {Every.HOUR, Every.FOUR_HOURS}:
            end = row.ts + timedelta(hours=1 if every is Every.HOUR else 4)
        assert row.expected == hours.expected_bars(row.ts, end)
    if every is Every.FOUR_HOURS:
        shown = query(db, f"select expected from {VIEWS[every]} order by ts")
        assert [one for (one,) in shown] == [row.expected for row in rows]
        called = "select expected from market_data.bars('EURUSD', '4 hours') order by ts"
        assert query(db, called) == shown


@pytest.mark.parametrize("hours", ["metals", "crypto"])
@pytest.mark.parametrize("missing", ["10:00", "23:55"])
def test_a_bar_outside_the_hours_makes_up_for_none_within(
    db: Connection, hours: str, missing: str
) -> None:
    """In winter metals pause from 22:00 to 23:00 UTC: a day has 276 bars."""
    keep(db, replace(EURUSD, hours=hours))
    midnight = datetime(2026, 11, 4, tzinfo=UTC)
    day = [midnight + number * timedelta(minutes=5) for number in range(288)]
    within = [start for start in day if NAMED[hours].is_open(start)]
    lost = datetime.fromisoformat(f"2026-11-04T{missing}Z")
    selection = Selection(["EURUSD"], every=Every.DAY, complete=True)

    save(db, *(bar(start) for start in day if start != lost))
    assert read(db, selection) == []

    save(db, bar(lost))
    [whole] = read(db, selection)
    assert (whole.bars, whole.expected) == (288, len(within))


def test_what_is_not_written_is_null(db: Connection) -> None:
    keep(db, EURUSD)
    save(db, bar("2001-03-05"), bar("2039-03-07"))
    save(db, bar("2026-11-04"), symbol="OTHER")

    found = read(db, Selection(["EURUSD", "OTHER"], every=Every.DAY))

    assert [row.expected for row in found] == [None, None, None]
    assert query(db, "select expected from market_data.bars('EURUSD', '10 min')") == [(None,)] * 2


# --- kept current --------------------------------------------------------------------------------


def test_two_years_and_some_weeks_ahead_are_written_once(db: Connection) -> None:
    keep(db, EURUSD, replace(asset("GOLD"), hours="metals"))
    assert written(db) == [("fx", 781, -720, 60), ("metals", 781, -720, 60)]
    before = versions(db)

    keep(db, EURUSD)

    assert versions(db) == before


def test_as_soon_as_the_end_comes_near_all_is_written_anew_and_the_past_stays(
    db: Connection,
) -> None:
    keep(db, EURUSD)
    query(
        db,
        """
        delete from asset_sync.expected_bars where day > now() + interval '13 days';
        insert into asset_sync.expected_bars
        select hours, day - 40, 0, before_quarter from asset_sync.expected_bars
        order by day limit 1
        """,
    )

    keep(db, EURUSD)

    assert written(db) == [("fx", 821, -760, 60)]


def test_a_longer_past_is_written_when_the_plan_has_one(db: Connection) -> None:
    keep(db, EURUSD)
    keep(db, EURUSD, past_days=3650)
    assert written(db) == [("fx", 3711, -3650, 60)]


def test_other_hours_in_the_settings_count_at_once_and_those_of_nobody_go(db: Connection) -> None:
    keep(db, EURUSD, asset("BTCUSD"))
    own = replace(EURUSD, hours=("Mon-Fri 08:00-16:00 UTC", "Sat 10:00-11:00"))

    keep(db, own)

    rows = query(db, "select symbol, hours from asset_sync.symbol_hours order by symbol")
    assert rows == [
        ("BTCUSD", "crypto"),
        ("EURUSD", "Mon-Fri 08:00-16:00 UTC; Sat 10:00-11:00"),
    ]
    assert [hours for hours, *_ in written(db)] == [
        "Mon-Fri 08:00-16:00 UTC; Sat 10:00-11:00",
        "crypto",
    ]


def test_a_run_writes_them_once_and_db_init_anew(
    url: str, db: Connection, api: StandIn, tmp_path: Path
) -> None:
    with Machine(tmp_path, url, api) as machine:
        machine.file(ETHER)
        assert machine.tell("sync", "queue").code == 0
        assert [hours for hours, *_ in written(db)] == ["crypto"]
        before = versions(db)
        assert machine.tell("sync", "queue").code == 0
        assert versions(db) == before
        assert machine.tell("db", "init").code == 0
        assert versions(db) != before, "with what a newer version knows of holidays"


def test_other_hours_count_from_the_next_run_on_even_if_it_has_nothing_to_do(
    url: str, db: Connection, api: StandIn, tmp_path: Path
) -> None:
    with Machine(tmp_path, url, api) as machine:
        machine.file(ETHER)
        assert machine.tell("sync", "queue").code == 0
        machine.file(f'{ETHER}hours = "us"\n')
        assert "Nothing was due" in machine.tell("sync", "queue").out
    assert [hours for hours, *_ in written(db)] == ["us"]
