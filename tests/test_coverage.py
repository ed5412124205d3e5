"""What an answer settles, and which ranges of the past are still to be asked."""

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asset_sync.hours import BAR_LENGTH, CRYPTO, FX, METALS, US, Hours
from asset_sync.model import AssetType
from asset_sync.provider.answers import Bar
from asset_sync.spans import Span, difference, intersection, length
from asset_sync.store.ledger import UNKNOWN_LAG, Lag, Ledger
from asset_sync.sync import coverage
from asset_sync.sync.coverage import horizon, reread_from
from asset_sync.sync.window import OVERLAP, next_window

NOW = datetime(2026, 11, 18, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def bar(start: datetime) -> Bar:
    return Bar(int(start.timestamp() * 1000), 1.0, 1.0, 1.0, 1.0, 1.0, None, None)


def hours_from_now(*pairs: tuple[float, float]) -> list[Span]:
    return [Span(NOW + start * HOUR, NOW + end * HOUR) for start, end in pairs]


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20)).map(
        lambda pair: Span(NOW + pair[0] * HOUR, NOW + (pair[0] + pair[1]) * HOUR)
    ),
    max_size=12,
)


def test_a_range_of_the_past_reaches_the_newer_one_also_within_a_daily_break() -> None:
    days = METALS.spans(NOW - 2 * DAY, NOW)
    newer = Span(days[0].end + HOUR / 2, NOW)
    assert newer.start < days[1].start

    older = coverage.next_unasked(METALS, Ledger(tail=newer), NOW - 10 * DAY)

    assert older is not None
    assert older.end == newer.start


# --- the ledger ---------------------------------------------------------------------------------


@given(spans)
def test_what_was_settled_is_the_union_of_all_answers(answers: list[Span]) -> None:
    ledger = Ledger()
    for span in answers:
        ledger = ledger.with_settled(span)
    hours = {NOW + hour * HOUR for hour in range(90)}
    expected = {hour for hour in hours if any(a <= hour < b for a, b in answers)}
    assert {hour for hour in hours if any(a <= hour < b for a, b in ledger.settled)} == expected


@given(spans)
def test_the_tail_is_the_newest_settled_range_and_the_others_do_not_touch_it(
    answers: list[Span],
) -> None:
    ledger = Ledger()
    for span in answers:
        ledger = ledger.with_settled(span)
    if ledger.tail is not None:
        assert [*ledger.asked, ledger.tail] == ledger.settled


@given(spans, st.integers(-10, 80))
def test_gaps_and_settled_ranges_together_are_all_up_to_the_settled_end(
    answers: list[Span], since: int
) -> None:
    ledger = Ledger()
    for span in answers:
        ledger = ledger.with_settled(span)
    start, gaps = NOW + since * HOUR, ledger.gaps(NOW + since * HOUR)
    assert intersection(gaps, ledger.settled) == []
    if ledger.tail is not None and start < ledger.tail.end:
        whole = [Span(start, ledger.tail.end)]
        assert length(gaps) + length(intersection(whole, ledger.settled)) == length(whole)


def test_nothing_is_a_gap_before_anything_was_settled() -> None:
    assert Ledger().gaps(NOW) == []


# --- what an answer settles ---------------------------------------------------------------------


def settled(
    asked: Span, at: datetime, *starts: datetime, lag: Lag = UNKNOWN_LAG, cut: bool = False
) -> Span:
    return coverage.settled(asked, at, [bar(start) for start in starts], lag, cut=cut)


def test_an_answer_settles_all_but_half_an_hour_before_its_newest_bar() -> None:
    end = settled(Span(NOW - DAY, NOW), NOW, NOW - 2 * HOUR).end
    assert end == NOW - 2 * HOUR + BAR_LENGTH - OVERLAP


def test_what_is_older_than_the_horizon_is_settled_without_any_bar() -> None:
    assert settled(Span(NOW - 5 * DAY, NOW), NOW).end == NOW - 2 * DAY
    assert settled(Span(NOW - DAY, NOW), NOW).length == timedelta()


def test_an_answer_of_the_past_settles_its_whole_range() -> None:
    past = Span(NOW - 50 * DAY, NOW - 20 * DAY)
    assert settled(past, NOW) == past


def test_a_cut_answer_settles_up_to_the_start_of_its_last_bar() -> None:
    past, last = Span(NOW - 50 * DAY, NOW - 20 * DAY), NOW - 30 * DAY
    assert settled(past, NOW, last - HOUR, last, cut=True) == Span(past.start, last)
    assert settled(past, NOW, cut=True).length == timedelta()


def test_settled_ranges_end_at_the_start_of_a_bar() -> None:
    at = NOW + timedelta(minutes=3, seconds=7)
    assert settled(Span(NOW - 5 * DAY, at), at).end == NOW - 2 * DAY


@pytest.mark.parametrize(
    ("measured", "p99", "expected"),
    [
        (19, 60, 48 * HOUR),
        (20, 60, HOUR),
        (20, 2 * 3600, 4 * HOUR),
        (20, 90 * 3600, 48 * HOUR),
    ],
)
def test_the_horizon_is_twice_the_measured_lag_between_one_hour_and_two_days(
    measured: int, p99: float, expected: timedelta
) -> None:
    assert horizon(Lag(measured, 1, 1, p99)) == expected


# --- what is still to be asked ------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "first_days", "most"), [(CRYPTO, 34, 22), (FX, 40, 15)])
@pytest.mark.parametrize("now", [NOW, datetime(2026, 3, 29, 3, 20, tzinfo=UTC)])
def test_two_years_cost_so_many_calls(
    hours: Hours, first_days: int, most: int, now: datetime
) -> None:
    ledger = Ledger().with_settled(Span(now - first_days * DAY, now))
    unasked = ledger.gaps(now - 720 * DAY)
    assert 1 + coverage.calls_for(lambda span: hours.open_time(*span), unasked) <= most


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([CRYPTO, FX, METALS, US]), st.integers(10, 400), st.integers(0, 10_000))
def test_the_calls_ask_for_every_open_minute_once_and_none_reaches_the_limit(
    hours: Hours, days: int, minutes: int
) -> None:
    now = NOW - timedelta(minutes=5 * minutes)
    ledger, since = Ledger().with_settled(Span(now - DAY, now)), now - days * DAY
    while (span := coverage.next_unasked(hours, ledger, since)) is not None:
        assert hours.open_time(*span) < timedelta(minutes=coverage.BASE_BARS)
        assert intersection([span], ledger.settled) == []
        newest = coverage.unasked_until(hours, ledger, since)
        assert newest is not None
        assert newest <= span.end
        assert hours.expected_bars(newest, span.end) == 0
        ledger = ledger.with_settled(span)
    assert coverage.missing(hours, ledger, since, now) == []


def test_a_gap_in_closed_hours_is_never_asked() -> None:
    friday, sunday = datetime(2026, 11, 13, 22, tzinfo=UTC), datetime(2026, 11, 15, 22, tzinfo=UTC)
    ledger = Ledger().with_settled(Span(friday - 5 * DAY, friday)).with_settled(Span(sunday, NOW))
    assert coverage.next_unasked(FX, ledger, friday - 5 * DAY) is None
    assert coverage.next_unasked(CRYPTO, ledger, friday - 5 * DAY) == Span(friday, sunday)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # Monday: Friday and Thursday are the two open days before it
        (datetime(2026, 11, 16, 12, tzinfo=UTC), datetime(2026, 11, 11, 22, tzinfo=UTC)),
        (datetime(2026, 11, 18, 12, tzinfo=UTC), datetime(2026, 11, 15, 22, tzinfo=UTC)),
        # New York changed its clocks between: summer on Thursday, winter on Monday
        (datetime(2026, 11, 2, 12, tzinfo=UTC), datetime(2026, 10, 28, 21, tzinfo=UTC)),
    ],
)
def test_the_daily_reread_begins_two_open_days_earlier(now: datetime, expected: datetime) -> None:
    assert reread_from(FX, now) == expected


def test_over_christmas_the_reread_goes_back_further() -> None:
    now = datetime(2026, 12, 28, 12, tzinfo=UTC)  # Monday; Friday was Christmas
    assert reread_from(FX, now) == datetime(2026, 12, 22, 22, tzinfo=UTC)


# --- week by week -------------------------------------------------------------------------------


def weeks_of(hours: Hours, ledger: Ledger, around: Span, came: Callable[[Span], int]) -> list[date]:
    days = coverage.asked_days(hours, ledger, around)
    counts = {span: came(span) for day in days for span in day.asked}
    return [day for week in coverage.weeks(days, counts) for day in week.silent_days]


MONDAY = datetime(2026, 11, 9, tzinfo=UTC)


def test_a_week_counts_the_bars_that_were_expected_and_did_not_come() -> None:
    asked = Span(MONDAY, MONDAY + 7 * DAY)
    days = coverage.asked_days(CRYPTO, Ledger().with_settled(asked), Span(MONDAY, MONDAY + HOUR))
    [week] = coverage.weeks(days, {span: 200 for day in days for span in day.asked})
    assert (week.week, week.bars, week.empty_slots) == (MONDAY.date(), 1400, 7 * 88)


def test_a_day_without_bars_is_silent_once_all_of_it_was_asked() -> None:
    ledger = Ledger().with_settled(Span(MONDAY - 7 * DAY, MONDAY + 2 * DAY))
    around = Span(MONDAY, MONDAY + 2 * DAY)
    # Monday ends on Monday at 22:00, Tuesday on Tuesday; of Wednesday two hours were asked
    assert weeks_of(FX, ledger, around, lambda _: 0) == [date(2026, 11, 9), date(2026, 11, 10)]


def test_the_two_hours_of_sunday_do_not_make_a_monday_silent() -> None:
    ledger = Ledger().with_settled(Span(MONDAY - 7 * DAY, MONDAY + 7 * DAY))
    around = Span(MONDAY - 7 * DAY, MONDAY + 5 * DAY)
    assert weeks_of(FX, ledger, around, lambda span: span.length // (3 * HOUR)) == []


# --- a model of a provider ----------------------------------------------------------------------


def simulate(seed: int) -> tuple[int, timedelta]:
    """Ask a random provider for 21 days; return wrong claims and the longest unsettled time.

    A claim is wrong if a bar came later in a settled range and no call has asked for it since.
    """
    chaos = random.Random(seed)
    hours, kind = chaos.choice([(CRYPTO, AssetType.CRYPTO), (FX, AssetType.FOREX)])
    density = chaos.choice([1.0, 1.0, 0.3, 0.02])
    latest = chaos.choice([0, 300, 3600, 6 * 3600])
    end_of_day = chaos.random() < 0.2
    frequency = timedelta(seconds=chaos.choice([300, 1800, 7200]))
    begin = NOW - 25 * DAY
    outage = begin + chaos.uniform(4, 18) * DAY
    resumes = outage + chaos.uniform(0, 40) * HOUR
    holiday = (begin + chaos.randrange(3, 18) * DAY).date()
    shown: dict[datetime, datetime] = {}
    at = begin - 3 * DAY
    while at < begin + 21 * DAY:
        if hours.is_open(at) and chaos.random() < density and at.date() != holiday:
            shown[at] = at + BAR_LENGTH + timedelta(seconds=chaos.uniform(0, latest))
            if end_of_day:
                shown[at] = datetime.combine(at.date(), shown[at].time(), UTC) + 26 * HOUR
        at += BAR_LENGTH

    ledger, stored, now = Ledger(), set[datetime](), begin
    longest = timedelta()
    while now < begin + 21 * DAY:
        if not outage <= now < resumes:
            newest = max(stored, default=None)
            reread = ledger.reread_at is None or now - ledger.reread_at >= DAY
            window = next_window(
                now,
                newest,
                asset_type=kind,
                history_days=720,
                settled_until=ledger.tail.end if ledger.tail else None,
                reread_from=reread_from(hours, now) if reread else None,
            )
            assert window is not None
            came = sorted(s for s, d in shown.items() if d <= now and window.start <= s)
            asked = Span(window.start, window.end)
            closed = [bar(start) for start in came]
            range_ = coverage.settled(asked, now, closed, UNKNOWN_LAG, cut=False)
            ledger = ledger.with_settled(range_)._replace(asked_at=now)
            if newest is None or window.start <= reread_from(hours, now):
                ledger = ledger._replace(reread_at=now)
            stored.update(came)
            assert ledger.tail is not None
            longest = max(longest, now - ledger.tail.end)
        now += frequency
    until = now - 4 * DAY
    wrong = sum(start not in stored for start in shown if begin <= start < until)
    assert difference([Span(begin, until)], ledger.settled) == []
    return wrong, longest - 48 * HOUR - frequency


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_nothing_stays_unsettled_and_no_bar_is_missed_for_long(seed: int) -> None:
    wrong, beyond = simulate(seed)
    assert wrong == 0
    assert beyond <= timedelta()
