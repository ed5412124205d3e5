"""The options that several commands take: the settings file, and how much is printed."""

import inspect
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Concatenate, NamedTuple, ParamSpec

import typer

from asset_sync.cli.output import err, out

_OwnOptions = ParamSpec("_OwnOptions")

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The settings file.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only problems.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print which settings and database are used.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for a program.")]


MOST_ROWS = 1_000_000
"""That `--limit` can ask a table for."""


def finite(seconds: float | None) -> float | None:
    """Return what an option of seconds says; refuse infinity and NaN, which no time lasts."""
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is not a number of seconds.")
    return seconds


class Common(NamedTuple):
    """The options that every command takes, before or after its name."""

    config: Path | None = None
    quiet: bool = False
    verbose: bool = False

    def confirm(self, text: str) -> None:
        """Print to stdout what was done, unless asked to be quiet."""
        if not self.quiet:
            out(text)

    def say(self, text: str) -> None:
        """Print a remark to stderr, unless asked to be quiet."""
        if not self.quiet:
            err(text)


def common(
    context: typer.Context,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Common:
    """Return the common options, given before or after the command's name."""
    before = context.obj if isinstance(context.obj, Common) else Common()
    return Common(config or before.config, quiet or before.quiet, verbose or before.verbose)


def with_common_options(
    command: Callable[Concatenate[Common, _OwnOptions], None],
) -> Callable[..., None]:
    """Give a command the common options; it gets them as its first argument."""
    context, *added = inspect.signature(common).parameters.values()
    _, *own = inspect.signature(command).parameters.values()

    @wraps(command)
    def run(
        context: typer.Context,
        config: Path | None,
        quiet: bool,
        verbose: bool,
        *arguments: _OwnOptions.args,
        **options: _OwnOptions.kwargs,
    ) -> None:
        command(common(context, config, quiet, verbose), *arguments, **options)

    run.__signature__ = inspect.Signature([context, *own, *added])  # type: ignore[attr-defined]  # what typer reads
    return run
