"""Real five-minute bars, moved in time to the range of each request.

Three series are real (`bars/README.md` names the source): EURUSD and XAUUSD of a fortnight in May
2014, BTCUSD of two days in April 2018. Forex repeats every 14 days, so that the weekday stays real
and the hour in New York, whose clock is an hour behind in winter; weekends and the two holidays are
closed. Bitcoin repeats every 2 days: the hour of the day stays real.

The other four are NOT market data: X:ETHUSDT is bitcoin times 0.05, C:GBPUSD and C:USDJPY are the
euro times 1.2 and 74, C:XAGUSD is gold divided by 60. Only their movements are real.

A bar depends only on its ticker and its start, so asking again returns the same bar. The bar in
progress is therefore already as it will be at its end; longer bars grow with their parts.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

BAR_MS = 5 * 60 * 1000
HOUR_MS = 60 * 60 * 1000
DAY_MS = 24 * HOUR_MS


class Market(StrEnum):
    """As the API's paths and `market` parameters spell it; metals are in `fx`."""

    FX = "fx"
    CRYPTO = "crypto"


class Bar(NamedTuple):
    """One bar; `start_ms` in Unix milliseconds, prices in the quote currency."""

    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    """Units traded; for forex the number of quotes, an int equal to `trades`, as at the API."""

    vwap: float
    trades: int


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of real bars, and which whole days of it are replayed again and again."""

    file: str
    first_day: date
    days: int

    @property
    def start_ms(self) -> int:
        """Midnight UTC of the first day."""
        first = self.first_day
        return int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) * 1000


# Thursday to Wednesday: the file's fifteenth day would be a second Thursday and is left out.
_EURO = Recording("EURUSD_5m_2014-05.csv", date(2014, 5, 1), days=14)
_GOLD = Recording("XAUUSD_5m_2014-05.csv", date(2014, 5, 1), days=14)
# On the 4th the source ends at 16:45, and crypto never closes: the two complete days only.
_BITCOIN = Recording("BTCUSD_5m_coinbase.csv", date(2018, 4, 5), days=2)


@dataclass(frozen=True, slots=True)
class Currency:
    """One side of a pair."""

    code: str
    name: str


_DOLLAR = Currency("USD", "United States dollar")


@dataclass(frozen=True, slots=True)
class Instrument:
    """A ticker that the stand-in knows, and the recording that it is made from."""

    ticker: str
    market: Market
    base: Currency
    quote: Currency
    digits: int
    """Decimal places of its prices; the last one is a point."""

    recording: Recording
    scale: float = 1.0

    @property
    def name(self) -> str:
        """As the API names pairs: `Euro - United States dollar`."""
        return f"{self.base.name} - {self.quote.name}"


_FX, _CRYPTO = Market.FX, Market.CRYPTO
INSTRUMENTS = {
    instrument.ticker: instrument
    for instrument in (
        Instrument("C:EURUSD", _FX, Currency("EUR", "Euro"), _DOLLAR, 5, _EURO),
        Instrument("C:GBPUSD", _FX, Currency("GBP", "British pound"), _DOLLAR, 5, _EURO, 1.2),
        Instrument("C:USDJPY", _FX, _DOLLAR, Currency("JPY", "Japanese yen"), 3, _EURO, 74.0),
        Instrument("C:XAGUSD", _FX, Currency("XAG", "Silver"), _DOLLAR, 4, _GOLD, 1 / 60),
        Instrument("C:XAUUSD", _FX, Currency("XAU", "Gold"), _DOLLAR, 3, _GOLD),
        Instrument("X:BTCUSD", _CRYPTO, Currency("BTC", "Bitcoin"), _DOLLAR, 2, _BITCOIN),
        Instrument(
            "X:ETHUSDT",
            _CRYPTO,
            Currency("ETH", "Ethereum"),
            Currency("USDT", "Tether"),
            2,
            _BITCOIN,
            0.05,
        ),
    )
}
"""Every ticker that the stand-in knows, in the order in which the API lists them."""


def bars(ticker: str, start_ms: int, end_ms: int, now_ms: int) -> list[Bar]:
    """Five-minute bars that start within [start_ms, end_ms] and not after now, oldest first.

    The bar in progress is among them. An unknown ticker has none.
    """
    return list(walk(ticker, start_ms, end_ms, now_ms))


def walk(
    ticker: str,
    start_ms: int,
    end_ms: int,
    now_ms: int,
    *,
    length_ms: int = BAR_MS,
    newest_first: bool = False,
) -> Iterator[Bar]:
    """Like `bars`, one by one, for any length made of five-minute bars that divides a day."""
    instrument = INSTRUMENTS.get(ticker)
    if instrument is None:
        return
    numbers = range(-(-start_ms // length_ms), min(end_ms, now_ms) // length_ms + 1)
    in_order = reversed(numbers) if newest_first else numbers
    if length_ms == BAR_MS:
        yield from _recorded(instrument, in_order)
        return
    for number in in_order:
        first_ms = number * length_ms
        parts = bars(ticker, first_ms, first_ms + length_ms - BAR_MS, now_ms)
        if parts:
            yield Bar(first_ms, *_merged([part[1:] for part in parts], instrument))


def _recorded(instrument: Instrument, numbers: Iterable[int]) -> Iterator[Bar]:
    """Give the bars with these numbers, counted from 1970, as far as there were quotes."""
    cycle = _read(instrument)
    first = instrument.recording.start_ms // BAR_MS
    is_forex = instrument.market is Market.FX
    for number in numbers:
        behind = _forex_hour(number // _BARS_AN_HOUR) if is_forex else 0
        if behind is not None:
            figures = cycle[(number - behind - first) % len(cycle)]
            if figures is not None:
                yield Bar(number * BAR_MS, *figures)


def day(ticker: str, at_ms: int, now_ms: int) -> Bar | None:
    """Return the bar of the UTC day that contains `at_ms`, up to then; None if there is none."""
    start_ms = at_ms - at_ms % DAY_MS
    return next(walk(ticker, start_ms, start_ms, now_ms, length_ms=DAY_MS), None)


def newest(
    ticker: str, start_ms: int, end_ms: int, now_ms: int, *, length_ms: int = BAR_MS
) -> Bar | None:
    """Return the last bar that starts within [start_ms, end_ms] and not after now."""
    found = walk(ticker, start_ms, end_ms, now_ms, length_ms=length_ms, newest_first=True)
    return next(found, None)


def is_open(ticker: str, now_ms: int) -> bool:
    """Whether the ticker is quoted in these five minutes."""
    current_ms = now_ms - now_ms % BAR_MS
    return bool(bars(ticker, current_ms, current_ms, now_ms))


_Figures: TypeAlias = tuple[float, float, float, float, float, float, int]
"""A bar without its start: open, high, low, close, volume, vwap, trades."""


_BARS_AN_HOUR = HOUR_MS // BAR_MS
_MAY = timedelta(hours=-4)
"""New York's distance from UTC when the recordings were made."""


@lru_cache(maxsize=20_000)
def _forex_hour(hour: int) -> int | None:
    """Return how many bars New York is behind May in an hour since 1970; None if it is closed."""
    there = datetime.fromtimestamp(hour * HOUR_MS / 1000, ZoneInfo("America/New_York"))
    ends_on = (there + timedelta(hours=7)).date()  # a forex day ends at 17:00
    if ends_on.weekday() >= _SATURDAY or (ends_on.month, ends_on.day) in _HOLIDAYS:
        return None
    behind = _MAY - (there.utcoffset() or _MAY)
    return behind // timedelta(milliseconds=BAR_MS)


_SATURDAY = 5
_HOLIDAYS = {(1, 1), (12, 25)}


@lru_cache(maxsize=64)
def _read(instrument: Instrument) -> Sequence[_Figures | None]:
    recording = instrument.recording
    circle: list[_Figures | None] = [None] * (recording.days * DAY_MS // BAR_MS)
    text = (files(__package__) / "bars" / recording.file).read_text("utf-8")
    for row in islice(csv.reader(text.splitlines()), 1, None):
        started = int(datetime.fromisoformat(row[0]).timestamp()) * 1000
        place = (started - recording.start_ms) // BAR_MS
        if 0 <= place < len(circle):
            circle[place] = _figures(instrument, [float(cell) for cell in row[1:6]], int(row[6]))
    return tuple(circle)


def _figures(instrument: Instrument, row: Sequence[float], minutes: int) -> _Figures:
    """One row, scaled. Rounding keeps the order, so high and low remain the bounds."""
    open_, high, low, close = (
        round(price * instrument.scale, instrument.digits) for price in row[:4]
    )
    volume = row[4]
    if instrument.market is Market.FX:
        # The source has no quote counts: more minutes and a wider range mean more quotes.
        trades = 12 * minutes + round((high - low) * 10**instrument.digits)
        volume = trades
    else:
        trades = max(minutes, round(3 * volume))
    vwap = _between(low, (open_ + high + low + close) / 4, high, instrument)
    return open_, high, low, close, volume, vwap, trades


def _merged(parts: Sequence[_Figures], instrument: Instrument) -> _Figures:
    """Return one longer bar made of shorter ones."""
    opens, highs, lows, closes, volumes, vwaps, trades = zip(*parts, strict=True)
    volume = sum(volumes)
    mean = sum(vwap * part for vwap, part in zip(vwaps, volumes, strict=True)) / volume
    vwap = _between(min(lows), mean, max(highs), instrument)
    quotes = instrument.market is Market.FX
    size = volume if quotes else round(volume, 8)
    return opens[0], max(highs), min(lows), closes[-1], size, vwap, sum(trades)


def _between(low: float, price: float, high: float, instrument: Instrument) -> float:
    return min(max(round(price, instrument.digits + 1), low), high)
