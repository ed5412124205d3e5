"""The table of all assets: age, history, two years by weeks, what is wrong."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from asset_sync.cli.format import duration
from asset_sync.cli.page import markup
from asset_sync.cli.page.markup import counted, foreign, text
from asset_sync.cli.page.summary import wrong
from asset_sync.model import Level
from asset_sync.ops.coverage_weeks import WeekState
from asset_sync.ops.report import AssetLine, Report

# A state's class in the style sheet and the middle of its bar, of which the class has the height:
# strips say the same without colour.
_BARS = {
    WeekState.THERE: ("t", "2"),
    WeekState.PARTLY: ("s", "2.8"),
    WeekState.EMPTY: ("e", "3.5"),
    WeekState.UNASKED: ("n", "2"),
}
_LEGEND = {
    WeekState.THERE: "there",
    WeekState.PARTLY: "partly there",
    WeekState.EMPTY: "asked and empty",
    WeekState.UNASKED: "never asked",
}
_WORDS = {
    "queue.dead": "given up",
    "assets.failing": "failing",
    "assets.stale": "not refreshed in time",
    "data.old": "no new bars",
    "history.holes": "past not asked for",
}
_COLUMNS = ("Asset", "Level", "Newest bar", "Refreshed", "History", "Two years", "Trouble")
_NUMBERS = ("Newest bar", "Refreshed", "History")
_RIGHT = ' class="r"'
_LONGEST_ERROR = 160
_FEW = 40  # assets, without a scroll bar of their own


def section(report: Report) -> str:
    """Return the section with the table, those that are not well first."""
    if not report.assets:
        return markup.section(
            "assets",
            "Assets",
            "<p>The settings name no asset: <code>asset-sync assets add EURUSD --type forex"
            "</code> adds one.</p>",
        )
    return markup.section(
        "assets",
        "Assets",
        '<div class="tools" hidden><label>Show only <input type="search" id="filter"'
        ' placeholder="symbol, level, error"></label> <span id="found" role="status"></span></div>'
        f"{_legend(report)}{_table(report)}",
    )


def _table(report: Report) -> str:
    faults = _faults(report)
    order = list(Level).index
    lines = sorted(
        report.assets,
        key=lambda one: (
            -len(faults.get(one.asset.symbol, ())),
            one.last_error is None,
            order(one.asset.level),
        ),
    )
    head = "".join(
        f'<th scope="col"{_RIGHT if name in _NUMBERS else ""}>{name}' for name in _COLUMNS
    )
    rows = "\n".join(_row(one, faults.get(one.asset.symbol, ())) for one in lines)
    return (
        f'<div class="{"long" if len(lines) > _FEW else "short"}" role="region" tabindex="0"'
        ' aria-label="Table of assets"><table class="assets">'
        f"<caption>{counted(len(lines), 'asset')}, those with trouble first</caption>"
        f"<thead><tr>{head}</thead><tbody>\n{rows}</tbody></table></div>"
    )


def _faults(report: Report) -> Mapping[str, Sequence[str]]:
    """Return the words for what is wrong with each asset that is not well."""
    found: dict[str, list[str]] = {}
    for check in wrong(report):
        for symbol in check.symbols:
            found.setdefault(symbol, []).append(_WORDS[check.name])
    return found


def _row(one: AssetLine, faults: Sequence[str]) -> str:
    # The end tags of cells and rows are optional, and left out: they are a quarter of the row.
    mark = ' class="bad"' if faults else ""
    refreshed = "never" if one.refreshed_seconds is None else duration(one.refreshed_seconds)
    return (
        f"<tr{mark}><th>{text(one.asset.symbol)}<td>{one.asset.level.value}"
        f"<td>{_age(one)}<td>{refreshed}"
        f"<td>{one.history.there_percent:.1f} %<td>{strip(one.weeks)}<td>{_trouble(one, faults)}"
    )


def _age(one: AssetLine) -> str:
    data = one.data
    if data.age_seconds is None:
        return "no bars"
    age = duration(data.age_seconds) if data.age_seconds else "running"
    return f"{age}, closed" if data.opens_at else age


def _trouble(one: AssetLine, faults: Sequence[str]) -> str:
    said = f"<b>{', '.join(faults)}</b>" if faults else ""
    if one.last_error is None:
        return said
    error = one.last_error.error
    if len(error) > _LONGEST_ERROR:
        error = f"{error[:_LONGEST_ERROR]}…"
    return f"{said}: {foreign(error)}" if said else foreign(error)


def strip(weeks: Sequence[WeekState]) -> str:
    """Draw the weeks as bars of a height for each state; neighbours of one state are one bar."""
    lines: dict[WeekState, str] = {}
    ends: dict[WeekState, int] = {}
    at = 0
    for state, group in groupby(weeks):
        length = len(list(group))
        if state in _BARS:
            begin = f"m{at - ends[state]} 0" if state in ends else f"M{at} {_BARS[state][1]}"
            lines[state] = f"{lines.get(state, '')}{begin}h{length}"
            ends[state] = at + length
        at += length
    paths = "".join(f'<path class={_BARS[state][0]} d="{line}"/>' for state, line in lines.items())
    return f'<svg viewBox="0 0 {len(weeks)} 4">{paths}</svg>' if paths else ""


def _legend(report: Report) -> str:
    parts = "".join(
        f'<li><svg viewBox="0 0 12 4" aria-hidden="true"><path class="{_BARS[state][0]}"'
        f' d="M0 {_BARS[state][1]}h12"/></svg>{words}</li>'
        for state, words in _LEGEND.items()
    )
    return (
        f'<ul class="legend weeks"><li>Weeks since {report.first_week}:</li>{parts}'
        "<li>blank: closed, or not wanted</li></ul>"
    )
