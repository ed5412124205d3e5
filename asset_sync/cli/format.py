"""Formats tables, durations, times and prices.

The tables are set by hand: rich, which draws the live line and the help, would cost `queue status`
25 ms of the 95 that it takes.
"""

import math
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from asset_sync.budget.slots import Budget
from asset_sync.cli.output import width_of

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_MOST_DOTS = 20
_GAP = "  "
_ENDED = {
    "provider_unavailable": "no_answer",
    "limit_reached": "limit",
}
"""Shorter words, where the line would be wider than 80 columns."""


def counted(number: int, what: str) -> str:
    """Return how many there are: `1 bar`, `1,234 bars`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bold(text: str) -> str:
    """Return text for headings."""
    return _painted(text, 1)


def dim(text: str) -> str:
    """Return text for unimportant parts."""
    return _painted(text, 2)


def red(text: str) -> str:
    """Return text for errors."""
    return _painted(text, 31)


def yellow(text: str) -> str:
    """Return text for warnings."""
    return _painted(text, 33)


def _painted(text: str, code: int) -> str:
    """Add colour, but only on a terminal and without NO_COLOR (no-color.org)."""
    plain = (
        not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()
) -> str:
    """Return the rows under their columns; a column named `>…` is aligned to the right.

    On a terminal that is too narrow for all of them the `spare` columns are left out, the first
    of these first: a line that is broken in the middle of a number cannot be read.
    """
    names = [name.lstrip(">") for name in columns]
    widths = [max(map(width_of, column)) for column in zip(names, *rows, strict=True)]
    kept = list(range(len(columns)))
    for name in spare:
        if _total(widths[number] for number in kept) <= _width_to_fill():
            break
        kept.remove(columns.index(name))

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (widths[number] - width_of(cells[number])) + cells[number]
            if columns[number].startswith(">")
            else cells[number] + " " * (widths[number] - width_of(cells[number]))
            for number in kept
        )
        return _GAP.join(padded).rstrip()

    head = [bold(line(names))]
    if sys.stdout.isatty():
        head.append(dim("─" * _total(widths[number] for number in kept)))
    return "\n".join([*head, *map(line, rows)])


def _total(widths: Iterable[int]) -> int:
    """Return how many columns of a terminal a line takes."""
    taken = [width + len(_GAP) for width in widths]
    return sum(taken) - len(_GAP)


def _width_to_fill() -> float:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


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


def short_moment(at: datetime) -> str:
    """Return a time of the database's as UTC, without the year."""
    return f"{at.astimezone(UTC):%m-%d %H:%M:%S}"


def short_date(at: datetime) -> str:
    """Return the day of a time of the database's, UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d}"


def price(value: float | None) -> str:
    """Return a price with six digits, which is what a quote of any size needs."""
    if value is None:
        return "-"
    decimals = max(0, 6 - len(f"{abs(value):.0f}"))
    return f"{value:,.{decimals}f}"


def gauge(budget: Budget) -> str:
    """Return the budget as dots, one a slot (used, free, kept), and in words."""
    dots = ""
    if budget.calls <= _MOST_DOTS:
        free = budget.free - budget.kept
        dots = "●" * budget.used + "○" * free + "◌" * budget.kept + " "
    return f"{dots}{slots_in_words(budget)}"


def slots_in_words(budget: Budget) -> str:
    """Return how many slots are used, free, and kept for the next priority run."""
    parts = [f"{budget.used} used"]
    if (free := budget.free - budget.kept) or not budget.kept:
        parts.append(f"{free} free")
    if budget.kept:
        parts.append(kept_slots(budget))
    return f"slots: {', '.join(parts)}"


def kept_slots(budget: Budget) -> str:
    """Say how many slots are kept for whom, and until when."""
    seconds = budget.reservation.expected_seconds
    when = f"in {duration(seconds)}" if seconds > 0 else "now"
    return f"{budget.kept} kept for sync priority {when}"


def ended(reason: str | None) -> str:
    """Return why a run ended; a run without a reason is at work, or was killed."""
    if reason is None:
        return "at work"
    return _ENDED.get(reason, reason).replace("_", " ")
