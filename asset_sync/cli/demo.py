"""`asset-sync demo` and `demo serve`."""

import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from asset_sync.cli import queue_status, sync
from asset_sync.cli.assets_list import show_assets
from asset_sync.cli.files import write_output
from asset_sync.cli.log import Log
from asset_sync.cli.options import Common, Quiet, Verbose, common, finite
from asset_sync.cli.output import err, out, out_raw
from asset_sync.cli.page import draw
from asset_sync.cli.report import private_path
from asset_sync.database import Connection
from asset_sync.demo import sandbox
from asset_sync.demo.server import StandIn
from asset_sync.errors import ExitCode
from asset_sync.model import Lane
from asset_sync.ops.report import report_of
from asset_sync.reading.export import Format, whole_file, write
from asset_sync.store.bars_query import Every, Selection

app = typer.Typer(name="demo", add_completion=False)

_NEXT_STEPS = """
With your own key (a free one will do); the data goes to the embedded PostgreSQL:
  export POLYGON_API_KEY=…
  {program} sync priority --dry-run
  {program} sync priority && {program} sync queue
  {program} export EURUSD --every 1h --output eurusd.csv
With a server of yours: export DATABASE_URL=postgresql://…, then {program} db init.
Then let cron do it: asset-sync schedule cron --install"""


@app.callback(invoke_without_command=True)
def demo(context: typer.Context, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Show what asset-sync does, on replayed data: no key and no server needed.

    Your settings and data are not used: the demo creates its own database each time.

    Example: asset-sync demo
    """
    if context.invoked_subcommand is None:
        _demo(common(context, None, quiet, verbose))


def _demo(options: Common) -> None:
    out(
        "The data is REPLAYED: real bars of 2014 and 2018 moved to now, some of them scaled.\n"
        f"The API is a stand-in on this machine; it allows {sandbox.CALLS} calls in "
        f"{sandbox.WINDOW_SECONDS:.0f} s, the real one in 60 s."
    )
    failed = False
    with (
        StandIn("free", calls=sandbox.CALLS, period_seconds=sandbox.WINDOW_SECONDS) as api,
        sandbox.trial(api) as (db, settings),
    ):
        for lane in Lane:
            out(f"\n$ asset-sync sync {lane.value}")
            report = sync.run_and_watch(Log(options, lane.value), db, settings, lane)
            out(sync.summary(report))
            failed = failed or sync.exit_code_of(report) is not ExitCode.DONE
        out("\n$ asset-sync queue status")
        out_raw(queue_status.text(queue_status.look(db, settings)))
        out("\n$ asset-sync assets list")
        fresh = show_assets(db, settings)
        page = private_path("demo.html")
        out(f"\n$ asset-sync report --output {page}")
        write_output(page, draw(report_of(db, settings), None))
        _export(db, page.with_name("eurusd.csv"))
        stored, different = sandbox.bars_unlike_the_replay(db)
        refused = api.refused
    out(
        f"\n{fresh} of {len(settings.assets)} assets fresh; {stored:,} bars stored, {different} "
        f"unlike those replayed; {refused} calls refused.\n"
        f"All of this on one page, for a browser: {page}"
    )
    if failed or different or refused or fresh < len(settings.assets):
        err("asset-sync: the demo failed; please report its output.")
        raise typer.Exit(ExitCode.SOME_FAILED)
    # After `make demo` the program is not on the PATH.
    program = "asset-sync" if shutil.which("asset-sync") else sys.argv[0]
    out(_NEXT_STEPS.format(program=program))


def _export(db: Connection, path: Path) -> None:
    """Write the hours of an asset into a file, as the command that is shown does."""
    out(f"\n$ asset-sync export EURUSD --every 1h --output {path}")
    bars = 0

    def count(_symbol: str, written: int) -> None:
        nonlocal bars
        bars += written

    with whole_file(path) as file:
        write(db, Selection(("EURUSD",), every=Every.HOUR), Format.CSV, file, count)
    out(f"{path}: {bars:,} bars.")


@app.command("serve")
def demo_serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    plan: Annotated[str, typer.Option(help="free, starter, developer or advanced.")] = "free",
    latency: Annotated[
        float,
        typer.Option(
            min=0, max=60, callback=finite, metavar="SECONDS", help="The most a call takes."
        ),
    ] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="A fault to simulate: NAME, NAME:COUNT or NAME@TICKER; repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve the stand-in API until Ctrl-C, for people who develop against it.

    Example: asset-sync demo serve --plan starter --latency 0.5 --fault server-error:3
    """
    with StandIn(plan, port=port, latency=(0.0, latency), faults=fault or ()) as api:
        out(f"export POLYGON_BASE_URL={api.base_url} POLYGON_API_KEY={api.key}")
        err(f"Replayed data, as on the plan {plan}; up until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        err(f"Calls: {len(api.log)}, of which refused as too many: {api.refused}.")
