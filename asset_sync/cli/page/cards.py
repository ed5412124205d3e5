"""The three cards below the banner: the calls of a day, the age of the data, history."""

import math
from collections.abc import Sequence

from asset_sync.cli.format import duration, moment
from asset_sync.cli.page.markup import counted, prose, section, text
from asset_sync.cli.plan import never_or
from asset_sync.ops.report import LevelAge, Report


def cards(report: Report) -> str:
    """Return the three cards below the banner."""
    return (
        '<div class="cards">'
        f"{section('calls', 'Calls of the last day', _calls(report), 'card')}"
        f"{section('ages', 'Age of the newest bars', _ages(report), 'card')}"
        f"{section('history', 'History', _past(report), 'card')}</div>"
    )


# --- the calls of the last day ---------------------------------------------------------------

_USES = ("priority", "queue", "history", "kept", "unused")
_ABOUT = {
    "priority": "priority runs",
    "queue": "the queue",
    "history": "history",
    "kept": "kept for priority runs",
    "unused": "unused",
}


def _calls(report: Report) -> str:
    day = report.day
    counts = {use: int(getattr(day, use)) for use in _USES}
    whole = max(1, sum(counts.values()))
    bars, x = [], 0.0
    for use, count in counts.items():
        width = 100 * count / whole
        bars.append(_part(use, x, width))
        x += width
    legend = "".join(
        f'<li><svg aria-hidden="true">{_part(use, 0, 100)}</svg>{_ABOUT[use]} <b>{count:,}</b>'
        f" <span>{count / whole:.0%}</span></li>"
        for use, count in counts.items()
    )
    return (
        f'<svg class="strip" aria-hidden="true">{"".join(bars)}</svg>'
        f'<ul class="legend">{legend}</ul>{_hours(report)}'
    )


def _part(use: str, x: float, width: float, y: float = 0, height: float = 100) -> str:
    """Draw a part of a chart, in per cent of it: so its pattern is not stretched with the chart."""
    return (
        f'<rect class="u-{use}" x="{x:.1f}%" y="{y:.1f}%" width="{width:.1f}%"'
        f' height="{height:.1f}%"/>'
    )


def _hours(report: Report) -> str:
    """Draw the calls of each hour, so that an outage shows."""
    day = report.day
    most = max(day.allowed / 24, *(sum(hour) for hour in day.hours), 1)
    drawn = []
    for number, hour in enumerate(day.hours):
        top = 100.0
        for use, count in zip(_USES, hour, strict=False):
            height = 100 * count / most
            top -= height
            if count:
                drawn.append(_part(use, number * 100 / 24, 3.6, top, height))
    silent = sum(not sum(hour) for hour in day.hours)
    said = f"no call in {silent} of the 24 hours" if silent else "calls in each of the 24 hours"
    return (
        f'<svg class="hours" aria-hidden="true">{"".join(drawn)}</svg>'
        f'<p class="ends"><span>24 h ago</span><span>{said}</span><span>now</span></p>'
    )


# --- the age of the data ----------------------------------------------------------------------


def _ages(report: Report) -> str:
    if not report.levels:
        return "<p>There is no asset: <code>asset-sync assets add</code> adds one.</p>"
    levels = "".join(map(_level, report.levels))
    return (
        f'<dl class="ages">{levels}</dl><p class="note">In open hours only. The line marks what the'
        " plan can give 95 % of the time.</p>"
    )


def _level(one: LevelAge) -> str:
    closed = ""
    if one.closed:
        closed = ", all closed" if one.closed == one.assets else f", {one.closed:,} closed"
    head = f"<dt>{one.level.value} <span>{counted(one.assets, 'asset')}{closed}</span></dt>"
    if one.oldest_seconds is None:
        return f"{head}<dd>no bars yet</dd>"
    if one.closed == one.assets and not one.oldest_seconds:
        return f"{head}<dd>nothing is missing since the close</dd>"
    plan = None if one.planned is None else one.planned.p95_seconds
    late = plan is not None and one.oldest_seconds > plan
    said = f"oldest <b>{duration(one.oldest_seconds)}</b>"
    if one.assets > 1:
        said += f" ({text(one.oldest)})"
    if one.half_seconds is not None and one.assets - one.closed > 1:
        said += f", half {duration(one.half_seconds)}"
    gives = "the plan shows none of today" if plan is None else f"plan {never_or(plan)}"
    mark = '<span class="late">▲ late:</span> ' if late else ""
    return f"{head}<dd>{_bullet(one.oldest_seconds, plan, late=late)}{mark}{said}; {gives}</dd>"


def _bullet(now: float, plan: float | None, *, late: bool) -> str:
    """Draw an age beside what the plan can give: the whole width is twice that, or the age."""
    finite = plan if plan is not None and plan != math.inf else None
    whole = max(now, 2 * (finite or 0.0), 1.0)
    mark = "" if finite is None else _part("goal", 100 * finite / whole, 0.6)
    age = _part("bad" if late else "good", 0, max(0.5, 100 * now / whole), 25, 50)
    return f'<svg class="bullet" aria-hidden="true">{age}{mark}</svg>'


# --- history ----------------------------------------------------------------------------------


def _past(report: Report) -> str:
    past = report.history
    asked, there = past.asked_percent, past.there_percent
    if not past.assets:
        return "<p>There is no asset.</p>"
    return (
        f'<svg class="strip" aria-hidden="true">{_part("history", 0, asked)}'
        f"{_part('there', 0, there)}</svg>"
        f'<p class="big"><b>{asked:.1f} %</b> asked, <b>{there:.1f} %</b> there</p>'
        f"<p>{prose(' '.join(_done(report)))}</p>"
    )


def _done(report: Report) -> Sequence[str]:
    """Say what is to go, and when all was asked."""
    past = report.history
    if not past.calls_left:
        return ["All that is wanted of the past was asked."]
    spare = (
        f"{counted(past.calls_left, 'call')} to go; {past.spare_calls_per_day:,} a day are spare."
    )
    if past.done_at is None:
        return [spare, "So it is never complete."]
    days = duration((past.done_at - past.now).total_seconds())
    if not report.history_enabled:
        return [spare, f"Runs would need {days}, but `[history] enabled = false`."]
    return [spare, f"All is asked by {moment(past.done_at)[:16]} UTC, in {days}."]
