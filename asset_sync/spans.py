"""Spans of time and their set arithmetic: union, difference, intersection, length.

A span is half open: its start belongs to it, its end does not. Lists of spans are ascending and
do not overlap or touch.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple


class Span(NamedTuple):
    """From `start` up to, but not including, `end`; both aware."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start

    def touches(self, other: "Span") -> bool:
        """Whether the two overlap or adjoin, so that their union is one span."""
        return self.start <= other.end and other.start <= self.end


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans in any order; empty ones are dropped."""
    merged: list[Span] = []
    for span in sorted(span for span in spans if span.start < span.end):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def difference(spans: Iterable[Span], without: Iterable[Span]) -> list[Span]:
    """Return what of `spans` is not in `without`; both are ascending."""
    left: list[Span] = []
    cuts = iter(without)
    cut = next(cuts, None)
    for start, end in spans:
        while cut is not None and cut.end <= start:
            cut = next(cuts, None)
        at = start
        while cut is not None and cut.start < end:
            if cut.start > at:
                left.append(Span(at, cut.start))
            at = max(at, cut.end)
            if cut.end > end:
                break
            cut = next(cuts, None)
        if at < end:
            left.append(Span(at, end))
    return left


def intersection(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return what is in both; both are ascending."""
    return list(_common(spans, others))


def _common(spans: Iterable[Span], others: Iterable[Span]) -> Iterator[Span]:
    left, right = iter(spans), iter(others)
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        start, end = max(one.start, other.start), min(one.end, other.end)
        if start < end:
            yield Span(start, end)
        if one.end < other.end:
            one = next(left, None)
        else:
            other = next(right, None)


def length(spans: Iterable[Span]) -> timedelta:
    """Return how long spans are together."""
    return sum((span.length for span in spans), timedelta())
