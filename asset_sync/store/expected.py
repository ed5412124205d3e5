"""How many bars are expected, written for SQL, which cannot see the settings.

Larger bars say beside how many five-minute bars they are made of how many there should be. The
tables hold a count for each quarter of an hour of the hours that the settings give an asset.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate
from typing import NamedTuple

import psycopg2.errors

from asset_sync.database import Connection, Cursor, query, transaction
from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.model import Asset
from asset_sync.provider.current import hours_name, hours_of

_DAY = timedelta(days=1)
_QUARTER = timedelta(minutes=15)
_QUARTERS, _BARS = _DAY // _QUARTER, _QUARTER // BAR_LENGTH

# When the days that are written end sooner than this, all are written again: with them what a newer
# version knows of holidays.
_LEAST_DAYS_AHEAD = 14
_DAYS_AHEAD = 60


class Day(NamedTuple):
    """How many five-minute bars are expected before and within a day, UTC."""

    day: date
    before: int
    """Since the first day."""
    before_quarter: Sequence[int]
    """From the beginning of the day to that of each quarter of an hour."""


def keep(
    db: Connection,
    assets: Sequence[Asset],
    past_days: int,
    recount: Callable[[Cursor, Asset], None],
    *,
    anew: bool = False,
) -> None:
    """Write what is missing or no longer right; with `anew`, write everything.

    If nothing is to be written, this is one short query.

    Each day from `past_days` ago to some weeks ahead is written of all hours that an asset has.
    Assets that the settings do not name keep their hours: their bars are still there. `recount` is
    called in the same transaction for each asset whose hours have changed.
    """
    names = {asset.symbol: hours_name(asset) for asset in assets}
    lacking = _lacking(db, names, past_days, anew=anew)
    if not lacking.symbols and not lacking.hours:
        return
    by_name = {hours_name(asset): hours_of(asset) for asset in assets}
    with transaction(db) as cursor:
        # Two runs write one after the other.
        cursor.execute("select pg_advisory_xact_lock(hashtext('asset-sync expected bars'))")
        cursor.execute(
            """
            insert into asset_sync.symbol_hours as known (symbol, hours)
            select * from unnest(%s::text[], %s::text[]) on conflict (symbol) do update
            set hours = excluded.hours where known.hours <> excluded.hours;
            delete from asset_sync.expected_bars e where hours = any(%s)
              or not exists (select from asset_sync.symbol_hours own where own.hours = e.hours)
            """,
            (lacking.symbols, [names[one] for one in lacking.symbols], lacking.hours),
        )
        for name in lacking.hours:
            days = expected_days(by_name[name], lacking.since, lacking.until)
            cursor.execute(
                """
                insert into asset_sync.expected_bars (hours, day, before, before_quarter)
                select %s, day, before, before_quarter::smallint[]
                from unnest(%s::date[], %s::int[], %s::text[]) as new (day, before, before_quarter)
                """,
                (
                    name,
                    [one.day for one in days],
                    [one.before for one in days],
                    [f"{{{','.join(map(str, one.before_quarter))}}}" for one in days],
                ),
            )
        for asset in assets:
            if asset.symbol in lacking.changed:
                recount(cursor, asset)


def keep_quietly(
    db: Connection,
    assets: Sequence[Asset],
    past_days: int,
    recount: Callable[[Cursor, Asset], None],
) -> None:
    """Do as `keep` does, as far as locks and the role's rights allow it now: no run needs it."""
    with suppress(
        psycopg2.errors.LockNotAvailable,
        psycopg2.errors.QueryCanceled,
        psycopg2.errors.DeadlockDetected,
        psycopg2.errors.InsufficientPrivilege,
    ):
        keep(db, assets, past_days, recount)


class _Lacking(NamedTuple):
    """What is to be written."""

    symbols: Sequence[str]
    """Whose hours are not known, or have changed."""
    changed: Sequence[str]
    """Those of them whose hours have changed."""
    hours: Sequence[str]
    since: date
    until: date


def _lacking(db: Connection, names: Mapping[str, str], past_days: int, *, anew: bool) -> _Lacking:
    [row] = query(
        db,
        """
        with there as (
          select name, (select min(day) from asset_sync.expected_bars where hours = name) as first,
            (select max(day) from asset_sync.expected_bars where hours = name) as last
          from unnest(%(hours)s::text[]) as name
        )
        select array(
            select own.symbol from unnest(%(symbols)s::text[], %(names)s::text[]) own (symbol, name)
            left join asset_sync.symbol_hours known on known.symbol = own.symbol
            where known.hours is distinct from own.name
          ),
          array(
            select own.symbol from unnest(%(symbols)s::text[], %(names)s::text[]) own (symbol, name)
            join asset_sync.symbol_hours known on known.symbol = own.symbol
            where known.hours <> own.name
          ),
          array(
            select name from there
            where %(anew)s or last is null or first > today - %(past)s or last < today + %(least)s
          ),
          -- what was written of bars that are older now stays written
          least(today - %(past)s, (select min(first) from there)), today + %(ahead)s
        from (select (now() at time zone 'UTC')::date as today) moment
        """,
        {
            "symbols": list(names),
            "names": list(names.values()),
            "hours": sorted(set(names.values())),
            "anew": anew,
            "past": past_days,
            "least": _LEAST_DAYS_AHEAD,
            "ahead": _DAYS_AHEAD,
        },
    )
    return _Lacking(*row)


def expected_days(hours: Hours, since: date, until: date) -> list[Day]:
    """Return what is expected on each day from `since` to `until`, the latter included."""
    start = datetime.combine(since, time(), UTC)
    quarters = ((until - since) // _DAY + 1) * _QUARTERS
    counts = [0] * quarters
    for span in hours.spans(start, start + quarters * _QUARTER):
        first, end = ((moment - start) // BAR_LENGTH for moment in span)
        for number in range(first, end):
            counts[number // _BARS] += 1
    before = list(accumulate(counts, initial=0))
    return [
        Day(
            since + number // _QUARTERS * _DAY,
            before[number],
            [one - before[number] for one in before[number : number + _QUARTERS]],
        )
        for number in range(0, quarters, _QUARTERS)
    ]
