"""`asset-sync sync priority` and `sync queue`."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.exits import explain
from asset_sync.cli.format import counted, duration, moment
from asset_sync.cli.log import Log, LogFormat
from asset_sync.cli.options import (
    Common,
    Json,
    finite,
    with_common_options,
)
from asset_sync.cli.output import out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.cli.watch import watching
from asset_sync.database import Connection
from asset_sync.errors import ExitCode
from asset_sync.model import Lane
from asset_sync.ops.hooks import Ending, Monitors
from asset_sync.settings import Settings
from asset_sync.sync import loop
from asset_sync.sync.dry_run import PlannedCall, plan
from asset_sync.sync.report import Ended, Report

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the calls it would make; make and write nothing.")
]
MaxRuntime = Annotated[
    float | None,
    typer.Option(
        "--max-runtime",
        metavar="SECONDS",
        min=0.1,
        callback=finite,
        help="The longest run. Default: 60 s for priority, cron's interval less 10 s for queue.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, help="Refresh at most N assets.", show_default=False
    ),
]

Format = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", help="The format of the lines on stderr: text, or json for a collector."
    ),
]


@with_common_options
def sync_priority(
    options: Common,
    dry_run: DryRun = False,
    as_json: Json = False,
    max_runtime: MaxRuntime = None,
    limit: Limit = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Refresh the priority assets that are due, first to last.

    Example: asset-sync sync priority --dry-run
    """
    if dry_run:
        _plan(options, Lane.PRIORITY, as_json, max_runtime, limit)
    else:
        _sync(options, Lane.PRIORITY, as_json, max_runtime, limit, log_format)


@with_common_options
def sync_queue(
    options: Common,
    dry_run: DryRun = False,
    as_json: Json = False,
    max_runtime: MaxRuntime = None,
    limit: Limit = None,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Refresh all other assets that are due, the longest due first.

    Example: asset-sync sync queue --max-runtime 60
    """
    if dry_run:
        _plan(options, Lane.QUEUE, as_json, max_runtime, limit)
    else:
        _sync(options, Lane.QUEUE, as_json, max_runtime, limit, log_format)


def _plan(
    options: Common, lane: Lane, as_json: bool, max_runtime: float | None, limit: int | None
) -> None:
    """Print what a run would do."""
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        calls = plan(db, settings, lane, max_runtime_seconds=max_runtime, limit=limit)
    _show_plan(calls, lane, as_json)


def _sync(
    options: Common,
    lane: Lane,
    as_json: bool,
    max_runtime: float | None,
    limit: int | None,
    log_format: LogFormat,
) -> None:
    """Run, and report to the monitoring hooks how it ended, even after an error."""
    log = Log(options, lane.value, log_format)
    monitors = report = None
    try:
        settings = settings_for(options, log.info)
        monitors = _monitors(settings, lane)
        report = _run(log, settings, lane, max_runtime, limit)
        code = exit_code_of(report)
        log.end(code, report.message, summary(report), _as_json(report), is_news=report.is_news)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
        code, why = explain(error)
        log.end(code, why)
    try:
        if report is not None and as_json:
            out_raw(json.dumps(_as_json(report), indent=2))
        elif report is not None and not options.quiet and not log.is_json:
            out(summary(report))
    finally:  # the hooks run even if the report cannot be printed
        if monitors is not None:
            _tell(monitors, log, code)
    raise typer.Exit(code)


def _tell(monitors: Monitors, log: Log, code: ExitCode) -> None:
    for trouble in monitors.end(Ending(code, log.run_id, tuple(log.lines))):
        log.warning(trouble)


def _monitors(settings: Settings, lane: Lane) -> Monitors | None:
    """Report to the monitoring hooks that a run begins; return None if there are none."""
    if settings.monitoring.ping_url is None and not settings.monitoring.on_failure:
        return None
    monitors = Monitors(settings.monitoring, lane.value, os.environ)
    monitors.begin()
    return monitors


def _run(
    log: Log, settings: Settings, lane: Lane, max_runtime: float | None, limit: int | None
) -> Report:
    with database.session(settings.conninfo) as db:
        return run_and_watch(log, db, settings, lane, max_runtime, limit)


def run_and_watch(
    log: Log,
    db: Connection,
    settings: Settings,
    lane: Lane,
    max_runtime: float | None = None,
    limit: int | None = None,
) -> Report:
    """Run, and show on stderr what happens meanwhile."""
    with watching(log) as listener:
        return loop.run(
            db, settings, lane, max_runtime_seconds=max_runtime, limit=limit, tell=listener
        )


def exit_code_of(report: Report) -> ExitCode:
    """Return the exit code of a run."""
    if report.reason_ended in {Ended.KEY_REFUSED, Ended.PLAN_REFUSED}:
        return ExitCode.REFUSED
    if report.failed or report.reason_ended is Ended.UNAVAILABLE:
        return ExitCode.SOME_FAILED
    return ExitCode.DONE


def summary(report: Report) -> str:
    """Return a run in one line."""
    failed = f", {len(report.failed)} failed" if report.failed else ""
    waited = f", waited {duration(report.waited_seconds)}" if report.waited_seconds else ""
    calls = "1 call" if report.api_calls_used == 1 else f"{report.api_calls_used} calls"
    if report.history_calls or report.history_failed:
        lost = f", failed for {len(report.history_failed)}" if report.history_failed else ""
        calls += f" ({report.history_calls} for history{lost})"
    bars = counted(report.bars_written, "bar")
    return (
        f"{report.lane.value}: {len(report.updated)} refreshed{failed}, {calls}, "
        f"{bars} written{waited}. {_why(report)}"
    )


def _why(report: Report) -> str:
    if report.closed_until is not None:
        return f"Nothing was due: the markets are closed until {moment(report.closed_until)} UTC."
    return _WHY[report.reason_ended.value]


_WHY = {
    "nothing_due": "Nothing was due.",
    "done": "Nothing more is due.",
    "budget_used_up": "The budget is used up until after the run's end; the next run continues.",
    "time_up": "The time is up; the next run continues.",
    "limit_reached": "The limit of --limit is reached.",
    "disabled": "Priority runs are switched off (PRIORITY_ASSETS_ENABLED).",
    "key_refused": "The API refuses the key.",
    "plan_refused": "The API refuses the plan.",
    "provider_unavailable": "The API does not answer.",
}


def _show_plan(calls: tuple[PlannedCall, ...], lane: Lane, as_json: bool) -> None:
    """Print the calls that a run would make, each with its endpoint and when its slot is free."""
    if as_json:
        out_raw(json.dumps({"calls": [call._asdict() for call in calls]}, indent=2))
        return
    if not calls:
        out(f"{lane.value}: nothing is due; no call would be made.")
        return
    for number, call in enumerate(calls, start=1):
        when = "after this run's end" if call.at_seconds is None else "now"
        if call.at_seconds:
            when = f"in {duration(call.at_seconds)}"
        names = ", ".join(call.symbols[:5]) + (" …" if len(call.symbols) > 5 else "")  # noqa: PLR2004
        out_raw(f"{number}. {names}  {call.feed}  {when}\n   GET {call.endpoint}")
    many = "1 call" if len(calls) == 1 else f"{len(calls)} calls"
    out(f"{many}, none of which was made; nothing was written.")


def _as_json(report: Report) -> dict[str, object]:
    return {
        "run_id": report.run_id,
        "command": report.lane.value,
        "reason_ended": report.reason_ended.value,
        "message": report.message,
        "updated": report.updated,
        "failed": [asdict(failure) for failure in report.failed],
        "api_calls_used": report.api_calls_used,
        "bars_written": report.bars_written,
        "waited_seconds": round(report.waited_seconds, 3),
        "left_out": report.left_out,
        "history_calls": report.history_calls,
        "history_failed": [asdict(failure) for failure in report.history_failed],
        "closed_until": report.closed_until.isoformat() if report.closed_until else None,
    }
