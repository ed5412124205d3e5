"""Larger bars are made of the five-minute bars as the field defines them, at any time."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from math import isclose
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import layout, theirs

from asset_sync.database import Connection, query, transaction
from asset_sync.provider.answers import Bar
from asset_sync.store import market
from asset_sync.store.bars_query import Every, Selection, bars_query
from asset_sync.store.market import Symbol

__all__ = ["layout", "theirs"]

FIVE_MINUTES = timedelta(minutes=5)
NEW_YORK = ZoneInfo("America/New_York")
SIZES = [every for every in Every if every is not Every.FIVE_MINUTES]


class Read(NamedTuple):
    """A row of the query."""

    symbol: str
    ts: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    vwap: float | None
    trades: int | None
    bars: int
    expected: int | None


def read(db: Connection, selection: Selection) -> list[Read]:
    return [Read(*row) for row in query(db, bars_query(db, selection))]


def save(db: Connection, *bars: Bar, symbol: str = "EURUSD") -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [Symbol(symbol, symbol, "forex")])
        market.save_bars(cursor, symbol, bars)


def at(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def bar(
    start: datetime | str,
    close: float = 1.0,
    *,
    volume: float | None = 10.0,
    vwap: float | None = 1.0,
    trades: int | None = 5,
) -> Bar:
    start = at(start) if isinstance(start, str) else start
    volume_sent: float = volume  # type: ignore[assignment]  # a table may have null
    return Bar(int(start.timestamp() * 1000), 1.0, 2.0, 0.5, close, volume_sent, vwap, trades)


# --- the same in Python --------------------------------------------------------------------------


def start_of(every: Every, ts: datetime) -> datetime:
    """Return the start of the larger bar of a moment."""
    if every is Every.NEW_YORK_DAY:
        day = ts.astimezone(NEW_YORK)
        while day.hour != 17 or day.minute:  # back through the wall time
            day = (day.astimezone(UTC) - FIVE_MINUTES).astimezone(NEW_YORK)
        return day.astimezone(UTC)
    hours = {Every.QUARTER: 0.25, Every.HOUR: 1, Every.FOUR_HOURS: 4, Every.DAY: 24}[every]
    midnight = ts.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (ts - midnight) // timedelta(hours=hours) * timedelta(hours=hours)


def larger(every: Every, bars: Sequence[Bar]) -> Iterator[Read]:
    """Give the larger bars of one asset."""

    def start(bar: Bar) -> datetime:
        return start_of(every, datetime.fromtimestamp(bar.start_ms / 1000, UTC))

    for ts, group in groupby(sorted(bars), start):
        parts = list(group)
        weighted = [one for one in parts if one.vwap is not None and (one.volume or 0) > 0]
        weight = sum(one.volume for one in weighted)
        mean = sum(one.volume * (one.vwap or 0) for one in weighted)
        volumes = [one.volume for one in parts if one.volume is not None]
        trades = [one.trades for one in parts if one.trades is not None]
        yield Read(
            "EURUSD",
            ts,
            parts[0].open,
            max(one.high for one in parts),
            min(one.low for one in parts),
            parts[-1].close,
            sum(volumes) if volumes else None,
            mean / weight if weighted else None,
            sum(trades) if trades else None,
            len(parts),
            None,
        )


def same(one: Read, other: Read) -> bool:
    """Whether two bars are equal, except for the order in which floats were added."""
    return one._replace(volume=None, vwap=None) == other._replace(volume=None, vwap=None) and all(
        mine == theirs
        if mine is None or theirs is None
        else isclose(mine, theirs, rel_tol=1e-12, abs_tol=1e-300)
        for mine, theirs in ((one.volume, other.volume), (one.vwap, other.vwap))
    )


prices = st.floats(1e-6, 1e6)
amounts = st.none() | st.just(0.0) | st.floats(1e-3, 1e9)
# Across the change of the clock in New York on 8 March 2026.
starts = st.integers(0, 4 * 288).map(lambda number: at("2026-03-06") + number * FIVE_MINUTES)


def one_bar(start: datetime) -> st.SearchStrategy[Bar]:
    return st.builds(
        Bar,
        st.just(int(start.timestamp() * 1000)),
        *(prices, prices, prices, prices),
        amounts,  # another program may have stored null
        st.none() | prices,
        st.none() | st.integers(0, 10**6),
    )


@st.composite
def many_bars(draw: st.DrawFn) -> list[Bar]:
    chosen = draw(st.lists(starts, unique=True, max_size=40))
    return draw(st.tuples(*map(one_bar, chosen)).map(list))


@pytest.mark.parametrize("every", SIZES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(bars=many_bars())
def test_larger_bars_are_those_that_python_makes(
    db: Connection, every: Every, bars: list[Bar]
) -> None:
    query(db, "delete from market_data.ohlcv_5m")
    save(db, *bars)

    made, wanted = read(db, Selection(["EURUSD"], every=every)), list(larger(every, bars))

    assert len(made) == len(wanted)
    assert all(map(same, made, wanted)), (made, wanted)
