"""What is below the first screen: queue, runs, holes, plan, lag, checks."""

from collections.abc import Iterator

from asset_sync.cli.format import duration, ended, short_moment, slots_in_words
from asset_sync.cli.page.markup import counted, foreign, section, table, text
from asset_sync.cli.plan import advice_in_words, never_or
from asset_sync.ops.forecast import Forecast, staleness
from asset_sync.ops.report import Report
from asset_sync.store.ledger import LEAST_LAGS, Lag

_SHOWN = 10


def sections(report: Report) -> Iterator[str]:
    """Give the sections in their order."""
    yield section("queue", "Queue", "".join(_queue(report)))
    yield section("runs", "Runs", _runs(report))
    yield section("holes", "Holes", _holes(report))
    yield section("plan", "Plan", _plan(report))
    yield section("lag", "Lag of the provider", _lag(report))
    yield section("checks", "Checks", _checks(report))


def _queue(report: Report) -> Iterator[str]:
    budget = report.budget
    blocked = f"; no call for {duration(budget.blocked_seconds)}" if budget.blocked_seconds else ""
    yield f"<p>{text(slots_in_words(budget))}{blocked}.</p>"
    yield _levels(report)
    if report.next:
        yield _line(report)
    if report.failing:
        yield _failing(report)


def _levels(report: Report) -> str:
    return table(
        "Items by level",
        ["level", ">waiting", ">leased", ">dead", ">oldest, due for"],
        (
            [
                one.level.value,
                f"{one.waiting:,}",
                f"{one.leased:,}",
                f"{one.dead:,}",
                duration(one.oldest_seconds),
            ]
            for one in report.health.levels
        ),
    )


def _line(report: Report) -> str:
    return table(
        "Next in line",
        ["asset", "feed", "level", "due since", ">tried in"],
        (
            [
                text(one.symbol),
                text(one.feed),
                one.level.value,
                short_moment(one.due_at),
                duration(one.wait_seconds) if one.wait_seconds else "now",
            ]
            for one in report.next
        ),
    )


def _failing(report: Report) -> str:
    return table(
        "Failing, and tried again",
        ["asset", ">times", ">tried in", "error"],
        (
            [text(one.symbol), str(one.strikes), duration(one.wait_seconds), foreign(one.error)]
            for one in report.failing[:_SHOWN]
        ),
    )


def _runs(report: Report) -> str:
    if not report.runs:
        return "<p>No run yet: <code>asset-sync schedule cron --install</code> starts them.</p>"
    return table(
        "The last runs",
        ["began", "command", ">refreshed", ">failed", ">calls", ">bars", ">took", "ended"],
        (
            [
                short_moment(one.started_at),
                text(one.command),
                f"{one.updated:,}",
                f"<b>{one.failed:,}</b>" if one.failed else "0",
                f"{one.api_calls:,}",
                f"{one.bars_written:,}",
                duration(one.seconds),
                text(ended(one.reason_ended)),
            ]
            for one in report.runs
        ),
    )


def _holes(report: Report) -> str:
    with_holes = [one for one in report.history.assets if one.never_asked or one.asked_empty]
    if not with_holes:
        return "<p>None: all that is wanted of the past was asked, and bars are there.</p>"
    never = sum(one.never_asked for one in with_holes)
    empty = sum(one.asked_empty for one in with_holes)
    largest = sorted(with_holes, key=lambda one: one.never_asked + one.asked_empty, reverse=True)
    return (
        f"<p>Never asked: {counted(never, 'bar')}. Asked, and none came in open hours: "
        f"{counted(empty, 'bar')}. <code>asset-sync history holes SYMBOL</code> lists those of an"
        " asset, with their next try.</p>"
    ) + table(
        f"The largest of {counted(len(with_holes), 'asset')}",
        ["asset", ">never asked", ">asked, empty", ">asked", ">there", ">calls to go"],
        (
            [
                text(one.symbol),
                f"{one.never_asked:,}",
                f"{one.asked_empty:,}",
                f"{one.asked_percent:.1f} %",
                f"{one.there_percent:.1f} %",
                f"{one.calls_left:,}",
            ]
            for one in largest[:_SHOWN]
        ),
    )


def _plan(report: Report) -> str:
    plans = table(
        "What each plan gives these assets",
        ["plan", ">$ a month", ">calls a day", ">used", ">refreshed within", "enough"],
        (_of_plan(one, report) for one in report.plans),
    )
    return (
        f"<p>{text(advice_in_words(report.forecast, report.advice))}</p>{plans}"
        '<p class="note">Refreshed within: 95 % of the time. <code>asset-sync plan</code> has'
        " more.</p>"
    )


def _of_plan(one: Forecast, report: Report) -> list[str]:
    name = text(one.plan.name)
    return [
        f"{name} (yours)" if one.plan.name == report.forecast.plan.name else name,
        "-" if one.plan.usd_a_month is None else f"{one.plan.usd_a_month:,}",
        f"{one.calls_a_day:,.0f}",
        f"{one.share:.1%}",
        never_or(staleness(one.assets).p95_seconds) if one.assets else "-",
        "yes" if one.enough else "<b>no</b>",
    ]


def _lag(report: Report) -> str:
    if not report.health.lags:
        return "<p>There is no asset.</p>"
    return table(
        "How long after its end a bar is first seen",
        ["market", ">measured", ">half", ">95 %", ">99 %"],
        ([kind.value, *_of_market(lag)] for kind, lag in report.health.lags.items()),
    )


def _of_market(lag: Lag) -> list[str]:
    if not lag.is_known:
        return [f"{lag.measurements} of the {LEAST_LAGS} needed", "-", "-", "-"]
    return [f"{lag.measurements:,}", *map(duration, (lag.p50, lag.p95, lag.p99))]


def _checks(report: Report) -> str:
    return table(
        "All checks of asset-sync health",
        ["check", "verdict", ">value", ">threshold"],
        (
            [
                f"<code>{text(one.name)}</code>",
                "ok" if one.verdict == "healthy" else f"<b>{one.verdict.value}</b>",
                "-" if one.value is None else f"{one.value:,.0f}",
                "-" if one.threshold is None else f"{one.threshold:,.0f}",
            ]
            for one in report.health.checks
        ),
    )
