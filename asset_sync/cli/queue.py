"""`asset-sync queue status`."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from asset_sync.cli.options import Config, Json, Quiet, Verbose, answer, common

if TYPE_CHECKING:
    from rich.console import Console

    from asset_sync.database import Connection
    from asset_sync.queue import Dead, LevelStatus, Upcoming
    from asset_sync.runs import Run
    from asset_sync.settings import Settings
    from asset_sync.slots import Budget

app = typer.Typer(help="See how the queue stands.", no_args_is_help=True)

_NEXT, _RUNS, _DEAD = 5, 5, 5


@app.command("status")
def queue_status(
    context: typer.Context,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show who waits, what comes next, how many calls are left, and the last runs.

    Example: asset-sync queue status --json
    """
    from asset_sync import database  # noqa: PLC0415

    settings = common(context, config, quiet, verbose).settings()
    with database.session(settings.conninfo) as db:
        status = look(db, settings)
    if as_json:
        answer(json.dumps(_as_json(status), indent=2))
    else:
        from asset_sync.cli.show import console  # noqa: PLC0415

        show(console(), status)


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that `queue status` shows."""

    levels: "tuple[LevelStatus, ...]"
    next: "tuple[Upcoming, ...]"
    dead: "tuple[Dead, ...]"
    budget: "Budget"
    runs: "tuple[Run, ...]"
    last_priority_update: datetime | None


def look(db: "Connection", settings: "Settings") -> Status:
    """Read how things stand from the database."""
    from asset_sync import queue, runs, slots  # noqa: PLC0415

    limit, provider = settings.rate_limit, settings.provider
    rate = slots.Rate(limit.calls, limit.period_seconds, provider.call_timeout_seconds)
    fresh = queue.last_success(db, [asset.symbol for asset in settings.critical])
    return Status(
        queue.levels(db),
        queue.line(db, _NEXT),
        queue.dead(db, _DEAD),
        slots.budget(db, rate),
        runs.last(db, _RUNS),
        max(fresh.values(), default=None),
    )


def show(on: "Console", status: Status) -> None:
    """Print the status as it looks on a terminal 80 columns wide."""
    _show_levels(on, status)
    _show_budget(on, status)
    if status.next:
        _show_next(on, status)
    if status.dead:
        _show_dead(on, status)
    if status.runs:
        _show_runs(on, status)
    else:
        on.print("\nNo run yet: asset-sync sync priority --dry-run shows what one would do.")


def _show_levels(on: "Console", status: Status) -> None:
    from asset_sync.cli.show import duration, table  # noqa: PLC0415

    made = table(on, "level", ">waiting", ">leased", ">dead", ">oldest, due for")
    for one in status.levels:
        dead = f"[red]{one.dead}[/]" if one.dead else "0"
        made.add_row(
            one.level.value, str(one.waiting), str(one.leased), dead, duration(one.oldest_seconds)
        )
    on.print(made)


def _show_budget(on: "Console", status: Status) -> None:
    from asset_sync.cli.show import duration, gauge, moment  # noqa: PLC0415

    budget = status.budget
    when = f", next free in {duration(budget.next_free_seconds)}" if not budget.free else ""
    held = f", {budget.reserved} kept for the next priority run" if budget.reserved else ""
    on.print(f"\n[bold]Budget[/]  {gauge(budget)}{when}{held}")
    if budget.blocked_seconds:
        wait = duration(budget.blocked_seconds)
        on.print(f"        [yellow]the API refused a call; the next one in {wait}[/]")
    on.print(f"[bold]Priority assets last fresh[/]  {moment(status.last_priority_update)} UTC")


def _show_next(on: "Console", status: Status) -> None:
    from asset_sync.cli.show import duration, moment, table  # noqa: PLC0415

    made = table(on, "next", "feed", "level", "due since (UTC)", ">tried in")
    for one in status.next:
        delay = duration(one.wait_seconds) if one.wait_seconds else "now"
        made.add_row(one.symbol, one.feed.value, one.level.value, moment(one.due_at), delay)
    on.print()
    on.print(made)


def _show_dead(on: "Console", status: Status) -> None:
    on.print("\n[bold]dead[/]")
    for one in status.dead:
        on.print(f"  {one.error}", style="red", markup=False)


def _show_runs(on: "Console", status: Status) -> None:
    from asset_sync.cli.show import duration, moment, table  # noqa: PLC0415

    made = table(
        on, "last runs (UTC)", "command", ">updated", ">failed", ">calls", ">took", "ended"
    )
    for one in status.runs:
        made.add_row(
            moment(one.started_at),
            one.command,
            str(one.updated),
            f"[red]{one.failed}[/]" if one.failed else "0",
            str(one.api_calls),
            duration(one.seconds),
            (one.reason_ended or "at work").replace("_", " "),
        )
    on.print()
    on.print(made)


def _as_json(status: Status) -> dict[str, object]:
    """Return the status as the object that other programs rely on."""
    ages = [one.oldest_seconds for one in status.levels if one.oldest_seconds is not None]
    last = status.last_priority_update
    return {
        "total_items": sum(one.waiting + one.leased for one in status.levels),
        "by_priority": {one.level.name: one.waiting + one.leased for one in status.levels},
        "oldest_item_age_seconds": max(ages, default=None),
        "leased": sum(one.leased for one in status.levels),
        "dead": sum(one.dead for one in status.levels),
        "api_calls_remaining": status.budget.free,
        "next_slot_in_seconds": status.budget.next_free_seconds,
        "blocked_seconds": status.budget.blocked_seconds,
        "last_priority_update": last.astimezone(UTC).isoformat() if last else None,
        "next": [_plain(one) for one in status.next],
        "dead_items": [_plain(one) for one in status.dead],
        "last_runs": [_plain(one) for one in status.runs],
    }


def _plain(one: "Upcoming | Dead | Run") -> dict[str, object]:
    """Return a dataclass with its times as text."""
    return {
        key: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for key, value in asdict(one).items()
    }
