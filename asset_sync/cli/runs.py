"""`asset-sync runs` and `runs show`: what the last runs did, call by call."""

import json
from collections.abc import Sequence
from datetime import UTC
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.commands import Command
from asset_sync.cli.format import duration, ended, red, short_moment, table
from asset_sync.cli.options import (
    MOST_ROWS,
    Common,
    Config,
    Json,
    Quiet,
    Verbose,
    common,
    with_common_options,
)
from asset_sync.cli.output import err, out, out_raw, plain
from asset_sync.cli.settings import settings_for
from asset_sync.errors import ExitCode
from asset_sync.store import runs
from asset_sync.store.runs import CallMade, Run

app = typer.Typer(name="runs", add_completion=False)


@app.callback(invoke_without_command=True)
def runs_list(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST_ROWS, help="How many.")
    ] = 20,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the last runs: what each did, why it ended, how long it waited.

    Example: asset-sync runs --limit 50
    """
    options = context.obj = common(context, config, quiet, verbose)
    if context.invoked_subcommand is not None:
        return
    with database.session(settings_for(options).conninfo) as db:
        found = runs.last(db, limit)
    if as_json:
        out_raw(json.dumps({"runs": [plain(run) for run in found]}, indent=2))
    elif found:
        out_raw(_runs(found))
        _tell_hosts(found)
    else:
        out("No run yet: `asset-sync sync priority --dry-run` shows what one would do.")


@app.command("show", cls=Command)
@with_common_options
def runs_show(
    options: Common,
    run_id: Annotated[int, typer.Argument(metavar="ID", help="As `asset-sync runs` lists it.")],
    as_json: Json = False,
) -> None:
    """Show a run with each of its calls.

    Example: asset-sync runs show 42
    """
    with database.session(settings_for(options).conninfo) as db:
        run = runs.get(db, run_id)
        calls = runs.calls(db, run_id)
    if run is None:
        err(f"asset-sync: there is no run {run_id} (runs are kept {runs.RUNS_KEPT_DAYS} days).")
        raise typer.Exit(ExitCode.USAGE)
    if as_json:
        shown = {**plain(run), "calls": [plain(call) for call in calls]}
        out_raw(json.dumps(shown, indent=2))
        return
    out_raw(_runs([run]))
    out(f"It ran on {run.host}.")
    if calls:
        out_raw(f"\n{_calls(calls)}")
    for call in calls:
        if call.error:
            out(f"{', '.join(call.symbols[:3])}: {call.error}")


def _tell_hosts(found: Sequence[Run]) -> None:
    """Say on which hosts the runs were, if on several: a column would not fit."""
    latest: dict[str, Run] = {}
    for run in found:  # the latest first
        latest.setdefault(run.host, run)
    if len(latest) > 1:
        hosts = (f"{host} (last {short_moment(run.started_at)})" for host, run in latest.items())
        out(f"\nHosts: {', '.join(hosts)}")


def _runs(found: Sequence[Run]) -> str:
    rows = [
        [
            str(run.id),
            f"{run.started_at.astimezone(UTC):%m-%d %H:%M}",
            run.command,
            str(run.updated),
            red(str(run.failed)) if run.failed else "0",
            str(run.api_calls),
            f"{run.bars_written:,}",
            f"{run.waited_seconds:.0f} s" if run.waited_seconds else "-",
            ended(run.reason_ended),
        ]
        for run in found
    ]
    columns = [">id", "began (UTC)", "command", ">refreshed", ">failed", ">calls", ">bars", ">wait"]
    return table([*columns, "ended"], rows, spare=[">wait", ">bars", ">calls", "command"])


def _calls(calls: Sequence[CallMade]) -> str:
    rows = [
        [
            short_moment(call.ended_at),
            call.feed,
            call.symbols[0] + (f" +{len(call.symbols) - 1}" if len(call.symbols) > 1 else ""),
            call.outcome if call.outcome == "ok" else red(call.outcome),
            duration(call.seconds),
            f"{call.bars_written:,}",
        ]
        for call in calls
    ]
    columns = ["call ended (UTC)", "feed", "assets", "outcome", ">took", ">bars"]
    return table(columns, rows, spare=["feed", ">took"])
