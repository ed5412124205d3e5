"""HTML and SVG from text: everything that comes from outside goes through `text` or `prose`."""

import re
from collections.abc import Iterable, Sequence
from html import escape

# Browsers show nothing for them, and an HTML file must not have them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CODE = re.compile(r"`([^`]+)`")

PATTERNS = """<svg class="defs" aria-hidden="true" width="0" height="0"><defs>\
<pattern id="p-unasked" width="1" height="1" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><path class="ink-unasked" d="M0 0v1"/></pattern>\
<pattern id="p-queue" width="4" height="4" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><rect class="bed-queue" width="4" height="4"/>\
<path class="ink" d="M0 0v4"/></pattern>\
<pattern id="p-history" width="4" height="4" patternUnits="userSpaceOnUse">\
<rect class="bed-history" width="4" height="4"/><circle class="dot" cx="2" cy="2" r="1"/>\
</pattern>\
<pattern id="p-kept" width="4" height="4" patternUnits="userSpaceOnUse">\
<path class="ink-kept" d="M0 1h4"/></pattern></defs></svg>"""
"""What tells the parts of the charts from each other without their colours."""


def text(value: object) -> str:
    """Return a value as HTML that shows it, and nothing else, whatever it contains."""
    return escape(_CONTROLS.sub("", str(value)))


def prose(sentence: str) -> str:
    """Return a sentence as HTML, with its commands in backticks set as code."""
    return _CODE.sub(r"<code>\1</code>", text(sentence))


def foreign(message: str) -> str:
    """Return a message of another program as HTML, which cannot turn the direction of ours."""
    return f"<bdi>{text(message)}</bdi>"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first of each row is its heading.

    A column named `>…` is aligned to the right. A table that is too wide scrolls by itself.
    """
    right = [' class="r"' if name.startswith(">") else "" for name in columns]
    head = "".join(
        f'<th scope="col"{side}>{text(name.lstrip(">"))}'
        for name, side in zip(columns, right, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{cells[0]}'
        + "".join(f"<td{side}>{cell}" for cell, side in zip(cells[1:], right[1:], strict=True))
        for cells in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</thead><tbody>{body}</tbody>"
        "</table></div>"
    )


def section(name: str, title: str, content: str, kind: str = "section") -> str:
    """Return a section with its heading, to which links lead by name."""
    return (
        f'<section id="{name}" class="{kind}" aria-labelledby="h-{name}">'
        f'<h2 id="h-{name}">{text(title)}</h2>{content}</section>'
    )


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, as `1 call` or `7,200 calls`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
