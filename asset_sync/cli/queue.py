"""`asset-sync queue status`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from asset_sync.cli.options import Config, Json, Quiet, Verbose, common, exactly, plain, wrapped
from asset_sync.errors import AssetSyncError

if TYPE_CHECKING:
    from asset_sync.budget.slots import Budget
    from asset_sync.database import Connection
    from asset_sync.queue import Dead, Failing, LevelStatus, Upcoming
    from asset_sync.settings import Settings
    from asset_sync.store.runs import Run

app = typer.Typer(help="See and tend the queue.", no_args_is_help=True)

_NEXT, _RUNS, _DEAD = 5, 5, 5
_WATCH_SECONDS = 1.0
_ENDED = {
    "provider_unavailable": "no_answer",
    "limit_reached": "limit",
}
"""Shorter words, where the line would be wider than 80 columns."""


@app.command("status")
def queue_status(
    context: typer.Context,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep it on the screen, until Ctrl-C.")
    ] = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show who waits, what comes next, how many calls are left, and the last runs.

    Example: asset-sync queue status --watch
    """
    from asset_sync import database  # noqa: PLC0415

    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter("--watch is for a terminal; a program asks again with --json.")
    settings = common(context, config, quiet, verbose).settings()
    if watch:
        _keep_on_screen(settings)
        return
    with database.session(settings.conninfo) as db:
        status = look(db, settings)
    if as_json:
        exactly(json.dumps(_as_json(status), indent=2))
    else:
        exactly(text(status))


def _keep_on_screen(settings: "Settings") -> None:
    """Show it anew every second, until Ctrl-C, which leaves the terminal as it was."""
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    with suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as screen:
        for shown in _again_and_again(settings):
            screen.update(Text.from_ansi(shown, no_wrap=True), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _again_and_again(settings: "Settings") -> Iterator[str]:
    """Give the status for ever; while the database is away, the last one and since when.

    Raises DatabaseError where the database was never there.
    """
    from asset_sync.database import DatabaseError, session  # noqa: PLC0415

    last, since = "", None
    while True:
        try:
            with session(settings.conninfo) as db:
                while True:
                    last, since = text(look(db, settings)), None
                    yield last
        except DatabaseError as error:
            if not last:
                raise
            since = since or datetime.now(UTC)
            yield f"{_away(error, since)}\n\n{last}"


def _away(error: AssetSyncError, since: datetime) -> str:
    from asset_sync.cli.format import duration, red  # noqa: PLC0415

    seconds = (datetime.now(UTC) - since).total_seconds()
    return red(
        wrapped(
            f"{since:%H:%M:%S} UTC, {duration(seconds)} ago: {error} Trying again; what stands"
            " below is older.",
            sys.stdout,
        )
    )


class Status(NamedTuple):
    """Everything that `queue status` shows."""

    levels: "tuple[LevelStatus, ...]"
    next: "tuple[Upcoming, ...]"
    dead: "tuple[Dead, ...]"
    failing: "tuple[Failing, ...]"
    budget: "Budget"
    runs: "tuple[Run, ...]"
    last_priority_update: datetime | None
    waiting_for_first_run: int
    """Assets of the settings that no run has seen yet."""


def look(db: "Connection", settings: "Settings") -> Status:
    """Read how things stand from the database."""
    from asset_sync import queue  # noqa: PLC0415
    from asset_sync.budget import slots  # noqa: PLC0415
    from asset_sync.queue import admin  # noqa: PLC0415
    from asset_sync.store import runs  # noqa: PLC0415

    rate = slots.rate_of(settings)
    fresh = queue.last_success(db, [asset.symbol for asset in settings.critical])
    symbols = [asset.symbol for asset in settings.assets]
    return Status(
        queue.levels(db, symbols),
        queue.line(db, symbols, _NEXT),
        queue.dead(db, symbols, _DEAD),
        queue.failing(db, symbols),
        slots.budget(db, rate),
        runs.last(db, _RUNS),
        max(fresh.values(), default=None),
        admin.unseen(db, [asset.symbol for asset in settings.assets]),
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
    from asset_sync.cli.format import duration, red, table  # noqa: PLC0415

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
    from asset_sync.cli.format import bold, duration, gauge, moment, yellow  # noqa: PLC0415

    budget = status.budget
    line = f"{bold('budget')}    {gauge(budget)}"
    if budget.blocked_seconds:
        wait = duration(budget.blocked_seconds)
        line += f"\n          {yellow(f'the API refused a call; the next one in {wait}')}"
    elif not budget.free:
        line += f", the next in {duration(budget.next_free_seconds)}"
    last = moment(status.last_priority_update)
    return f"{line}\n{bold('priority')}  last refreshed {last}{'' if last == 'never' else ' UTC'}"


def _next(status: Status) -> str:
    from asset_sync.cli.format import duration, moment, table  # noqa: PLC0415

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
    from asset_sync.cli.format import bold, red  # noqa: PLC0415

    errors = (red(wrapped(f"{one.symbol}: {one.error}", sys.stdout)) for one in status.dead)
    return "\n".join([bold("dead"), *errors])


def _failing(status: Status) -> str:
    from asset_sync.cli.format import bold, duration, yellow  # noqa: PLC0415

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
    from asset_sync.cli.format import duration, red, short_moment, table  # noqa: PLC0415

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


def ended(reason: str | None) -> str:
    """Return why a run ended; a run that has not said so is at work, or was killed."""
    if reason is None:
        return "at work"
    return _ENDED.get(reason, reason).replace("_", " ")


def figures(levels: "Sequence[LevelStatus]") -> dict[str, object]:
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
        "next": [plain(one) for one in status.next],
        "dead_items": [plain(one) for one in status.dead],
        "failing_items": [plain(one) for one in status.failing],
        "last_runs": [plain(one) for one in status.runs],
    }
