"""Set arithmetic of spans, compared with sets of single minutes."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from asset_sync.spans import Span, difference, intersection, length, union

_START = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)

spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(
        lambda drawn: Span(_START + drawn[0] * _MINUTE, _START + sum(drawn) * _MINUTE)
    ),
    max_size=12,
)


def minutes(of: list[Span]) -> set[int]:
    """Return the minutes that the spans contain."""
    return {minute for span in of for minute in range(_number(span.start), _number(span.end))}


def _number(moment: datetime) -> int:
    return (moment - _START) // _MINUTE


def is_in_order(of: list[Span]) -> bool:
    """Whether spans are ascending, and none is empty or touches the next."""
    return all(span.start < span.end for span in of) and all(
        one.end < other.start for one, other in itertools.pairwise(of)
    )


@given(spans)
def test_a_union_holds_what_any_span_holds(drawn: list[Span]) -> None:
    merged = union(drawn)
    assert minutes(merged) == minutes(drawn)
    assert is_in_order(merged)


@given(spans, spans)
def test_a_difference_holds_what_only_the_first_holds(
    drawn: list[Span], others: list[Span]
) -> None:
    left = difference(union(drawn), union(others))
    assert minutes(left) == minutes(drawn) - minutes(others)
    assert is_in_order(left)


@given(spans, spans)
def test_an_intersection_holds_what_both_hold(drawn: list[Span], others: list[Span]) -> None:
    both = intersection(union(drawn), union(others))
    assert minutes(both) == minutes(drawn) & minutes(others)
    assert is_in_order(both)


@given(spans)
def test_the_length_counts_each_moment_once(drawn: list[Span]) -> None:
    assert length(union(drawn)) == len(minutes(drawn)) * _MINUTE


def test_spans_that_adjoin_touch_and_become_one() -> None:
    first, second = Span(_START, _START + _MINUTE), Span(_START + _MINUTE, _START + 2 * _MINUTE)
    assert first.touches(second)
    assert second.touches(first)
    assert union([second, first]) == [Span(_START, _START + 2 * _MINUTE)]
