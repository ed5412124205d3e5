"""How things look: consoles, tables, durations. Imported where something is shown."""

import sys
from datetime import UTC, datetime
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from asset_sync.slots import Budget

_WIDTH_OFF_A_TERMINAL = 120
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_MOST_DOTS = 20


def console(stream: TextIO | None = None) -> Console:
    """Return a console that writes to stdout, or to this stream; plain where nobody looks."""
    stream = stream or sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=_WIDTH_OFF_A_TERMINAL, color_system=None)


def table(on: Console, *columns: str) -> Table:
    """Return an empty table; a column whose name starts with `>` is set to the right."""
    made = Table(
        box=box.SIMPLE_HEAD if on.is_terminal else None,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    for name in columns:
        made.add_column(
            name.lstrip(">"), justify="right" if name.startswith(">") else "left", no_wrap=True
        )
    return made


def duration(seconds: float | None) -> str:
    """Return a length of time in at most two units: `0.4 s`, `42 s`, `4 min 2 s`, `3 d 4 h`."""
    if seconds is None:
        return "-"
    if seconds < 9.95:  # noqa: PLR2004  # below ten seconds a tenth matters
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, smaller_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def moment(at: datetime | None) -> str:
    """Return a time of the database's as UTC, to the second."""
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def price(value: float | None) -> str:
    """Return a price with six digits, which is what a quote of any size needs."""
    if value is None:
        return "-"
    decimals = max(0, 6 - len(f"{abs(value):.0f}"))
    return f"{value:,.{decimals}f}"


def gauge(budget: Budget) -> str:
    """Return the budget as dots, one a slot, used ones filled, and in words."""
    dots = ""
    if budget.calls <= _MOST_DOTS:
        dots = "●" * budget.used + "○" * budget.free + " "
    return f"{dots}{budget.used} of {budget.calls} slots used"
