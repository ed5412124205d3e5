"""The ledger: what was asked of each asset, and what came, week by week.

A hole is a range that was never asked, or one that was asked and is empty although the market was
open. That bars are missing proves nothing: where nobody trades or quotes, no bar comes. So each
answer notes the range that it has settled, in the transaction that stores its bars.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

from asset_sync.database import Connection, Cursor, query
from asset_sync.model import Feed
from asset_sync.spans import Span, difference, union

# The provider repairs its history late: forex ticks of January 2022 came back 13 months later, a
# day of crypto minutes 14 months later (polygon-io/issues 190 and 186).
RETRY_DAYS = (1, 7, 30, 180)

_LAGS_KEPT_DAYS = 30
# Fewer measurements do not show how late a bar can be.
LEAST_LAGS = 20


class Ledger(NamedTuple):
    """What was asked of the bars of one asset."""

    asked: tuple[Span, ...] = ()
    """The settled ranges before the tail."""
    tail: Span | None = None
    """The settled range that still grows; None if nothing was asked yet."""
    asked_at: datetime | None = None
    """When the newest bars were last asked for."""
    reread_at: datetime | None = None
    """When a call last began two open days earlier."""
    past_begins: datetime | None = None
    """Where the plan's past begins, if the provider refused an earlier start."""

    @property
    def settled(self) -> list[Span]:
        """All that an answer has settled."""
        return union((*self.asked, *([self.tail] if self.tail else [])))

    def with_settled(self, span: Span) -> "Ledger":
        """Return the ledger after an answer that settled a range."""
        if span.start >= span.end:
            return self
        tail, asked = self.tail, self.asked
        if tail is None or span.touches(tail):
            tail = (
                span if tail is None else Span(min(tail.start, span.start), max(tail.end, span.end))
            )
        elif span.start > tail.end:
            tail, asked = span, (*asked, tail)
        else:
            asked = (*asked, span)
        if asked and (asked != self.asked or tail != self.tail):
            merged = union((*asked, tail))
            asked, tail = tuple(merged[:-1]), merged[-1]
        return self._replace(asked=asked, tail=tail)

    def gaps(self, since: datetime, until: datetime | None = None) -> list[Span]:
        """Return the ranges from `since` to the settled end, or `until`, that were never asked."""
        if self.tail is None:
            return []
        end = self.tail.end if until is None else min(until, self.tail.end)
        return difference([Span(since, max(since, end))], self.settled)


class Lag(NamedTuple):
    """How long after its end a bar is first seen, in seconds; by market and plan."""

    measurements: int
    p50: float | None
    p95: float | None
    p99: float | None
    at_least: float = 0
    """The median of the lower bounds. Calls are minutes apart, so a lag is only known to be between
    two bounds; the percentiles are of the upper ones."""

    @property
    def is_known(self) -> bool:
        """Whether there are enough measurements to say how late a bar can be."""
        return self.measurements >= LEAST_LAGS


UNKNOWN_LAG = Lag(0, None, None, None)


class Week(NamedTuple):
    """What came of an asset in one week that was asked."""

    week: date
    """The Monday with which it begins, UTC."""
    bars: int
    empty_slots: int
    """How many bars are expected, asked and not there."""
    silent_days: Sequence[date] = ()
    """Trading days without any bar."""


def read(db: Connection, feed: Feed, tickers: Mapping[str, str]) -> dict[str, Ledger]:
    """Return the ledger of each asset, by symbol; `tickers` holds the ticker of each symbol.

    What was asked under another ticker does not count.
    """
    rows = query(
        db,
        """
        select l.symbol, array(select lower(span) from unnest(asked) as span),
          array(select upper(span) from unnest(asked) as span),
          tail_from, tail_until, asked_at, reread_at, past_begins
        from unnest(%s::text[], %s::text[]) as own (symbol, ticker)
        join asset_sync.ledger l on l.symbol = own.symbol and l.feed = %s and l.ticker = own.ticker
        """,
        (list(tickers), list(tickers.values()), feed),
    )
    return {symbol: _ledger(*rest) for symbol, *rest in rows}


def _ledger(
    starts: Sequence[datetime],
    ends: Sequence[datetime],
    tail_from: datetime | None,
    tail_until: datetime | None,
    *rest: datetime | None,
) -> Ledger:
    asked = tuple(Span(start, end) for start, end in zip(starts, ends, strict=True))
    tail = None if tail_from is None or tail_until is None else Span(tail_from, tail_until)
    return Ledger(asked, tail, *rest)


def lock(cursor: Cursor, symbol: str, feed: Feed, ticker: str) -> None:
    """Lock an asset's row, made or begun anew if necessary, before its bars are written.

    It is a statement of its own: the next one then sees all that the last holder committed.
    """
    cursor.execute(
        """
        delete from asset_sync.weeks where symbol = %(symbol)s and exists (
          select from asset_sync.ledger
          where symbol = %(symbol)s and feed = %(feed)s and ticker <> %(ticker)s
        );
        insert into asset_sync.ledger as known (symbol, feed, ticker)
        values (%(symbol)s, %(feed)s, %(ticker)s)
        on conflict (symbol, feed) do update
        set ticker = excluded.ticker, asked = '{}', tail_from = null, tail_until = null,
          asked_at = null, reread_at = null, past_begins = null, unasked_until = null,
          retry_at = null
        where known.ticker <> excluded.ticker;
        select from asset_sync.ledger where symbol = %(symbol)s and feed = %(feed)s for update
        """,
        {"symbol": symbol, "feed": feed, "ticker": ticker},
    )


def save(
    cursor: Cursor, symbol: str, feed: Feed, ledger: Ledger, unasked_until: datetime | None
) -> None:
    """Write the ledger of an asset whose row is locked.

    `unasked_until` is the moment down to which all was asked. None hides the asset from
    `next_symbols` until the next ordinary call.
    The stored ranges change only if they differ: the tail alone grows with most answers.
    """
    asked = (
        "{"
        + ",".join(f"[{span.start.isoformat()},{span.end.isoformat()})" for span in ledger.asked)
        + "}"
    )
    tail = ledger.tail
    cursor.execute(
        """
        update asset_sync.ledger
        set asked = case when asked = %(asked)s::tstzmultirange then asked
            else %(asked)s::tstzmultirange end,
          tail_from = %(tail_from)s, tail_until = %(tail_until)s, asked_at = %(asked_at)s,
          reread_at = %(reread_at)s, past_begins = %(past_begins)s,
          unasked_until = %(unasked_until)s,
          retry_at = (select min(next_try_at) from asset_sync.weeks where symbol = %(symbol)s)
        where symbol = %(symbol)s and feed = %(feed)s
        """,
        {
            "asked": asked,
            "tail_from": tail.start if tail else None,
            "tail_until": tail.end if tail else None,
            "asked_at": ledger.asked_at,
            "reread_at": ledger.reread_at,
            "past_begins": ledger.past_begins,
            "unasked_until": unasked_until,
            "symbol": symbol,
            "feed": feed,
        },
    )


# --- What came, week by week ---------------------------------------------------------------------


def monday(moment: datetime) -> date:
    """Return the Monday of the moment's week, UTC."""
    day = moment.date()
    return day - timedelta(days=day.weekday())


def count_bars(cursor: Cursor, symbol: str, spans: Sequence[Span]) -> dict[Span, int]:
    """Return how many bars are stored in each of these spans.

    Each span is counted by itself, by the primary key. As a join of all of them, PostgreSQL read
    each bar of the asset once per span, or the whole table.
    """
    cursor.execute(
        """
        select span.start, span.until, stored.bars
        from unnest(%s::timestamptz[], %s::timestamptz[]) as span (start, until)
        cross join lateral (
          select count(*) as bars from market_data.ohlcv_5m
          where ticker_id = (select id from trading.symbols where symbol = %s)
            and ts >= span.start and ts < span.until
        ) as stored
        """,
        ([span.start for span in spans], [span.end for span in spans], symbol),
    )
    return {Span(start, end): count for start, end, count in cursor.fetchall()}


def save_weeks(
    cursor: Cursor, symbol: str, weeks: Sequence[Week], *, tried: bool, forget_at: timedelta
) -> None:
    """Write what came in these weeks, and when their empty ranges are asked again.

    `tried` says that this answer asked a whole week, which counts as a try once its date is due.
    After the tries of `RETRY_DAYS` there is one more, before the week leaves the plan's years,
    which is `forget_at` after it.
    """
    cursor.execute(
        f"""
        insert into asset_sync.weeks as known
          (symbol, week, bars, empty_slots, silent_days, asked_at, next_try_at)
        select %(symbol)s, new.week, new.bars, new.empty_slots,
          coalesce(string_to_array(nullif(new.silent_days, ''), ',')::date[], '{{}}'), now(),
          {_NEXT_TRY.format(tries="1", empty="new.empty_slots")}
        from unnest(%(weeks)s::date[], %(bars)s::int[], %(empty)s::int[], %(silent)s::text[])
          as new (week, bars, empty_slots, silent_days)
        on conflict (symbol, week) do update
        set bars = excluded.bars, empty_slots = excluded.empty_slots,
          silent_days = excluded.silent_days,
          tries = known.tries + ({_IS_TRY})::int,
          asked_at = case when {_IS_TRY} then now() else known.asked_at end,
          next_try_at = case
            when excluded.empty_slots = 0 then null
            when {_IS_TRY}
            then {
            _NEXT_TRY.format(tries="known.tries + 1", empty="excluded.empty_slots").replace(
                "new.week", "excluded.week"
            )
        }
            -- after the last try there is none, whatever else asks for the week
            when known.tries > cardinality(%(days)s::int[]) then known.next_try_at
            else coalesce(known.next_try_at, excluded.next_try_at) end
        """,
        {
            "symbol": symbol,
            "weeks": [week.week for week in weeks],
            "bars": [week.bars for week in weeks],
            "empty": [week.empty_slots for week in weeks],
            "silent": [",".join(map(str, week.silent_days)) for week in weeks],
            "tried": tried,
            "days": list(RETRY_DAYS),
            "forget": forget_at,
        },
    )


_IS_TRY = "(%(tried)s and coalesce(known.next_try_at <= now(), false))"

_NEXT_TRY = """
  case when {empty} = 0 then null
    when {tries} <= cardinality(%(days)s::int[])
    then now() + make_interval(days => (%(days)s::int[])[{tries}])
    when {tries} = cardinality(%(days)s::int[]) + 1
    then greatest(now(), new.week + %(forget)s::interval)
  end
"""


def weeks(db: Connection, symbols: Sequence[str], first: date) -> dict[str, list[Week]]:
    """Return what came of each of these assets week by week from a Monday on, by symbol.

    The silent days are left out. An asset of which nothing was asked is missing.
    """
    rows = query(
        db,
        """
        select symbol, array_agg(week), array_agg(bars), array_agg(empty_slots)
        from asset_sync.weeks where symbol = any(%s) and week >= %s group by symbol
        """,
        (list(symbols), first),
    )
    return {symbol: list(map(Week, *columns)) for symbol, *columns in rows}


def forget_weeks(cursor: Cursor, symbol: str) -> None:
    """Delete what came of an asset week by week, to be counted anew."""
    cursor.execute("delete from asset_sync.weeks where symbol = %s", (symbol,))


def due_weeks(db: Connection, symbols: Sequence[str]) -> dict[str, list[date]]:
    """Return the weeks whose empty ranges are to be asked again now, the newest first."""
    if not symbols:
        return {}
    rows = query(
        db,
        """
        select symbol, array_agg(week order by week desc) from asset_sync.weeks
        where symbol = any(%s) and next_try_at <= clock_timestamp() group by symbol
        """,
        (list(symbols),),
    )
    return dict(rows)


def put_off_due_weeks(cursor: Cursor, symbol: str, since: datetime) -> None:
    """Ask an asset's due weeks a day later, and no more those that end before `since`."""
    cursor.execute(
        """
        update asset_sync.weeks
        set next_try_at = case when (week + 7)::timestamp at time zone 'UTC' > %s
          then clock_timestamp() + interval '1 day' end
        where symbol = %s and next_try_at <= clock_timestamp()
        """,
        (since, symbol),
    )


class Came(NamedTuple):
    """What is stored of an asset's past."""

    oldest: datetime | None
    """The start of its oldest bar."""
    newest: datetime | None
    bars: int
    """Bars of the weeks that were asked."""
    empty_slots: int
    empty_in_first_week: int
    """The empty slots of the whole week in which the past begins."""
    silent_days: Sequence[date]


def came(db: Connection, since: Mapping[str, datetime]) -> dict[str, Came]:
    """Return what came of each asset from that moment on, by symbol."""
    rows = query(
        db,
        """
        select own.symbol, span.oldest, span.newest, coalesce(weeks.bars, 0)::int,
          coalesce(weeks.empty_slots, 0)::int, coalesce(weeks.first_empty_slots, 0)::int, array(
            select day from asset_sync.weeks w, unnest(w.silent_days) as day
            where w.symbol = own.symbol and w.week >= own.week and w.silent_days <> '{}'
          )
        from unnest(%s::text[], %s::date[]) as own (symbol, week)
        left join trading.symbols s on s.symbol = own.symbol
        left join lateral (
          select min(ts) as oldest, max(ts) as newest from market_data.ohlcv_5m
          where ticker_id = s.id and ts between timestamptz 'epoch' and now()
        ) as span on true
        left join lateral (
          select sum(bars) as bars, sum(empty_slots) as empty_slots,
            sum(empty_slots) filter (where week = own.week) as first_empty_slots
          from asset_sync.weeks w
          where w.symbol = own.symbol and w.week >= own.week
        ) as weeks on true
        """,
        (list(since), [monday(moment) for moment in since.values()]),
    )
    return {symbol: Came(*rest) for symbol, *rest in rows}


def without_bars(db: Connection, symbol: str, span: Span) -> list[Span]:
    """Return the ranges between the stored bars of an asset, longer than a bar, within a span."""
    rows = query(
        db,
        """
        with bars as (
          select ts from market_data.ohlcv_5m
          where ticker_id = (select id from trading.symbols where symbol = %(symbol)s)
            and ts >= %(start)s and ts < %(end)s
          union all select %(start)s - interval '5 min' union all select %(end)s
        )
        select ts + interval '5 min', next from (
          select ts, lead(ts) over (order by ts) as next from bars
        ) as bar where next > ts + interval '5 min' order by ts
        """,
        {"symbol": symbol, "start": span.start, "end": span.end},
    )
    return [Span(*row) for row in rows]


def next_tries(db: Connection, symbol: str) -> dict[date, datetime]:
    """Return when the empty ranges of each week are asked again, by the week's Monday."""
    rows = query(
        db,
        """
        select week, next_try_at from asset_sync.weeks
        where symbol = %s and next_try_at is not null
        """,
        (symbol,),
    )
    return dict(rows)


def count_revisions(db: Connection, symbol: str | None = None) -> int:
    """Return how many values are kept that the provider changed, of one asset or of all."""
    [(count,)] = query(
        db,
        "select count(*) from asset_sync.revisions where symbol = %s or %s",
        (symbol, symbol is None),
    )
    return int(count)


def given_up(db: Connection, symbols: Sequence[str]) -> dict[str, int]:
    """Return how many weeks of each asset have empty ranges that were given up, by symbol.

    Each was asked at all dates of `RETRY_DAYS`, and once before it left the plan's years.
    """
    rows = query(
        db,
        """
        select symbol, count(*)::int from asset_sync.weeks
        where symbol = any(%s) and empty_slots > 0 and next_try_at is null and tries > %s
        group by symbol order by symbol
        """,
        (list(symbols), len(RETRY_DAYS)),
    )
    return dict(rows)


class Wish(NamedTuple):
    """An asset whose history is wanted."""

    symbol: str
    ticker: str
    level_rank: int
    """The order of its level, the lowest first."""
    days: int
    """How far back."""
    is_refused: bool = False
    """Whether the API refuses what lies before the ledger's `past_begins`."""


def next_symbols(db: Connection, wishes: Sequence[Wish], most: int) -> list[str]:
    """Return the assets whose past is to be asked next, in the order of the calls.

    Newest first and breadth first: all assets get one call's reach further back before one gets
    two; of those the higher levels first. What was never asked comes before what was empty.
    """
    rows = query(
        db,
        """
        select own.symbol
        from unnest(
          %(symbols)s::text[], %(tickers)s::text[], %(ranks)s::int[], %(days)s::int[],
          %(refused)s::bool[]
        ) as own (symbol, ticker, rank, days, is_refused)
        join asset_sync.ledger l on l.symbol = own.symbol and l.ticker = own.ticker
          and l.feed = %(bars)s
        left join asset_sync.queue q on q.symbol = own.symbol and q.feed = %(history)s
        cross join lateral (
          select greatest(
            now() - make_interval(hours => 24 * own.days),
            case when own.is_refused then l.past_begins end
          ) as begins
        ) past
        cross join lateral (
          select case when l.unasked_until > past.begins then l.unasked_until end as ends
        ) unasked
        where (q.state is null or (q.state in ('idle', 'waiting') and q.not_before <= now())
            or (q.state = 'dead' and q.ticker <> own.ticker))
          and (unasked.ends is not null or l.retry_at <= now())
        order by unasked.ends is null, floor(extract(epoch from now() - unasked.ends) / %(reach)s),
          own.rank, unasked.ends desc, own.symbol
        limit %(most)s
        """,
        {
            "symbols": [wish.symbol for wish in wishes],
            "tickers": [wish.ticker for wish in wishes],
            "ranks": [wish.level_rank for wish in wishes],
            "days": [wish.days for wish in wishes],
            "refused": [wish.is_refused for wish in wishes],
            "bars": Feed.BARS,
            "history": Feed.HISTORY,
            "reach": _ROUND.total_seconds(),
            "most": most,
        },
    )
    return [symbol for (symbol,) in rows]


# A little more than the first call of any market brings.
_ROUND = timedelta(days=41)


# --- How late bars are ---------------------------------------------------------------------------


def note_lag(
    cursor: Cursor, plan: str, asset_type: str, seconds: float, at_least: float = 0
) -> None:
    """Note how long after its end a bar was first seen, and forget old measurements.

    `at_least` is how long after its end an earlier call lacked it.
    """
    cursor.execute(
        """
        delete from asset_sync.lags where ctid = any(array(
          select ctid from asset_sync.lags where plan = %(plan)s and asset_type = %(type)s
            and at < now() - make_interval(days => %(days)s) limit 100));
        insert into asset_sync.lags (plan, asset_type, seconds, at_least)
        values (%(plan)s, %(type)s, %(seconds)s, %(at_least)s)
        """,
        {
            "plan": plan,
            "type": asset_type,
            "days": _LAGS_KEPT_DAYS,
            "seconds": seconds,
            "at_least": at_least,
        },
    )


def lags(db: Connection, plan: str) -> dict[str, Lag]:
    """Return the lag of each asset type that was measured with the plan."""
    rows = query(
        db,
        """
        select asset_type, count(*), percentile_cont(array[0.5, 0.95, 0.99])
            within group (order by seconds),
          percentile_cont(0.5) within group (order by at_least)
        from (
          select asset_type, seconds, at_least,
            row_number() over (partition by asset_type order by at desc) as latest
          from asset_sync.lags where plan = %s
        ) as measured
        where latest <= 1000 group by asset_type
        """,
        (plan,),
    )
    return {
        kind: Lag(number, p50, p95, p99, at_least)
        for kind, number, (p50, p95, p99), at_least in rows
    }
