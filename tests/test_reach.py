"""The window of a call: each call asks for all that it can, and a catch-up ends."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asset_sync.hours import BAR_LENGTH
from asset_sync.model import AssetType
from asset_sync.provider.polygon.markets import MARKETS
from asset_sync.sync.window import OVERLAP, Window, next_window

NOW = datetime(2025, 6, 12, 14, 37, 21, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TWO_YEARS = 730


def ask(
    newest: datetime | None,
    *,
    now: datetime = NOW,
    asset_type: AssetType = AssetType.FOREX,
    history_days: int = TWO_YEARS,
    backfilled_to: datetime | None = None,
    today_denied: bool = False,
    newest_first: bool = False,
) -> Window | None:
    return next_window(
        now,
        newest,
        asset_type=asset_type,
        history_days=history_days,
        backfilled_to=backfilled_to,
        today_denied=today_denied,
        newest_first=newest_first,
    )


def some(answer: Window | None) -> Window:
    assert answer is not None
    return answer


def test_an_update_asks_from_a_few_bars_before_the_newest_one_to_now() -> None:
    newest = datetime(2025, 6, 12, 14, 25, tzinfo=UTC)
    assert ask(newest) == Window(newest - OVERLAP, NOW, last=True)


@pytest.mark.parametrize("asset_type", AssetType)
def test_the_first_sync_asks_as_far_back_as_one_call_reaches(asset_type: AssetType) -> None:
    span = some(ask(None, asset_type=asset_type))
    assert (span.end, span.last) == (NOW, True)
    assert timedelta(0) <= NOW - MARKETS[asset_type].window - span.start < BAR_LENGTH


def test_the_first_sync_asks_for_no_more_history_than_the_plan_has() -> None:
    span = some(ask(None, history_days=3))
    assert timedelta(0) <= NOW - timedelta(days=3) - span.start < BAR_LENGTH


def test_a_gap_is_asked_for_no_further_back_than_the_plans_history() -> None:
    span = some(ask(NOW - timedelta(days=900)))
    assert timedelta(0) <= NOW - timedelta(days=TWO_YEARS) - span.start < BAR_LENGTH
    assert not span.last


def test_a_gap_longer_than_one_call_is_split_and_the_next_call_continues() -> None:
    newest = datetime(2025, 1, 1, tzinfo=UTC)
    first = some(ask(newest))
    assert first == Window(
        newest - OVERLAP, newest - OVERLAP + MARKETS[AssetType.FOREX].window, last=False
    )
    second = some(ask(first.end))
    assert second.start < first.end < second.end


@pytest.mark.parametrize("asset_type", AssetType)
def test_newest_first_the_call_after_a_long_gap_asks_as_far_back_as_one_call_reaches(
    asset_type: AssetType,
) -> None:
    span = some(ask(datetime(2025, 1, 1, tzinfo=UTC), asset_type=asset_type, newest_first=True))
    assert span == some(ask(None, asset_type=asset_type))
    short = NOW - timedelta(days=1)
    assert ask(short, newest_first=True) == ask(short)


def test_a_catch_up_that_found_nothing_continues_from_the_end_of_the_asked_range() -> None:
    newest = datetime(2025, 1, 1, tzinfo=UTC)
    first = some(ask(newest))
    assert some(ask(newest, backfilled_to=first.end)).start == first.end


def test_the_end_of_the_asked_range_never_hides_newer_bars() -> None:
    newest = datetime(2025, 6, 12, 14, 25, tzinfo=UTC)
    backfilled_to = datetime(2025, 6, 1, tzinfo=UTC)
    assert some(ask(newest, backfilled_to=backfilled_to)).start == newest - OVERLAP


def test_without_today_the_range_ends_with_yesterday() -> None:
    span = some(ask(datetime(2025, 6, 11, 20, 0, tzinfo=UTC), today_denied=True))
    assert span.end == datetime(2025, 6, 11, 23, 59, 59, 999000, tzinfo=UTC)
    assert span.last


@pytest.mark.parametrize("minute", [50, 55])
def test_without_today_there_is_nothing_to_ask_for_after_yesterdays_last_bar(minute: int) -> None:
    newest = datetime(2025, 6, 11, 23, minute, tzinfo=UTC)
    assert (ask(newest, today_denied=True) is None) == (minute == 55)


def test_yesterday_ends_at_midnight_utc_in_any_time_zone_of_the_session() -> None:
    tokyo = timezone(timedelta(hours=9))
    now = datetime(2025, 6, 13, 8, 0, tzinfo=tokyo)  # 12 June, 23:00 UTC
    span = some(ask(datetime(2025, 6, 10, tzinfo=UTC), now=now, today_denied=True))
    assert span.end == datetime(2025, 6, 11, 23, 59, 59, 999000, tzinfo=UTC)


def test_a_range_never_ends_before_it_starts() -> None:
    span = some(ask(None, history_days=0, today_denied=True))
    assert span.start <= span.end
    ahead = some(ask(NOW + timedelta(hours=3)))
    assert ahead.start <= ahead.end == NOW


moments = st.datetimes(
    datetime(2023, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    datetime(2025, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@settings(database=None, deadline=None)
@given(
    now=moments,
    newest=st.none() | moments,
    asset_type=st.sampled_from(AssetType),
    history_days=st.integers(0, 4000),
    backfilled_to=st.none() | moments,
    today_denied=st.booleans(),
)
def test_every_range_starts_at_a_bar_and_is_no_longer_than_one_call_reaches(
    now: datetime,
    newest: datetime | None,
    asset_type: AssetType,
    history_days: int,
    backfilled_to: datetime | None,
    today_denied: bool,  # noqa: FBT001  # hypothesis passes by name
) -> None:
    span = ask(
        newest,
        now=now,
        asset_type=asset_type,
        history_days=history_days,
        backfilled_to=backfilled_to,
        today_denied=today_denied,
    )
    if span is None:
        return
    assert (span.start - EPOCH) % BAR_LENGTH == timedelta(0)
    assert span.start <= span.end <= now
    assert span.end - span.start <= MARKETS[asset_type].window + BAR_LENGTH


@settings(database=None, deadline=None)
@given(
    ages=st.sets(st.integers(0, 300 * 288), max_size=60),
    newest_age=st.integers(0, 300 * 288),
    asset_type=st.sampled_from(AssetType),
    most_bars=st.integers(8, 60),
)
def test_a_catch_up_ends_after_it_brought_every_bar(
    ages: set[int], newest_age: int, asset_type: AssetType, most_bars: int
) -> None:
    """Catch up as sync does, with bars scattered over 300 days and answers of a limited size."""
    last_bar = NOW - (NOW - EPOCH) % BAR_LENGTH
    bars = sorted(last_bar - age * BAR_LENGTH for age in ages)
    newest: datetime = last_bar - newest_age * BAR_LENGTH
    stored = {newest}
    missing = {bar for bar in bars if bar >= newest}
    backfilled_to = None
    for _ in range(200):
        span = some(ask(newest, asset_type=asset_type, backfilled_to=backfilled_to))
        found = [bar for bar in bars if span.start <= bar <= span.end]
        answer = found[:most_bars]
        stored.update(answer)
        advanced = bool(answer) and answer[-1] > newest
        newest = max(stored)
        if span.last and (answer == found or not advanced):
            break
        backfilled_to = None if advanced else span.end
    else:
        pytest.fail("it never ends")
    assert missing <= stored
