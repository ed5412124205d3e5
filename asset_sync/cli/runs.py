"""`asset-sync runs` and `runs show`: what the last runs did, call by call."""

import json
from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer

from asset_sync.cli.options import (
    Config,
    Json,
    PlainUsage,
    Quiet,
    Verbose,
    answer,
    common,
    complain,
    exactly,
    plain,
)
from asset_sync.cli.queue import ended
from asset_sync.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asset_sync.store.runs import CallMade, Run

app = typer.Typer()


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many.")] = 20,
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
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.store import runs  # noqa: PLC0415

    with database.session(options.settings().conninfo) as db:
        found = runs.last(db, limit)
    if as_json:
        exactly(json.dumps({"runs": [plain(run) for run in found]}, indent=2))
    elif found:
        exactly(_runs(found))
        _tell_hosts(found)
    else:
        answer("No run yet: `asset-sync sync priority --dry-run` shows what one would do.")


@app.command("show", cls=PlainUsage)
def runs_show(
    context: typer.Context,
    run_id: Annotated[int, typer.Argument(metavar="ID", help="As `asset-sync runs` lists it.")],
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show a run with each of its calls.

    Example: asset-sync runs show 42
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.store import runs  # noqa: PLC0415

    with database.session(common(context, config, quiet, verbose).settings().conninfo) as db:
        run = runs.get(db, run_id)
        calls = runs.calls(db, run_id)
    if run is None:
        complain(
            f"asset-sync: there is no run {run_id} (runs are kept {runs.RUNS_KEPT_DAYS} days)."
        )
        raise typer.Exit(ExitCode.USAGE)
    if as_json:
        shown = {**plain(run), "calls": [plain(call) for call in calls]}
        exactly(json.dumps(shown, indent=2))
        return
    exactly(_runs([run]))
    answer(f"It ran on {run.host}.")
    if calls:
        exactly(f"\n{_calls(calls)}")
    for call in calls:
        if call.error:
            answer(f"{', '.join(call.symbols[:3])}: {call.error}")


def _tell_hosts(found: "Sequence[Run]") -> None:
    """Say on which hosts the runs were, if on several: a column would not fit."""
    from asset_sync.cli.format import short_moment  # noqa: PLC0415

    latest: dict[str, Run] = {}
    for run in found:  # the latest first
        latest.setdefault(run.host, run)
    if len(latest) > 1:
        told = (f"{host} (last {short_moment(run.started_at)})" for host, run in latest.items())
        answer(f"\nHosts: {', '.join(told)}")


def _runs(found: "Sequence[Run]") -> str:
    from asset_sync.cli.format import red, table  # noqa: PLC0415

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


def _calls(calls: "Sequence[CallMade]") -> str:
    from asset_sync.cli.format import duration, red, short_moment, table  # noqa: PLC0415

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
