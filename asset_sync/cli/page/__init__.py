"""Draws the page for people: one HTML file that asks nobody for anything.

The charts are SVG made of f-strings: a library for templates takes 79 ms to import, and one for
charts makes the page larger than all of its data.
"""

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC
from functools import cache
from pathlib import Path

from asset_sync import __version__
from asset_sync.cli.format import duration, moment
from asset_sync.cli.page import assets, cards, details, summary
from asset_sync.cli.page.markup import PATTERNS, text
from asset_sync.ops.report import Report

_ONCE_SECONDS = 3600  # for so long a page that is written once counts as new
_LATE_WRITINGS = 2  # after so many writings that did not come the page calls itself old
_GRACE_SECONDS = 60  # for the writing itself
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%23{colour}'/%3E%3C/svg%3E"
)
_COLOURS = {"healthy": "1a7f37", "degraded": "9a6700", "unhealthy": "b3261e"}
_SECTIONS = {
    "assets": "Assets",
    "queue": "Queue",
    "runs": "Runs",
    "holes": "Holes",
    "plan": "Plan",
    "lag": "Lag",
    "checks": "Checks",
}


def draw(report: Report, every_seconds: float | None) -> str:
    """Return the page; it calls itself old if it is not written again every so many seconds.

    None is for a page that is written once: it calls itself old after an hour.
    """
    return "\n".join((*_head(report, every_seconds), *_body(report, every_seconds), ""))


def _head(report: Report, every_seconds: float | None) -> Iterator[str]:
    status, headline = report.health.status.value, summary.headline(report)
    style, script = _file("page.css"), _file("page.js")
    every, old_after = "", float(_ONCE_SECONDS)
    if every_seconds is not None:
        every = f' data-every="{every_seconds:.0f}"'
        old_after = every_seconds * _LATE_WRITINGS + _GRACE_SECONDS
    yield "<!doctype html>"
    yield (
        f'<html lang="en" class="{status}" data-written="{report.now.timestamp():.0f}"'
        f'{every} data-old-after="{old_after:.0f}">'
    )
    yield f"""<head><meta charset="utf-8"><title>{text(headline)} · asset-sync</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;\
 style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">
<meta name="robots" content="noindex">
<link rel="icon" href="{_ICON.format(colour=_COLOURS[status])}">
<style>{style}</style></head>"""


def _body(report: Report, every_seconds: float | None) -> Iterator[str]:
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS.items())
    written = report.now.astimezone(UTC)
    how = "It was written once; <code>asset-sync report --open</code> shows a new one."
    if every_seconds is not None:
        how = f"It should be written every {duration(every_seconds)}: has its cron job stopped?"
    yield f"""<body><a class="skip" href="#assets">To the assets</a>{PATTERNS}
<header><div id="old" role="alert" hidden>This page is <b></b> old. {how} All of it \
was true then, not now.</div>
{summary.verdict(report)}
<p class="written">Written <time datetime="{written.isoformat(timespec="seconds")}">\
{moment(written)} UTC</time><span id="age">: without JavaScript the page cannot tell how old it \
is</span>, by asset-sync {text(__version__)}. All times are UTC.</p></header>
<nav aria-label="Sections">{links}</nav><main>"""
    yield cards.cards(report)
    yield assets.section(report)
    yield f'<div class="columns">{"".join(details.sections(report))}</div>'
    yield f"</main><script>{_file('page.js')}</script></body></html>"


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(inline: str) -> str:
    """Return what the browser compares an inline script or style with before it uses it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}"
