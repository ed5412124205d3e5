"""The first screen: is all well, or what is wrong; calls, age of the data, history."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from asset_sync.cli.format import duration, moment
from asset_sync.cli.page.markup import counted, foreign, prose, section, text
from asset_sync.cli.plan import advice_in_words
from asset_sync.ops.health import Check, Verdict
from asset_sync.ops.report import LevelAge, Report

TITLES = {
    "api.refused": "The API refuses the key or its plan",
    "batch.priority.seconds_since_run": "No priority run",
    "assets.stale": "Not refreshed in time",
    "batch.priority.success_rate": "Calls for priority assets fail",
    "batch.queue.seconds_since_run": "No queue run",
    "queue.dead": "Given up",
    "assets.failing": "Failing again and again",
    "data.old": "No new bars in an open market",
    "queue.size": "More is due than the calls are enough for",
    "api.rate_lowered": "The key allows fewer calls than the settings say",
    "api.rate_limit_waits": "Priority runs wait for calls",
    "batch.priority.latency_ms": "Priority runs are slow",
    "history.holes": "The past is not asked for",
    "clock.jumped": "The database's clock has jumped",
}
"""What a check that is not healthy means; the first of equally bad ones makes the headline."""

_NAMED = 3
_MARKS = {Verdict.HEALTHY: "✓", Verdict.DEGRADED: "!", Verdict.UNHEALTHY: "✗"}


def wrong(report: Report) -> list[Check]:
    """Return the checks that are not healthy, the worst first."""
    order, rank = list(TITLES), list(Verdict).index
    return sorted(
        (check for check in report.health.checks if check.verdict is not Verdict.HEALTHY),
        key=lambda check: (-rank(check.verdict), order.index(check.name)),
    )


def headline(report: Report) -> str:
    """Return the sentence that the page begins with: all is well, or what is wrong since when."""
    if not (faults := wrong(report)):
        return "All is well" if report.assets else "No asset is named in the settings"
    first, more = faults[0], len(faults) - 1
    said = _title(first, report)
    return f"{said}, and {counted(more, 'other fault')}" if more else said


def _title(check: Check, report: Report) -> str:
    said = TITLES[check.name]
    if check.name.endswith("seconds_since_run"):
        return (
            f"{said} {'yet' if check.since is None else f'since {since(check.since, report.now)}'}"
        )
    if check.symbols:
        more = len(check.symbols) - _NAMED
        said += f": {', '.join(check.symbols[:_NAMED])}" + (
            f" and {more:,} more" if more > 0 else ""
        )
    if check.since is not None:
        first = ", the first" if len(check.symbols) > 1 else ","
        said += f"{first} since {since(check.since, report.now)}"
    elif check.symbols and check.name != "history.holes":
        said += ", never refreshed so far"
    return said


def since(at: datetime, now: datetime) -> str:
    """Return a moment with how long ago it was; its day only if it is not today, in UTC."""
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    day = "" if at.date() == now.date() else f"{at.day} {at:%b} "
    year = "" if at.year == now.year else f"{at.year} "
    return f"{day}{year}{at:%H:%M} UTC ({duration(max(0.0, (now - at).total_seconds()))})"


def verdict(report: Report) -> str:
    """Return the banner: the headline, what to do, the other faults, whether the plan is enough."""
    status, faults = report.health.status, wrong(report)
    advice = f"<p>{_advice(faults[0], report)}</p>" if faults else ""
    others = "".join(
        f"<li><strong>{text(_title(one, report))}.</strong> {_advice(one, report)}</li>"
        for one in faults[1:]
    )
    return (
        f'<h1><span class="mark" aria-hidden="true">{_MARKS[status]}</span> '
        f"{text(headline(report))}.</h1>{advice}{others and f'<ul>{others}</ul>'}"
        f'<p class="plan">{prose(" ".join(_sentences(report)))}</p>'
    )


_ADVICE = {
    "batch.priority.seconds_since_run": "`asset-sync doctor` says whether its job is installed, and"
    " whether it can work.",
    "batch.queue.seconds_since_run": "`asset-sync doctor` says more.",
    "assets.stale": "`asset-sync queue list {symbol}` says why.",
    "queue.dead": "`asset-sync queue list --state dead` lists them; once the cause is corrected,"
    " `asset-sync queue retry {symbol}` tries again.",
    "assets.failing": "It is tried again by itself, less and less often.",
    "data.old": "Calls bring nothing newer: `asset-sync assets show {symbol}` says more.",
    "history.holes": "`asset-sync history fill` asks for it now, and says what fails.",
}


def _advice(check: Check, report: Report) -> str:
    """Return what is known of the cause of a fault, and what to do, as HTML."""
    if check.name not in _ADVICE:
        about = check.about[:1].upper() + check.about[1:].removesuffix(".")
        if check.value is not None and check.threshold:
            about += f": {check.value:,.0f}, where the threshold is {check.threshold:,.0f}"
        return prose(f"{about}.")
    symbol = next(iter(check.symbols), "")
    errors = [
        f"{text(symbol)}: {foreign(one.last_error.error)} "
        for one in report.assets
        if one.asset.symbol == symbol and one.last_error is not None
    ]
    return "".join(errors) + prose(_ADVICE[check.name].format(symbol=symbol))


def _sentences(report: Report) -> Iterator[str]:
    """Give how many assets are fresh, and whether the plan is enough."""
    total = len(report.assets)
    bad = {symbol for check in wrong(report) for symbol in check.symbols}
    bad |= {one.asset.symbol for one in report.assets if one.refreshed_seconds is None}
    yield f"{total - len(bad):,} of {counted(total, 'asset')} {'is' if total == 1 else 'are'} well."
    told = report.forecast
    calls = f"{counted(told.limit.calls, 'call')} in {duration(told.limit.period_seconds)}"
    limit = f"{told.plan.name}, {calls}"
    needed = f"{told.needed_a_day:,.0f} of {told.calls_a_day:,.0f} calls a day are needed"
    if told.enough:
        yield f"The plan is enough ({limit}): {needed}."
    else:
        yield f"{advice_in_words(told, report.advice)} ({limit}; {needed}.)"
    if report.bars_end_yesterday:
        yield report.bars_end_yesterday


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
    gives = "the plan shows none of today" if plan is None else f"plan {_time(plan)}"
    mark = '<span class="late">▲ late:</span> ' if late else ""
    return f"{head}<dd>{_bullet(one.oldest_seconds, plan, late=late)}{mark}{said}; {gives}</dd>"


def _time(seconds: float) -> str:
    return "never" if seconds == float("inf") else duration(seconds)


def _bullet(now: float, plan: float | None, *, late: bool) -> str:
    """Draw an age beside what the plan can give: the whole width is twice that, or the age."""
    finite = plan if plan is not None and plan != float("inf") else None
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
