"""The rules of the queue in SQL: what is due, which failures count, and the order."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asset_sync.budget.slots import ANSWERED_WELL_AT
from asset_sync.model import Asset, Feed

LONGEST_BACK_OFF_SECONDS = 3600

FAILING_STRIKES = 3
"""`queue status` and `health` name an asset that has at least so many strikes."""

WANTED = """
  wanted as (
    select * from unnest(
      %(symbols)s::text[], %(feeds)s::text[], %(ranks)s::smallint[],
      %(tickers)s::text[], %(types)s::text[],
      %(names)s::text[], %(levels)s::text[], %(positions)s::int[], %(frequencies)s::int[]
    ) as w (
      symbol, feed, feed_rank, ticker, asset_type, name, level, position, frequency_seconds
    )
  )
"""

RANK = "array_position(array['critical', 'high', 'medium', 'low'], {level})"

# A failure counts if the provider answered another asset well since this one last failed: then the
# provider works, and the failure is the asset's own. A first failure always counts, so that the
# item backs off.
COUNTS = f"""
  (q.strikes = 0 or {ANSWERED_WELL_AT} > q.failed_at)
"""

STRIKES = f"(case when {COUNTS} then q.strikes + 1 else greatest(q.strikes, 1) end)"

BACK_OFF = """
  make_interval(secs => least(
    greatest(%(longest_delay)s, %(delay)s), %(delay)s * power(2, least({strikes}, 20) - 1)
  ))
"""

# A new ticker in the settings clears the failures, unless that ticker has failed as well. Otherwise
# two hosts with two wrong tickers for one symbol would clear each other's failures again and again.
NEW_TICKER = "(cardinality(q.failed_tickers) > 0 and w.ticker <> all(q.failed_tickers))"

# When an item is due: its frequency after its last success, or when it was added. An idle one is
# not due before news can come; the `not_before` of a waiting one is its back-off.
DUE_AT = """
  greatest(
    coalesce(q.last_success_at + make_interval(secs => w.frequency_seconds), q.added_at),
    case when q.state = 'idle' then q.not_before end
  )
"""

# What `enqueue` puts in line:
# - an idle item that will not be fresh when the next run starts, unless it was refreshed less than
#   a tenth of its frequency ago, or no news can have come yet;
# - a waiting or dead item with a new ticker;
# - a dead item that is critical in these settings;
# - a waiting item to which these settings give a higher level than the host that put it in line: it
#   gets the higher level.
DUE = f"""
  case q.state
    when 'idle' then {DUE_AT} <= {{due_by}} and q.not_before <= {{now}}
      and (q.last_success_at is null
      or q.last_success_at + make_interval(secs => w.frequency_seconds * 0.1) <= {{now}})
    when 'leased' then false
    when 'waiting' then {NEW_TICKER}
      or (q.strikes = 0 and {RANK.format(level="w.level")} < {RANK.format(level="q.level")})
    else {NEW_TICKER} or w.level = 'critical'
  end
"""

_NEXT_START = """
  to_timestamp((floor(extract(epoch from {now}) / %(cycle)s + {rounding}) + 1) * %(cycle)s)
"""

# A high item sorts by the time at which it is due, a medium one by one aging time later, a low one
# by two aging times later. Critical items come first, in the order of the file.
SORT_AT = """
  case {level}
    when 'critical' then to_timestamp({position})
    when 'high' then {due_at}
    when 'medium' then {due_at} + make_interval(secs => %(aging)s)
    else {due_at} + make_interval(secs => 2 * %(aging)s)
  end
"""

ORDER = "level <> 'critical', sort_at, symbol, feed_rank"


class Wanted(NamedTuple):
    """An asset and a feed that the settings ask for."""

    asset: Asset
    feed: Feed


def due_by(now: str, cycle_seconds: float | None, rounding: float = 0) -> str:
    """Return SQL for a time; an asset is due if it does not stay fresh until then."""
    if cycle_seconds is None:
        return now
    return _NEXT_START.format(now=now, rounding=rounding)


def calls_for(items: Mapping[Feed, int]) -> int:
    """Return how many calls serve these numbers of items of each feed."""
    return sum(-(-count // feed.bulk) for feed, count in items.items())


def arrays(wanted: Sequence[Wanted]) -> dict[str, object]:
    """Return the wanted assets and feeds as the columns that the CTE `wanted` unnests."""
    assets = [item.asset for item in wanted]
    return {
        "symbols": [asset.symbol for asset in assets],
        "feeds": [item.feed for item in wanted],
        "ranks": [item.feed.rank for item in wanted],
        "tickers": [asset.ticker for asset in assets],
        "types": [asset.asset_type.value for asset in assets],
        "names": [asset.name for asset in assets],
        "levels": [asset.level.value for asset in assets],
        "positions": [asset.position for asset in assets],
        "frequencies": [asset.update_frequency_seconds for asset in assets],
    }
