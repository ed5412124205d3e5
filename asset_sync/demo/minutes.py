"""One-minute bars, made of the recorded five-minute ones.

The recordings have no minutes, so these are NOT market data: the price walks from the open over the
two extremes to the close. Together, the minutes of a five-minute bar have exactly its open, high,
low, close and number of trades; their volumes, added in order, are its volume to the last bit. Like
the five-minute bars, they depend only on the ticker and their start.
"""

from collections.abc import Iterator

from asset_sync.demo import replay
from asset_sync.demo.replay import BAR_MS, INSTRUMENTS, Bar, Instrument, Market

MINUTE_MS = 60_000
_MINUTES = BAR_MS // MINUTE_MS


def walk(
    ticker: str, start_ms: int, end_ms: int, now_ms: int, *, newest_first: bool = False
) -> Iterator[Bar]:
    """Return the minutes that start within [start_ms, end_ms] and not after now, one by one."""
    instrument = INSTRUMENTS.get(ticker)
    if instrument is None:
        return
    first_ms = start_ms // BAR_MS * BAR_MS  # of the bar that contains the start
    for whole in replay.walk(ticker, first_ms, end_ms, now_ms, newest_first=newest_first):
        minutes = _minutes(whole, instrument)
        for minute in reversed(minutes) if newest_first else minutes:
            if start_ms <= minute.start_ms <= min(end_ms, now_ms):
                yield minute


def _minutes(whole: Bar, instrument: Instrument) -> list[Bar]:
    """Return the minutes of one bar; if it has too few trades, the first has them all."""
    if whole.trades < _MINUTES:
        return [whole]
    first, second = (whole.high, whole.low) if whole.close < whole.open else (whole.low, whole.high)
    between = round((first + second) / 2, instrument.digits)
    beyond = round((second + whole.close) / 2, instrument.digits)
    prices = [whole.open, first, between, second, beyond, whole.close]
    # Every part is exact in binary, and so is each sum from the first on.
    volumes = [whole.volume / part for part in (16, 16, 8, 4, 2)]
    rest, share = whole.trades, whole.trades // _MINUTES
    bars = []
    for number, volume in enumerate(volumes):
        open_, close = prices[number : number + 2]
        trades = share if number < _MINUTES - 1 else rest
        rest -= trades
        bars.append(
            Bar(
                whole.start_ms + number * MINUTE_MS,
                open_,
                max(open_, close),
                min(open_, close),
                close,
                trades if instrument.market is Market.FX else volume,
                round((open_ + close) / 2, instrument.digits + 1),
                trades,
            )
        )
    return bars
