"""Larger bars, made of the five-minute bars when they are read: their SQL, views and function.

They are never stored, so they are right even after the provider has repaired bars of long ago.
"""

from enum import StrEnum

_NEW_YORK = "'America/New_York'"
# A Monday before every bar, so that weeks begin on Monday. Before its origin `date_bin` of some
# versions of PostgreSQL rounds in the wrong direction.
_ORIGIN = "timestamptz '1969-12-29 00:00Z'"


class Every(StrEnum):
    """How long a bar is."""

    FIVE_MINUTES = "5m"
    QUARTER = "15m"
    HOUR = "1h"
    FOUR_HOURS = "4h"
    DAY = "1d"
    """From midnight to midnight, UTC."""
    NEW_YORK_DAY = "1d-ny"
    """Until 17:00 in New York, as the day of forex; 23 or 25 hours where the clock changes."""

    def start(self, ts: str) -> str:
        """Return SQL for the start of the bar that covers a moment; `ts` is SQL, too."""
        if self is Every.NEW_YORK_DAY:
            wall = f"({ts} at time zone {_NEW_YORK} + interval '7 hours')"
            return f"((date_trunc('day', {wall}) - interval '7 hours') at time zone {_NEW_YORK})"
        return f"date_bin({_STRIDES[self]}, {ts}, {_ORIGIN})"

    def end(self, start: str) -> str:
        """Return SQL for the end of the bar with that start."""
        if self is Every.NEW_YORK_DAY:
            wall = f"({start} at time zone {_NEW_YORK} + interval '1 day')"
            return f"({wall} at time zone {_NEW_YORK})"
        return f"({start} + {_STRIDES[self]})"

    def first_start(self, ts: str) -> str:
        """Return SQL for the start of the first bar that starts at a moment or later."""
        start = self.start(ts)
        return f"case when {start} = {ts} then {ts} else {self.end(start)} end"


_STRIDES = {
    Every.FIVE_MINUTES: "interval '5 min'",
    Every.QUARTER: "interval '15 min'",
    Every.HOUR: "interval '1 hour'",
    Every.FOUR_HOURS: "interval '4 hours'",
    # Not '1 day': that would be 23 hours where the session's time zone changes its clock.
    Every.DAY: "interval '24 hours'",
}

VALUES = """
bar.open::float8 as open, bar.high::float8 as high, bar.low::float8 as low,
bar.close::float8 as close, bar.volume::float8 as volume, bar.vwap::float8 as vwap,
bar.trades::bigint as trades
"""
"""SQL for the figures of a row `bar` of `market_data.ohlcv_5m`, whose types may be the user's own.
"""

TOTALS = """
(array_agg(bar.open order by bar.ts))[1] as open,
max(bar.high) as high,
min(bar.low) as low,
(array_agg(bar.close order by bar.ts))[count(*)] as close,
sum(bar.volume) as volume,
sum(bar.vwap * bar.volume) filter (where bar.volume > 0)
  / sum(bar.volume) filter (where bar.volume > 0 and bar.vwap is not null) as vwap,
sum(bar.trades)::bigint as trades,
count(*)::integer as bars
"""
"""SQL for the figures of a larger bar, grouped from rows `bar` with the columns of `VALUES`.

A bar without volume or mean price does not count in the volume-weighted mean.
"""


def expected(start: str, end: str) -> str:
    """Return SQL for how many five-minute bars are expected between two moments.

    It is null beyond the days that are written. The moments, SQL themselves, are multiples of a
    quarter of an hour. It needs the joins of `expected_joins`.
    """
    return " - ".join(
        f"({row}.before + {row}.before_quarter"
        f"[1 + mod(date_part('epoch', {moment})::bigint / 900, 96)])"
        for row, moment in (("until", end), ("since", start))
    )


def expected_joins(symbol: str, start: str, end: str) -> str:
    """Return SQL that joins what `expected` needs."""
    joins = f"left join asset_sync.symbol_hours own on own.symbol = {symbol}"
    for row, moment in (("since", start), ("until", end)):
        joins += f"""
          left join asset_sync.expected_bars {row} on {row}.hours = own.hours
            and {row}.day = ({moment} at time zone 'UTC')::date"""
    return joins
