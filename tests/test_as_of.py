"""Bars as they were stored at an earlier moment, whatever the provider changed since."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_larger_bars import Read, read
from test_store import EURUSD, FIVE_MINUTES_MS, NOON_MS, bar, layout, save_bars, theirs

from asset_sync.database import Connection, query, transaction
from asset_sync.provider.answers import Bar
from asset_sync.settings import HistorySettings
from asset_sync.store import market, runs
from asset_sync.store.bars_query import AsOfError, Every, Selection, bars_query

__all__ = ["layout", "theirs"]


def now_of(db: Connection) -> datetime:
    [(now,)] = query(db, "select clock_timestamp()")
    assert isinstance(now, datetime)
    return now


def everything(db: Connection, as_of: datetime | None = None) -> list[list[Read]]:
    """Return what a reader sees of each kind."""
    until = datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(minutes=42)
    return [
        read(db, Selection(["GBPUSD", "EURUSD"], every=every, as_of=as_of))
        for every in (Every.FIVE_MINUTES, Every.QUARTER)
    ] + [read(db, Selection(["EURUSD"], until=until, as_of=as_of))]


# --- any history ---------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What one call brought, and what became of its transaction."""

    symbol: str
    bars: Sequence[Bar]
    committed: bool


# Few starts and few prices, so that late bars, repairs and equal bars are frequent.
one_bar = st.builds(
    bar,
    st.integers(0, 15),
    st.sampled_from([1.1, 1.2, 1.3]),
    vwap=st.sampled_from([None, 1.1]),
    trades=st.sampled_from([None, 3]),
)
answers = st.builds(
    Answer,
    st.sampled_from(["EURUSD", "EURUSD", "GBPUSD"]),
    st.lists(one_bar, min_size=1, max_size=8, unique_by=lambda one: one.start_ms),
    st.sampled_from([True, True, True, False]),
)


class KilledError(Exception):
    """The process dies before it commits."""


def store(db: Connection, answer: Answer) -> None:
    with suppress(KilledError), transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD._replace(symbol=answer.symbol)])
        market.save_bars(cursor, answer.symbol, answer.bars)
        if not answer.committed:
            raise KilledError


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(before=st.lists(answers, max_size=3), later=st.lists(answers, min_size=1, max_size=8))
def test_a_read_as_of_any_moment_returns_what_a_read_at_that_moment_returned(
    db: Connection, before: list[Answer], later: list[Answer]
) -> None:
    query(
        db,
        """
        delete from market_data.ohlcv_5m; delete from trading.symbols;
        delete from asset_sync.arrivals; delete from asset_sync.revisions
        """,
    )
    for answer in before:
        store(db, answer)
    # An upgrade, from which on it is known what changes.
    query(
        db,
        """
        delete from asset_sync.arrivals; delete from asset_sync.revisions;
        update asset_sync.limiter set changes_from = clock_timestamp()
        """,
    )
    seen = [(now_of(db), everything(db))]
    for answer in later:
        store(db, answer)
        seen.append((now_of(db), everything(db)))

    for moment, found in seen:
        assert everything(db, as_of=moment) == found


# --- cases ---------------------------------------------------------------------------------------


def closes(db: Connection, as_of: datetime | None = None) -> list[tuple[int, float]]:
    """Return each bar's number after noon and its close."""
    rows = read(db, Selection(["EURUSD"], as_of=as_of))
    return [
        (int((row.ts.timestamp() * 1000 - NOON_MS) // FIVE_MINUTES_MS), row.close) for row in rows
    ]


def test_a_late_bar_and_a_bar_that_was_revised_twice_are_as_they_were(theirs: Connection) -> None:
    moments = []
    for answer in (
        [bar(0, 1.1), bar(2, 1.1)],
        [bar(0, 1.2), bar(1, 1.2), bar(2, 1.1)],
        [bar(0, 1.3), bar(1, 1.2), bar(2, 1.1), bar(3, 1.3)],
    ):
        save_bars(theirs, answer)
        moments.append(now_of(theirs))

    assert [closes(theirs, moment) for moment in moments] == [
        [(0, 1.1), (2, 1.1)],
        [(0, 1.2), (1, 1.2), (2, 1.1)],
        [(0, 1.3), (1, 1.2), (2, 1.1), (3, 1.3)],
    ]


def test_a_null_that_became_a_number_is_null_as_it_was(db: Connection) -> None:
    save_bars(db, [bar(vwap=None, trades=None)])
    moment = now_of(db)
    save_bars(db, [bar()])

    [then] = read(db, Selection(["EURUSD"], as_of=moment))

    assert (then.vwap, then.trades) == (None, None)


def test_a_larger_bar_is_complete_if_it_was_over_at_that_moment(db: Connection) -> None:
    save_bars(db, [bar(number) for number in range(3)])

    def moments(ends: str) -> list[datetime]:
        query(
            db,
            """
            update asset_sync.limiter set changes_from = '2026-01-01';
            update asset_sync.arrivals set at = '2026-01-02'
            """,
        )
        selection = Selection(["EURUSD"], as_of=datetime.fromisoformat(ends), complete=True)
        return [row.ts for row in read(db, selection)]

    assert len(moments("2026-03-02T12:09:59+00:00")) == 1
    assert len(moments("2026-03-02T12:10:00+00:00")) == 2


# --- as far back as it is known -------------------------------------------------------------------


def test_moments_of_which_nothing_is_known_are_refused_with_the_first_that_is(
    db: Connection,
) -> None:
    query(db, "update asset_sync.limiter set changes_from = '2026-03-01 10:00:00.5Z'")

    with pytest.raises(AsOfError, match=r"at 2026-03-01 10:00:01 UTC or later, not at 2026-02-28"):
        bars_query(db, Selection(["EURUSD"], as_of=datetime(2026, 2, 28, tzinfo=UTC)))

    read(db, Selection(["EURUSD"], as_of=datetime(2026, 3, 1, 10, 0, 1, tzinfo=UTC)))
    tomorrow = now_of(db) + timedelta(days=1)
    with pytest.raises(AsOfError, match="is in the future: the database's clock says 2"):
        bars_query(db, Selection(["EURUSD"], as_of=tomorrow))


def test_where_nothing_is_kept_only_the_present_can_be_read(db: Connection) -> None:
    runs.prune(db, HistorySettings(keep_revisions_days=0))

    with pytest.raises(AsOfError, match="only be read as they are now"):
        bars_query(db, Selection(["EURUSD"], as_of=now_of(db)))


def test_what_was_pruned_cannot_be_asked_for_and_the_rest_is_as_it_was(db: Connection) -> None:
    for close in (1.1, 1.2, 1.3, 1.4):
        save_bars(db, [bar(0, close), bar(1, close)])
        query(
            db,
            """
            update asset_sync.revisions set at = at - interval '10 days';
            update asset_sync.arrivals set at = at - interval '10 days'
            """,
        )
    query(db, "update asset_sync.limiter set changes_from = '2000-01-01'")
    runs.prune(db, HistorySettings(keep_revisions_days=25))
    now = now_of(db)

    # Written 40, 30, 20 and 10 days ago.
    found = [closes(db, now - timedelta(days=days))[0][1] for days in (24, 15, 5)]

    assert found == [1.2, 1.3, 1.4]
    with pytest.raises(AsOfError):
        closes(db, now - timedelta(days=26))
