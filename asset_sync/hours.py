"""When assets trade: hours by rule, in the wall time of their market, with every answer in UTC.

The libraries for this import pandas, which takes 590 to 640 ms at every start. Importing this
module reads no time zone; the first question does, which takes 14 ms once.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import TypeAlias

from asset_sync.errors import AssetSyncError
from asset_sync.spans import Span, difference, intersection, union

BAR_LENGTH = timedelta(minutes=5)
"""Of every bar that is stored."""

_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)
_LONGEST_BREAK = timedelta(hours=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEW_YORK = "America/New_York"


class HoursError(Exception):
    """What is wrong with a line of hours and what would be right, as a part of a sentence."""


class UnknownZoneError(AssetSyncError):
    """A time zone that this machine does not know."""


def _never(_year: int) -> tuple[Span, ...]:
    return ()


class Hours:
    """When a market is open.

    Every moment asked about must be aware, in any time zone; every answer is in UTC. Daylight
    saving time moves the hours in UTC, since they are made from wall time.
    """

    __slots__ = ("_closed", "_lines")

    def __init__(self, *lines: str, closed: Callable[[int], tuple[Span, ...]] = _never) -> None:
        """Hold the lines, whose form `check` explains.

        `closed` returns when the market is closed in a year beside that, in wall time of New York.
        """
        self._lines = lines
        self._closed = closed

    def is_open(self, moment: datetime) -> bool:
        """Return whether a bar is expected that starts at this moment."""
        return bool(self.spans(moment, moment + datetime.resolution))

    def next_open(self, moment: datetime) -> datetime:
        """Return the moment itself if the market is open, otherwise the next opening."""
        ahead = 4 * _DAY  # a weekend and a holiday
        while not (found := self.spans(moment, moment + ahead)):
            ahead *= 2
        return found[0][0]

    def last_close(self, moment: datetime) -> datetime | None:
        """Return when the market last closed, at this moment or before; None if it never does."""
        now_open = self.is_open(moment)
        # Each of our markets closes each week. Where lines in two time zones complement one
        # another, the only gap may be between their two changes of the clock, once a year.
        for weeks in (1, 60):
            for _, end in reversed(self.spans(moment - weeks * _WEEK, moment)):
                if end < moment or not now_open:
                    return end
        return None

    def next_close(self, moment: datetime) -> datetime | None:
        """Return when the market closes next, the moment itself if it is closed; None if never."""
        for weeks in (1, 60):  # as in `last_close`
            end = moment + weeks * _WEEK
            found = self.spans(moment, end)
            if not found or found[0].start > moment:
                return moment
            if found[0].end < end:
                return found[0].end
        return None

    def spans(self, start: datetime, end: datetime) -> list[Span]:
        """Return the open spans within [start, end), ascending, with adjoining ones merged."""
        start, end = _in_utc(start), _in_utc(end)
        # No wall time differs from UTC by a whole day.
        first, last = start.replace(tzinfo=None) - _DAY, end.replace(tzinfo=None) + _DAY
        opened = union(_weekly_spans(self._lines, first, last))
        closed = union(
            _wall_to_utc(_NEW_YORK, *span)
            for year in range(first.year, last.year + 1)
            for span in self._closed(year)
            if span[0] < last and first < span[1]
        )
        return intersection(difference(opened, closed), [Span(start, end)])

    def expected_bars(self, start: datetime, end: datetime) -> int:
        """Return how many five-minute bars start within [start, end)."""
        return sum(_marks(until) - _marks(since) for since, until in self.spans(start, end))

    def open_time(self, start: datetime, end: datetime) -> timedelta:
        """Return how long the market is open within [start, end)."""
        return sum((until - since for since, until in self.spans(start, end)), timedelta())

    def days(self, start: datetime, end: datetime) -> list[tuple[date, list[Span]]]:
        """Return the trading days that lie in [start, end), each with its open spans, clipped.

        A trading day ends at 17:00 in New York; where all hours are in UTC, at midnight UTC.
        """
        in_utc = all(zone == "UTC" for zone, _, _ in _weekly(self._lines))
        zone, hour = ("UTC", 24) if in_utc else (_NEW_YORK, 17)
        opened = self.spans(start, end)
        found = []
        day = (_in_utc(start) - _DAY).date()
        while day <= (_in_utc(end) + _DAY).date():
            ends = _wall(day) + timedelta(hours=hour)
            spans = intersection(opened, [_wall_to_utc(zone, ends - _DAY, ends)])
            if spans:
                found.append((day, spans))
            day += _DAY
        return found

    def back(self, end: datetime, open_time: timedelta) -> datetime:
        """Return the latest moment from which so much time without long closures lies up to `end`.

        A daily break counts as open: gold of 2014 has bars in the first quarter of an hour of its
        own, and bars that come count, whatever the hours say.
        """
        end = _in_utc(end)
        while open_time > timedelta():
            start = end - open_time - _WEEK  # the market may be closed meanwhile: then once more
            for since, until in reversed(without_breaks(self.spans(start, end))):
                if until - since >= open_time:
                    return until - open_time
                open_time -= until - since
            end = start
        return end


def without_breaks(spans: Sequence[Span]) -> list[Span]:
    """Return ascending spans with those joined between which there is only a daily break."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start - joined[-1].end <= _LONGEST_BREAK:
            joined[-1] = Span(joined[-1].start, span.end)
        else:
            joined.append(span)
    return joined


# --- The hours of the markets --------------------------------------------------------------------


def _wall(day: date, hour: int = 0) -> datetime:
    return datetime.combine(day, time(hour))


@cache
def _forex_closed(year: int) -> tuple[Span, ...]:
    """Return the forex days that end on New Year and on Christmas: from 17:00 to 17:00."""
    return tuple(
        Span(_wall(day - _DAY, 17), _wall(day, 17))
        for day in (date(year, 1, 1), date(year, 12, 25))
    )


@cache
def _exchange_closed(year: int) -> tuple[Span, ...]:
    """Return the holidays of the exchanges of the United States, and the rest of short days."""
    holidays = set(us_holidays(year))
    short = {_nth(year, 11, 3, 4) + _DAY, date(year, 12, 24), date(year, 7, 3)} - holidays
    whole_days = (Span(_wall(day), _wall(day + _DAY)) for day in holidays)
    return (*whole_days, *(Span(_wall(day, 13), _wall(day + _DAY)) for day in short))


def us_holidays(year: int) -> list[date]:
    """Return the days without trade at the exchanges of the United States, weekends left out.

    They follow rule 7.2 of the New York Stock Exchange. A day of mourning follows none.
    """
    monday, thursday = 0, 3
    new_year, juneteenth = date(year, 1, 1), date(year, 6, 19)
    days = [
        _nth(year, 1, monday, 3),  # Martin Luther King
        _nth(year, 2, monday, 3),  # Washington
        _easter(year) - 2 * _DAY,  # Good Friday
        _nth(year, 6, monday, 1) - _WEEK,  # Memorial Day, the last Monday of May
        _observed(date(year, 7, 4)),
        _nth(year, 9, monday, 1),  # Labor Day
        _nth(year, 11, thursday, 4),  # Thanksgiving
        _observed(date(year, 12, 25)),
    ]
    if new_year.weekday() != _SATURDAY:  # the year before is closed on its last trading day
        days.append(_observed(new_year))
    if year >= _FIRST_JUNETEENTH:
        days.append(_observed(juneteenth))
    return sorted(days)


_SATURDAY, _SUNDAY = 5, 6
_FIRST_JUNETEENTH = 2022


def _observed(day: date) -> date:
    """Return the Friday for a Saturday and the Monday for a Sunday."""
    return day + {_SATURDAY: -_DAY, _SUNDAY: _DAY}.get(day.weekday(), timedelta())


def _nth(year: int, month: int, weekday: int, number: int) -> date:
    """Return the month's first, second … of a weekday."""
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (number - 1))


def _easter(year: int) -> date:
    """Return Easter Sunday, as Meeus, Jones and Butcher calculate it."""
    century, rest = divmod(year, 100)
    golden = year % 19
    leap = century - century // 4 - (century - (century + 8) // 25 + 1) // 3
    epact = (19 * golden + leap + 15) % 30
    weekday = (32 + 2 * (century % 4) + 2 * (rest // 4) - epact - rest % 4) % 7
    shift = (golden + 11 * epact + 22 * weekday) // 451
    month, day = divmod(epact + weekday - 7 * shift + 114, 31)
    return date(year, month, day + 1)


FX = Hours("Sun 17:00 - Fri 17:00", closed=_forex_closed)
METALS = Hours("Sun-Thu 18:00-17:00", closed=_forex_closed)
CRYPTO = Hours("Mon 00:00 - Sun 24:00 UTC")
US = Hours("Mon-Fri 09:30-16:00", closed=_exchange_closed)

NAMED = {"fx": FX, "metals": METALS, "crypto": CRYPTO, "us": US}
"""The hours that have a name in the settings."""


@cache
def hours_from(said: str | tuple[str, ...]) -> Hours:
    """Return the hours with that name, or those that the lines say."""
    return NAMED[said] if isinstance(said, str) else Hours(*said)


# --- Lines of hours ------------------------------------------------------------------------------

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_PATTERN = f"({'|'.join(_WEEKDAYS)})"
_TIME_PATTERN = r"([0-9]{1,2}:[0-9]{2})"
_ZONE_PATTERN = r"(?:\s+(\S+))?"
_DAILY = rf"{_DAY_PATTERN}(?:\s*-\s*{_DAY_PATTERN})?\s+{_TIME_PATTERN}\s*-\s*{_TIME_PATTERN}"
_WHOLE = rf"{_DAY_PATTERN}\s+{_TIME_PATTERN}\s*-\s*{_DAY_PATTERN}\s+{_TIME_PATTERN}"

_Weekly: TypeAlias = tuple[str, timedelta, timedelta]
"""A time zone, and from when to when, both since Monday 0:00."""


def check(line: str) -> None:
    """Raise `HoursError` unless this is a line of hours.

    A line is a weekday or a range of weekdays with the times of each of these days
    (`Mon-Fri 08:00-22:00`), or one span from a weekday and time to another
    (`Sun 18:00 - Fri 17:00`). A time zone may follow; without one it is New York's. A daily end
    that is not after the beginning is of the next day. Lines may overlap.
    """
    _weekly((line,))


@cache
def _weekly(lines: tuple[str, ...]) -> tuple[_Weekly, ...]:
    return tuple(weekly for line in lines for weekly in _read(line))


def _read(line: str) -> Iterator[_Weekly]:
    """Give what a line says, span by span."""
    if match := re.fullmatch(_DAILY + _ZONE_PATTERN, line.strip(), re.IGNORECASE):
        first, last, from_, to, zone = match.groups()
        since, until = _time(from_), _time(to, end=True)
        if since == until:
            raise HoursError("begins and ends at the same time; a whole day is 00:00-24:00")
        until += _DAY * (until < since)
        begin = _day(first)
        days = (_day(last or first) - begin) // _DAY % 7 + 1
        found = [(begin + day * _DAY + since, begin + day * _DAY + until) for day in range(days)]
    elif match := re.fullmatch(_WHOLE + _ZONE_PATTERN, line.strip(), re.IGNORECASE):
        first, from_, last, to, zone = match.groups()
        since, until = _day(first) + _time(from_), _day(last) + _time(to, end=True)
        if since == until:
            raise HoursError("begins and ends at the same time; always is Mon-Sun 00:00-24:00")
        found = [(since, until + _WEEK * (until < since))]
    else:
        raise HoursError(
            'must be days and times, such as "Mon-Fri 08:00-22:00 Europe/Berlin", or a span, such'
            ' as "Sun 18:00 - Fri 17:00"'
        )
    if zone:
        try:
            _zone(zone)
        except UnknownZoneError as error:
            raise HoursError(f"cannot be used: {error}") from None
    yield from ((zone or _NEW_YORK, since, until) for since, until in found)


def _day(name: str) -> timedelta:
    return timedelta(days=_WEEKDAYS.index(name.lower()))


def _time(text: str, *, end: bool = False) -> timedelta:
    hour, minute = map(int, text.split(":"))
    since_midnight = timedelta(hours=hour, minutes=minute)
    last = _DAY if end else _DAY - BAR_LENGTH
    if minute >= 60 or since_midnight > last or since_midnight % BAR_LENGTH:  # noqa: PLR2004
        raise HoursError(
            f"has {text}; times are 00:00 to 23:55 by steps of five minutes, and 24:00 as an end"
        )
    return since_midnight


# --- Wall time and UTC ---------------------------------------------------------------------------


@cache
def _zone(name: str) -> tzinfo:
    """Return a time zone, from this machine's files or else from the package tzdata."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # noqa: PLC0415  crypto needs none, and no command at its start

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        if name != _NEW_YORK:
            _zone(_NEW_YORK)  # without any time zone, that is what there is to say
            raise UnknownZoneError(f"{name} is no time zone that this machine knows") from None
        raise UnknownZoneError(
            f"{name} is no time zone that this machine knows: install its package of time zones,"
            " or Python's: python -m pip install tzdata"
        ) from None


def _wall_to_utc(zone: str, since: datetime, until: datetime) -> Span:
    tz = _zone(zone)
    begin, end = (wall.replace(tzinfo=tz).astimezone(UTC) for wall in (since, until))
    return Span(begin, end)


def _in_utc(moment: datetime) -> datetime:
    # Unlike `astimezone`, this refuses a naive moment.
    return _EPOCH + (moment - _EPOCH)


def _weekly_spans(lines: tuple[str, ...], first: datetime, last: datetime) -> Iterator[Span]:
    """Give, in UTC, each span that overlaps [first, last) in wall time."""
    weekly = _weekly(lines)
    # A span may begin in the week before.
    monday = _wall(first.date() - first.weekday() * _DAY - _WEEK)
    while monday < last:
        for zone, since, until in weekly:
            if monday + since < last and first < monday + until:
                yield _wall_to_utc(zone, monday + since, monday + until)
        monday += _WEEK


def _marks(moment: datetime) -> int:
    """Return how many five-minute marks there are before a moment, since 1970."""
    return -((_EPOCH - moment) // BAR_LENGTH)
