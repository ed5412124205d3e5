"""`asset-sync queue status`."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import typer

from asset_sync import database, queue
from asset_sync.budget import slots
from asset_sync.budget.slots import Budget
from asset_sync.cli.format import (
    bold,
    duration,
    ended,
    gauge,
    moment,
    red,
    short_moment,
    table,
    yellow,
)
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import out_raw, plain, wrapped
from asset_sync.cli.settings import settings_for
from asset_sync.database import Connection
from asset_sync.ops import age
from asset_sync.ops.age import DataAge
from asset_sync.queue import Dead, Failing, LevelStatus, Upcoming
from asset_sync.settings import Settings
from asset_sync.store import runs
from asset_sync.store.runs import Run

_NEXT, _RUNS, _DEAD = 5, 5, 5


@with_common_options
def queue_status(
    options: Common,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh it every second, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the queue's levels, the next items, the free calls, and the last runs.

    Example: asset-sync queue status --watch
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter("--watch is for a terminal; a program asks again with --json.")
    settings = settings_for(options)
    if watch:
        from asset_sync.cli.queue_watch import keep_on_screen  # noqa: PLC0415  # rich takes 25 ms

        keep_on_screen(settings)
        return
    with database.session(settings.conninfo) as db:
        status = look(db, settings)
    if as_json:
        out_raw(json.dumps(_as_json(status), indent=2))
    else:
        out_raw(text(status))


class Status(NamedTuple):
    """Everything that `queue status` shows."""

    levels: tuple[LevelStatus, ...]
    next: tuple[Upcoming, ...]
    dead: tuple[Dead, ...]
    failing: tuple[Failing, ...]
    budget: Budget
    runs: tuple[Run, ...]
    last_priority_update: datetime | None
    ages: Mapping[str, DataAge]
    """How old the data of each asset is."""
    waiting_for_first_run: int
    """Assets of the settings that no run has seen yet."""


def look(db: Connection, settings: Settings) -> Status:
    """Read the status from the database."""
    rate = slots.rate_of(settings)
    symbols = [asset.symbol for asset in settings.assets]
    known = queue.freshness(db, symbols)
    priority = [known[asset.symbol] for asset in settings.critical if asset.symbol in known]
    return Status(
        queue.levels(db, symbols),
        queue.line(db, settings.assets, _NEXT),
        queue.dead(db, symbols, _DEAD),
        queue.failing(db, symbols),
        slots.budget(db, rate),
        runs.last(db, _RUNS),
        max((one.last_success_at for one in priority if one.last_success_at), default=None),
        age.ages(db, settings.assets),
        len(symbols) - len(known),
    )


def text(status: Status) -> str:
    """Return the status as it looks on a terminal."""
    parts = [_levels(status), _budget(status)]
    if (unseen := status.waiting_for_first_run) and status.runs:
        waits = "1 asset waits for its" if unseen == 1 else f"{unseen:,} assets wait for their"
        parts[0] += f"\n{waits} first run."
    if status.next:
        parts.append(_next(status))
    if status.dead:
        parts.append(_dead(status))
    if status.failing:
        parts.append(_failing(status))
    if status.runs:
        parts.append(_runs(status))
    else:
        parts.append("No run yet: `asset-sync sync priority --dry-run` shows what one would do.")
    return "\n\n".join(parts)


def _levels(status: Status) -> str:
    rows = [
        [
            one.level.value,
            str(one.waiting),
            str(one.leased),
            red(str(one.dead)) if one.dead else "0",
            duration(one.oldest_seconds),
        ]
        for one in status.levels
    ]
    return table(["level", ">waiting", ">leased", ">dead", ">oldest, due for"], rows)


def _budget(status: Status) -> str:
    budget = status.budget
    line = f"{bold('budget')}    {gauge(budget)}"
    if budget.blocked_seconds:
        wait = duration(budget.blocked_seconds)
        why = "the API refused one, or `db partition` runs"
        line += f"\n          {yellow(f'no call for {wait}: {why}')}"
    elif not budget.free:
        line += f", the next in {duration(budget.next_free_seconds)}"
    last = moment(status.last_priority_update)
    line += f"\n{bold('priority')}  last refreshed {last}{'' if last == 'never' else ' UTC'}"
    return f"{line}\n{bold('data')}      {_data(status.ages)}"


def _data(ages: Mapping[str, DataAge]) -> str:
    """Say how old the newest bars are, and how many markets are closed."""
    known = {symbol: one.age_seconds for symbol, one in ages.items() if one.age_seconds is not None}
    if not known:
        return "no bars yet"
    newest, oldest = (choose(known, key=known.__getitem__) for choose in (min, max))
    how_old = f"{duration(known[newest])} old" if known[newest] else "still running"
    said = f"newest bar {how_old} ({newest})"
    if oldest != newest:
        said += f", oldest {duration(known[oldest])} ({oldest})"
    opening = [one.opens_at for one in ages.values() if one.opens_at is not None]
    if opening:
        closed = f"{len(opening)} assets' markets are closed, the first until"
        if len(opening) == 1:
            closed = "1 asset's market is closed until"
        said += f"\n          {closed} {moment(min(opening))} UTC"
    return said


def age_as_json(symbol: str, one: DataAge) -> dict[str, object]:
    """Return the age of an asset's data as programs get it."""
    return {"symbol": symbol, **plain(one)}


def _next(status: Status) -> str:
    rows = [
        [
            one.symbol,
            one.feed,
            one.level.value,
            moment(one.due_at),
            duration(one.wait_seconds) if one.wait_seconds else "now",
        ]
        for one in status.next
    ]
    columns = ["next", "feed", "level", "due since (UTC)", ">tried in"]
    return table(columns, rows, spare=["feed", "level"])


def _dead(status: Status) -> str:
    errors = (red(wrapped(f"{one.symbol}: {one.error}", sys.stdout)) for one in status.dead)
    return "\n".join([bold("dead"), *errors])


def _failing(status: Status) -> str:
    lines = [
        wrapped(
            f"{one.symbol} ({one.strikes} times in a row, tried again in "
            f"{duration(one.wait_seconds)}): {one.error}",
            sys.stdout,
        )
        for one in status.failing[:_DEAD]
    ]
    if len(status.failing) > _DEAD:
        lines.append(f"and {len(status.failing) - _DEAD} more: asset-sync queue list")
    return "\n".join([bold("failing"), *map(yellow, lines)])


def _runs(status: Status) -> str:
    rows = [
        [
            short_moment(one.started_at),
            one.command,
            str(one.updated),
            red(str(one.failed)) if one.failed else "0",
            str(one.api_calls),
            duration(one.seconds),
            ended(one.reason_ended),
        ]
        for one in status.runs
    ]
    columns = ["last runs (UTC)", "command", ">refreshed", ">failed", ">calls", ">took", "ended"]
    return table(columns, rows, spare=[">took", ">calls"])


def figures(levels: Sequence[LevelStatus]) -> dict[str, object]:
    """Return how full the queue is as the part of the JSON that `status` and `health` share."""
    ages = [one.oldest_seconds for one in levels if one.oldest_seconds is not None]
    return {
        "total_items": sum(one.waiting + one.leased for one in levels),
        "by_priority": {one.level.name: one.waiting + one.leased for one in levels},
        "oldest_item_age_seconds": max(ages, default=None),
        "leased": sum(one.leased for one in levels),
        "dead": sum(one.dead for one in levels),
    }


def _as_json(status: Status) -> dict[str, object]:
    """Return the status as the object that other programs rely on."""
    last = status.last_priority_update
    return {
        **figures(status.levels),
        "api_calls_remaining": status.budget.free,
        "next_slot_in_seconds": status.budget.next_free_seconds,
        "blocked_seconds": status.budget.blocked_seconds,
        "last_priority_update": last.astimezone(UTC).isoformat() if last else None,
        "waiting_for_first_run": status.waiting_for_first_run,
        "data": [age_as_json(symbol, one) for symbol, one in status.ages.items()],
        "next": [plain(one) for one in status.next],
        "dead_items": [plain(one) for one in status.dead],
        "failing_items": [plain(one) for one in status.failing],
        "last_runs": [plain(one) for one in status.runs],
    }
