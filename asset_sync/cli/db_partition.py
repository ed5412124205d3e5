"""`asset-sync db partition`: monthly partitions for the bars, and back."""

from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.format import duration
from asset_sync.cli.options import Common, with_common_options
from asset_sync.cli.output import agreed, err, out
from asset_sync.cli.settings import settings_for
from asset_sync.errors import ExitCode
from asset_sync.ops import partition
from asset_sync.store import partitioning
from asset_sync.store.months import BARS
from asset_sync.store.partitioning import Layout, Survey

# Sorting takes as much space on the disk as the rows, besides the copy.
_SPACE = 2


@with_common_options
def db_partition(
    options: Common,
    undo: Annotated[
        bool, typer.Option("--undo", help="Make one table of the monthly partitions.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give the table of bars one partition for each month, while runs wait.

    It pays from about 30 million bars on; docs/operations.md has the figures. If it is interrupted,
    the table stays as it was.

    Example: asset-sync db partition
    """
    settings = settings_for(options)
    wanted = Layout.TABLE if undo else Layout.MONTHS
    with database.session(settings.conninfo) as db:
        found = partitioning.survey(db)
        if found.layout is Layout.MONTHS and not undo:
            made = partition.complete(db)
            more = f"; {made} that were missing were made" if made else ""
            out(f"{BARS} is partitioned by month already{more}.")
            return
        if found.layout is wanted:
            out(f"{BARS} is {wanted.value} already.")
            return
        if found.layout not in (Layout.TABLE, Layout.MONTHS):
            out(f"{BARS} is {found.layout.value}: it is left alone.")
            return
        if found.obstacles:
            raise database.DatabaseError("\n".join([*found.obstacles, "Nothing was changed."]))
        _explain(options, found, wanted)
        if not (yes or agreed("Continue?")):
            err("Nothing was changed; --yes does it without asking.")
            raise typer.Exit(ExitCode.USAGE)
        try:
            partition.change(db, settings, wanted, tell=options.say)
        except KeyboardInterrupt:
            err("Interrupted; nothing was changed.")
            raise
        done = partitioning.survey(db)
    if undo:
        options.confirm(f"{BARS} is one table again.")
    else:
        options.confirm(
            f"{BARS} has {done.partitions} partitions. Runs make those of new months."
            " `asset-sync db partition --undo` makes one table of them again."
        )


def _explain(options: Common, found: Survey, wanted: Layout) -> None:
    """Say what is changed, how much space it needs, and who waits for how long."""
    into = "one table" if wanted is Layout.TABLE else "one partition for each month"
    options.say(
        f"{BARS} holds about {found.bars:,} bars ({_size(found.bytes)})."
        f" They are copied into {into}."
    )
    options.say(
        f"Until it is done, the server needs up to {_size(_SPACE * found.bytes)} more space."
    )
    options.say(
        f"Runs, and other programs that write bars, wait for about {duration(found.seconds)};"
        " programs that read them wait a moment at the end."
    )
    if found.views:
        options.say(f"Made again, with their rights: {', '.join(found.views)}.")


def _size(number: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:  # noqa: PLR2004  # the next unit
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
