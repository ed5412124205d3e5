"""The command line: arguments in; tables, JSON and exit codes out. No SQL and no HTTP here."""

import os
import sys
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from asset_sync import __version__
from asset_sync.cli.commands import COMMANDS
from asset_sync.cli.exits import explain
from asset_sync.cli.options import Config, Quiet, Verbose, common
from asset_sync.cli.output import discard_unwritten, err, out
from asset_sync.cli.signals import signals_as_exceptions
from asset_sync.errors import ExitCode

_root = typer.Typer(
    name="asset-sync",
    help="Keep market data fresh in PostgreSQL under a hard API limit.",
    epilog="First: asset-sync demo. With a key: asset-sync sync priority --dry-run.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        out(f"asset-sync {__version__}")
        raise typer.Exit


@_root.callback()
def root(
    context: typer.Context,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Read the options before the command's name."""
    context.obj = common(context, config, quiet, verbose)


app: TyperGroup = typer.main.get_command(_root)  # type: ignore[assignment]  # it has a callback
app.commands = COMMANDS


def main() -> NoReturn:
    """Run the command line; every error becomes a message for the user and an exit code."""
    try:
        with signals_as_exceptions():
            _open_streams()
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, TextIOWrapper):
                    stream.reconfigure(errors="replace")  # a terminal that has no ● gets a ?
            app()
    except KeyboardInterrupt:  # typer handles it only within a command
        discard_unwritten()
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit as end:
        if end.code in {ExitCode.INTERRUPTED, ExitCode.TERMINATED}:
            discard_unwritten()
        raise
    except Exception as error:  # noqa: BLE001  # the user gets a message, not a traceback
        code, why = explain(error)
        err(f"asset-sync: {why}")
        discard_unwritten()
        sys.exit(code)
    sys.exit(ExitCode.DONE)


def _open_streams() -> None:
    """Open the null device for each standard stream that the caller has closed, as with `2>&-`.

    Otherwise the next file opened, such as the database's socket, would take the stream's place.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this
            os.set_inheritable(number, True)  # for the hooks
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
