"""The banner: is all well, or what is wrong, which asset, since when, and is the plan enough."""

from collections.abc import Iterator
from datetime import UTC, datetime

from asset_sync.cli.format import duration
from asset_sync.cli.page.markup import counted, foreign, prose, text
from asset_sync.cli.plan import advice_in_words
from asset_sync.ops.health import Check, Verdict
from asset_sync.ops.report import Report

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
