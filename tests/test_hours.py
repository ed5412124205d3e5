"""The promises of `asset_sync.hours`: when bars are expected, in UTC.

Random cases come from seeds, so that a failure happens again.
"""

import csv
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from importlib.resources import files
from itertools import pairwise
from time import process_time
from zoneinfo import ZoneInfo

import pytest

from asset_sync import hours
from asset_sync.hours import BAR_LENGTH, CRYPTO, FX, METALS, NAMED, US, Hours
from asset_sync.spans import Span, intersection, union

DAY = timedelta(days=1)
NOTHING = timedelta()
SEEDS = range(3)

EVERY_KIND = {
    **NAMED,
    "berlin": Hours("Mon-Fri 08:00-22:00 Europe/Berlin"),
    "nights": Hours("Mon-Thu 22:00-06:00 Asia/Tokyo", "Sat 10:00-11:35"),
    "overlapping": Hours("Mon-Fri 08:00-12:00", "Tue 11:00 - Wed 13:00", "Fri-Mon 03:00-09:00"),
    "two zones with a gap once a year": Hours(
        "Mon-Sun 08:00-16:00 Europe/Berlin", "Mon-Sun 10:00-02:00"
    ),
    "always": Hours("Mon 00:00 - Sun 24:00"),
    "skipped by the clock": Hours("Sun 02:00-03:00", "Sun 02:30-03:30"),
    "half-hour zone": Hours("Sun-Thu 09:15-15:30 Asia/Kolkata"),
}
each = pytest.mark.parametrize("kind", EVERY_KIND.values(), ids=EVERY_KIND)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def spans_of(kind: Hours, start: str, end: str) -> list[str]:
    """Return each span as `05-01 21:00 - 05-02 21:00`."""
    return [
        f"{since:%m-%d %H:%M} - {until:%m-%d %H:%M}"
        for since, until in kind.spans(utc(start), utc(end))
    ]


def moments(seed: int, number: int = 8) -> Iterator[datetime]:
    """Give moments of the years 2019 to 2027, many of them on the edge of a span."""
    chance = random.Random(seed)
    for _ in range(number):
        moment = utc("2019-01-01") + chance.randrange(9 * 365 * 288) * BAR_LENGTH
        yield moment + chance.choice([NOTHING, NOTHING, timedelta(seconds=1), -datetime.resolution])


# --- Forex ---------------------------------------------------------------------------------------


def test_forex_is_open_from_sunday_to_friday_at_five_in_new_york() -> None:
    assert spans_of(FX, "2026-07-11", "2026-07-20") == [
        "07-12 21:00 - 07-17 21:00",
        "07-19 21:00 - 07-20 00:00",
    ]
    assert not FX.is_open(utc("2026-07-12 20:59:59"))
    assert FX.is_open(utc("2026-07-12 21:00"))
    assert FX.is_open(utc("2026-07-17 20:55"))
    assert not FX.is_open(utc("2026-07-17 21:00"))


def test_in_march_the_first_week_of_summer_time_opens_an_hour_earlier_in_utc() -> None:
    assert spans_of(FX, "2026-02-28", "2026-03-15") == [
        "03-01 22:00 - 03-06 22:00",
        "03-08 21:00 - 03-13 21:00",
    ]


def test_in_november_the_first_week_of_winter_time_opens_an_hour_later_in_utc() -> None:
    assert spans_of(FX, "2026-10-24", "2026-11-07") == [
        "10-25 21:00 - 10-30 21:00",
        "11-01 22:00 - 11-06 22:00",
    ]


def test_a_week_has_as_many_bars_in_summer_as_in_winter() -> None:
    for sunday in ("2026-01-11", "2026-03-01", "2026-03-08", "2026-10-25", "2026-11-01"):
        assert FX.expected_bars(utc(sunday), utc(sunday) + 7 * DAY) == 5 * 288


@pytest.mark.parametrize(
    ("start", "end", "open_spans"),
    [
        # Wednesday the 25th: the forex day ends at 17:00 in New York.
        ("2024-12-23", "2024-12-27", ["12-23 00:00 - 12-24 22:00", "12-25 22:00 - 12-27 00:00"]),
        ("2024-12-30", "2025-01-03", ["12-30 00:00 - 12-31 22:00", "01-01 22:00 - 01-03 00:00"]),
        # Monday the 25th: the week begins a day later.
        ("2023-12-22", "2023-12-27", ["12-22 00:00 - 12-22 22:00", "12-25 22:00 - 12-27 00:00"]),
        # Friday the 25th: the week ends a day earlier.
        ("2026-12-24", "2026-12-28", ["12-24 00:00 - 12-24 22:00", "12-27 22:00 - 12-28 00:00"]),
        # Saturday and Sunday: an ordinary weekend.
        ("2021-12-24", "2021-12-27", ["12-24 00:00 - 12-24 22:00", "12-26 22:00 - 12-27 00:00"]),
        ("2022-12-23", "2022-12-26", ["12-23 00:00 - 12-23 22:00", "12-25 22:00 - 12-26 00:00"]),
        ("2022-12-30", "2023-01-02", ["12-30 00:00 - 12-30 22:00", "01-01 22:00 - 01-02 00:00"]),
    ],
)
def test_forex_is_closed_for_the_day_that_ends_on_christmas_or_new_year(
    start: str, end: str, open_spans: list[str]
) -> None:
    assert spans_of(FX, start, end) == open_spans


def recorded(file: str) -> list[datetime]:
    text = (files("asset_sync.demo") / "bars" / file).read_text()
    return [datetime.fromisoformat(row["time_utc"]) for row in csv.DictReader(text.splitlines())]


def test_the_recorded_bars_of_the_euro_are_exactly_the_expected_ones() -> None:
    bars = recorded("EURUSD_5m_2014-05.csv")
    start, end = utc("2014-05-01"), utc("2014-05-16")

    assert len(bars) == FX.expected_bars(start, end) == 3168
    assert all(FX.is_open(bar) for bar in bars)
    slots = (start + number * BAR_LENGTH for number in range((end - start) // BAR_LENGTH))
    assert bars == [slot for slot in slots if FX.is_open(slot)]


# --- Metals, crypto, stocks ----------------------------------------------------------------------


def test_metals_have_a_break_of_an_hour_each_day() -> None:
    assert spans_of(METALS, "2026-07-11", "2026-07-19") == [
        "07-12 22:00 - 07-13 21:00",
        "07-13 22:00 - 07-14 21:00",
        "07-14 22:00 - 07-15 21:00",
        "07-15 22:00 - 07-16 21:00",
        "07-16 22:00 - 07-17 21:00",
    ]


def test_metals_are_closed_with_forex_on_christmas_and_open_after_their_break() -> None:
    assert spans_of(METALS, "2024-12-24 12:00", "2024-12-26 12:00") == [
        "12-24 12:00 - 12-24 22:00",
        "12-25 23:00 - 12-26 12:00",
    ]


def test_recorded_gold_is_within_the_hours_but_for_the_quarter_of_an_hour_of_2014() -> None:
    """In 2014 the break began at 17:15; today it begins at 17:00."""
    bars = set(recorded("XAUUSD_5m_2014-05.csv"))
    expected = {
        since + number * BAR_LENGTH
        for since, until in METALS.spans(utc("2014-05-01"), utc("2014-05-16"))
        for number in range((until - since) // BAR_LENGTH)
    }

    assert expected < bars
    assert {f"{bar:%H:%M}" for bar in bars - expected} == {"21:00", "21:05", "21:10"}


def test_crypto_never_closes() -> None:
    start, end = utc("2024-02-28 00:03"), utc("2026-03-01")

    assert CRYPTO.spans(start, end) == [(start, end)]
    assert CRYPTO.next_open(start) == start
    assert CRYPTO.last_close(end) is None
    assert EVERY_KIND["always"].last_close(end) is None
    assert CRYPTO.back(end, 3 * DAY) == end - 3 * DAY


# As the New York Stock Exchange lists them. It was also closed on 9 January 2025, for mourning.
HOLIDAYS = {
    2024: "01-01 01-15 02-19 03-29 05-27 06-19 07-04 09-02 11-28 12-25",
    2025: "01-01 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25",
    2026: "01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 12-25",
}
SHORT_DAYS = {
    2024: "07-03 11-29 12-24",
    2025: "07-03 11-28 12-24",
    2026: "11-27 12-24",
}


@pytest.mark.parametrize("year", HOLIDAYS)
def test_stocks_trade_on_each_weekday_but_holidays_and_close_early_on_short_days(
    year: int,
) -> None:
    new_york = ZoneInfo("America/New_York")
    found: dict[str, list[str]] = {"closed": [], "13:00": [], "16:00": []}
    day = date(year, 1, 1)
    while day.year == year:
        midnight = datetime(day.year, day.month, day.day, tzinfo=new_york)
        opened = [
            [moment.astimezone(new_york).strftime("%H:%M") for moment in span]
            for span in US.spans(midnight, midnight + DAY)
        ]
        if day.weekday() < 5:
            assert opened in ([], [["09:30", "13:00"]], [["09:30", "16:00"]])
            found[opened[0][1] if opened else "closed"].append(f"{day:%m-%d}")
        else:
            assert not opened
        day += DAY

    assert found["closed"] == HOLIDAYS[year].split()
    assert found["13:00"] == SHORT_DAYS[year].split()


def test_a_holiday_on_a_weekend_is_kept_on_friday_or_monday() -> None:
    assert {date(2021, 12, 24), date(2021, 7, 5)} <= set(hours.us_holidays(2021))
    assert {date(2022, 12, 26), date(2022, 6, 20)} <= set(hours.us_holidays(2022))
    assert date(2023, 1, 2) in hours.us_holidays(2023)


def test_the_year_does_not_end_early_if_new_year_is_a_saturday() -> None:
    assert US.is_open(utc("2021-12-31 20:55"))
    assert date(2022, 1, 1) not in hours.us_holidays(2022)


def test_juneteenth_is_a_holiday_from_2022_on() -> None:
    assert US.is_open(utc("2020-06-19 15:00"))
    assert US.is_open(utc("2021-06-18 15:00"))
    assert not US.is_open(utc("2023-06-19 15:00"))


# --- Hours of one's own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "open_spans"),
    [
        (
            ["Sat-Sun 08:00-22:00 Europe/Berlin"],
            ["07-11 06:00 - 07-11 20:00", "07-12 06:00 - 07-12 20:00"],
        ),
        (["Sat 18:00 - Tue 17:00"], ["07-11 22:00 - 07-14 21:00"]),
        (["  sat 18:00-TUE 17:00   UTC "], ["07-11 18:00 - 07-14 17:00"]),
        (["Fri - Mon 22:00 - 06:00 UTC"], [
            "07-11 00:00 - 07-11 06:00",
            "07-11 22:00 - 07-12 06:00",
            "07-12 22:00 - 07-13 06:00",
            "07-13 22:00 - 07-14 06:00",
        ]),
        (["Mon 8:00-12:00 UTC", "Mon 11:00-14:00 UTC"], ["07-13 08:00 - 07-13 14:00"]),
        (["Mon 8:00-12:00 UTC", "Mon 12:00-14:00 UTC"], ["07-13 08:00 - 07-13 14:00"]),
        (["Mon 8:00-12:00 UTC", "Mon 08:00-14:00 Asia/Tokyo"], [
            "07-12 23:00 - 07-13 05:00",
            "07-13 08:00 - 07-13 12:00",
        ]),
        (["Mon-Sun 00:00-24:00"], ["07-11 00:00 - 07-16 00:00"]),
        (["Sun 12:00 - Sun 11:00 UTC"], ["07-11 00:00 - 07-12 11:00", "07-12 12:00 - 07-16 00:00"]),
    ],
)  # fmt: skip
def test_lines_say_when_it_is_open_and_those_that_overlap_or_adjoin_become_one(
    lines: list[str], open_spans: list[str]
) -> None:
    """From Saturday to Thursday."""
    for line in lines:
        hours.check(line)
    assert spans_of(Hours(*lines), "2026-07-11", "2026-07-16") == open_spans


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("", "must be days and times"),
        ("fx", "must be days and times"),
        ("Monday 08:00-12:00", "must be days and times"),
        ("Mon-Fri", "must be days and times"),
        ("08:00-12:00", "must be days and times"),
        ("Mon 8-12", "must be days and times"),
        ("Mon 08:00-12:00 Europe/Berlin please", "must be days and times"),
        ("Mon 08:00-25:00", "has 25:00; times are 00:00 to 23:55"),
        ("Mon 08:60-12:00", "has 08:60; times are"),
        ("Mon 09:32-12:00", "has 09:32; times are 00:00 to 23:55 by steps of five minutes"),
        ("Mon 24:00-12:00", "has 24:00; times are"),
        ("Mon 24:00 - Tue 12:00", "has 24:00; times are"),
        ("Mon 24:05-12:00", "has 24:05; times are"),
        ("Mon 08:00-08:00", "a whole day is 00:00-24:00"),
        ("Sun 17:00 - Sun 17:00", "always is Mon-Sun 00:00-24:00"),
        (
            "Mon 08:00-12:00 Mars/Base",
            "cannot be used: Mars/Base is no time zone that this machine knows",
        ),
        ("Mon 08:00-12:00 ../../etc/passwd", "../../etc/passwd is no time zone"),
        ("Mon 08:00-12:00 America", "America is no time zone"),
    ],
)
def test_a_wrong_line_is_answered_with_what_is_right(line: str, wrong: str) -> None:
    with pytest.raises(hours.HoursError) as caught:
        hours.check(line)
    assert wrong in str(caught.value)


def test_where_the_machine_has_no_time_zones_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(name: str) -> ZoneInfo:
        raise KeyError(name)

    monkeypatch.setattr("zoneinfo.ZoneInfo", nowhere)
    hours._zone.cache_clear()

    with pytest.raises(hours.UnknownZoneError, match="pip install tzdata"):
        FX.is_open(utc("2026-07-15"))
    with pytest.raises(hours.HoursError, match="pip install tzdata"):
        hours.check("Mon 08:00-12:00 Europe/Paris")
    assert CRYPTO.is_open(utc("2026-07-15"))


def test_a_machine_without_time_zones_uses_those_that_are_installed_with_the_program() -> None:
    program = (
        "import zoneinfo; from datetime import UTC, datetime; from asset_sync.hours import FX;"
        "assert not zoneinfo.TZPATH; print(FX.next_open(datetime(2026, 7, 18, tzinfo=UTC)))"
    )
    environ = {"PYTHONTZPATH": "", "PYTHONPATH": ":".join(sys.path)}
    asked = [sys.executable, "-c", program]
    answer = subprocess.run(asked, env=environ, capture_output=True, text=True, check=True)
    assert answer.stdout == "2026-07-19 21:00:00+00:00\n"


# --- Every kind, at random -----------------------------------------------------------------------


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_open_is_in_a_span_and_openings_and_closings_are_their_ends(
    kind: Hours, seed: int
) -> None:
    for moment in moments(seed):
        spans = kind.spans(moment - 400 * DAY, moment + 30 * DAY)
        is_open = any(since <= moment < until for since, until in spans)

        assert kind.is_open(moment) == is_open
        openings = [since for since, _ in spans if since > moment]
        assert kind.next_open(moment) == (moment if is_open else openings[0])
        closings = [until for _, until in spans if until <= moment]
        assert kind.last_close(moment) == (closings[-1] if closings else None)


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_two_parts_make_the_whole(kind: Hours, seed: int) -> None:
    first, second, third = sorted(moments(seed, 3))
    whole = kind.spans(first, third)
    one, two = kind.spans(first, second), kind.spans(second, third)

    assert union([*one, *two]) == whole
    assert kind.expected_bars(first, third) == kind.expected_bars(
        first, second
    ) + kind.expected_bars(second, third)
    assert kind.open_time(first, third) == kind.open_time(first, second) + kind.open_time(
        second, third
    )


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_spans_are_ascending_apart_within_bounds_and_in_utc(kind: Hours, seed: int) -> None:
    start, end = sorted(moments(seed, 2))
    spans = kind.spans(start, end)

    edges = [moment for span in spans for moment in span]
    assert all(one < other for one, other in pairwise(edges))
    assert all(start <= moment <= end and moment.tzinfo is UTC for moment in edges)


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_back_leads_to_where_so_much_time_without_long_closures_begins(
    kind: Hours, seed: int
) -> None:
    chance = random.Random(seed)
    for end in moments(seed, 10):
        open_time = timedelta(seconds=chance.randrange(3_000_000))
        start = kind.back(end, open_time)

        around = hours.without_breaks(kind.spans(start - DAY, end))
        within = intersection(around, [Span(start, end)])
        assert sum((span.length for span in within), NOTHING) == open_time
        assert within[0].start == start if within else not open_time
        assert kind.back(end, NOTHING) == end


def test_the_daily_break_of_metals_counts_as_open_for_the_reach_of_a_call() -> None:
    friday = datetime(2026, 11, 20, 20, tzinfo=UTC)
    assert METALS.back(friday, 3 * DAY) == FX.back(friday, 3 * DAY) == friday - 3 * DAY


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_the_expected_bars_are_the_five_minute_marks_that_are_open(kind: Hours, seed: int) -> None:
    for start in moments(seed, 2):
        end = start + timedelta(days=2, seconds=random.Random(seed).randrange(86_400))
        first = start + (utc("2000-01-01") - start) % BAR_LENGTH
        marks = range(-((first - end) // BAR_LENGTH))

        assert kind.expected_bars(start, end) == sum(
            kind.is_open(first + mark * BAR_LENGTH) for mark in marks
        )


@each
def test_any_time_zone_may_ask(kind: Hours) -> None:
    tokyo, west = ZoneInfo("Asia/Tokyo"), timezone(timedelta(hours=-9, minutes=-30))
    for moment in moments(0):
        assert kind.is_open(moment.astimezone(tokyo)) == kind.is_open(moment)
        assert kind.next_open(moment.astimezone(west)) == kind.next_open(moment)
        assert kind.spans(
            moment.astimezone(tokyo), (moment + 9 * DAY).astimezone(west)
        ) == kind.spans(moment, moment + 9 * DAY)


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(TypeError):
        FX.is_open(utc("2026-07-15").replace(tzinfo=None))


def test_nothing_is_open_within_nothing() -> None:
    moment = utc("2026-07-15")

    assert FX.spans(moment, moment) == FX.spans(moment, moment - DAY) == []
    assert FX.expected_bars(moment, moment) == 0


# --- Speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FX, METALS, US], ids=["fx", "metals", "us"])
def test_a_question_about_a_moment_takes_a_small_part_of_two_years(kind: Hours) -> None:
    """It takes 11 to 35 microseconds; the spans of two years take 0.6 to 2.8 ms."""
    end = utc("2026-07-18 12:03")

    def two_years() -> list[Span]:
        return kind.spans(end - 730 * DAY, end)

    def quickest(ask: Callable[[], object]) -> float:
        def once() -> float:
            began = process_time()
            ask()
            return process_time() - began

        return min(once() for _ in range(20))

    whole = quickest(two_years)
    assert quickest(lambda: kind.is_open(end)) < whole / 5
    assert quickest(lambda: kind.next_open(end)) < whole / 5
