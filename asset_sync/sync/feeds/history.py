"""The past of one asset, newest first, as far as one call reaches."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import NamedTuple

from asset_sync.provider.answers import BarsAnswer
from asset_sync.provider.current import endpoints
from asset_sync.provider.errors import ProviderError, TimeRangeDenied
from asset_sync.provider.protocol import Provider
from asset_sync.spans import Span
from asset_sync.store.ledger import Ledger
from asset_sync.sync import coverage, judge
from asset_sync.sync.judge import (
    Entry,
    Fetch,
    Idle,
    Judgement,
    Known,
    NotIncluded,
    Resume,
    Strike,
)
from asset_sync.sync.progress import Filled
from asset_sync.sync.scope import Scope, Target
from asset_sync.sync.window import SAFE_HISTORY, start_of_bar

_MILLISECOND = timedelta(milliseconds=1)
# Where the plan's past begins is not searched any closer.
_CLOSE_ENOUGH = timedelta(days=1)


class HistoryRequest(NamedTuple):
    """The bars of a range that was never asked, or that was empty."""

    ticker: str
    span: Span
    by_minute: bool = False
    """Whether five-minute bars were asked for, and none came although the market was open."""
    again: bool = False
    """Whether the range was asked before."""

    @property
    def endpoint(self) -> str:
        """Path and query."""
        start, end = self.span.start, self.span.end - _MILLISECOND
        return endpoints.bars(self.ticker, start, end, by_minute=self.by_minute)

    def call(self, provider: Provider) -> BarsAnswer:
        """Return the bars. Raises any `ProviderError`."""
        start, end = self.span.start, self.span.end - _MILLISECOND
        return provider.bars(self.ticker, start, end, by_minute=self.by_minute)


def request(scope: Scope, targets: Sequence[Target], known: Known) -> HistoryRequest | None:
    """Return the next call; None if nothing of the past is left to ask."""
    [item] = targets
    hours = scope.hours(item.symbol)
    past = scope.past(item.symbol, known.now, known.ledger)
    span = coverage.next_unasked(hours, known.ledger, *past)
    again = span is None
    if span is None and scope.only is None:
        span = _due_again(scope, item.symbol, known, past.start)
    if span is None:
        return None
    # Not compared with the range: its bounds move with time, and five minutes would be asked for
    # again and again. By the minute any range is answered as well.
    return HistoryRequest(item.ticker, span, item.backfilled_to is not None, again)


def _due_again(scope: Scope, symbol: str, known: Known, since: datetime) -> Span | None:
    """Return the newest weeks with empty ranges that are due again, as far as one call reaches."""
    if not known.due_weeks or known.ledger.tail is None:
        return None
    begins = [datetime.combine(week, time(), UTC) for week in known.due_weeks]
    end = min(begins[0] + timedelta(days=7), known.ledger.tail.end)
    earliest = max(coverage.reach(scope.hours(symbol), end), since)
    start = max(min(begin for begin in begins if begin >= earliest or begin == begins[0]), earliest)
    return Span(start, end) if start < end else None


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge bars of the past, or why there are none."""
    match fetch.answer:
        case BarsAnswer() as answer:
            return _bars(scope, fetch, answer, known)
        case TimeRangeDenied() as error:
            return _past_denied(scope, fetch, error, known)
        case ProviderError() as error:
            return judge.failed(fetch, error)
        case exists:
            raise TypeError(f"history never asks whether a ticker exists: {exists}")


def _bars(scope: Scope, fetch: Fetch, answer: BarsAnswer, known: Known) -> Judgement:
    [item], request = fetch.items, _request(fetch)
    hours = scope.hours(item.symbol)
    if not answer.bars and not request.by_minute and hours.expected_bars(*request.span):
        return Judgement([(fetch.items, Resume(backfilled_to=request.span.start))], "empty")
    settled = coverage.settled(
        request.span,
        fetch.asked_at,
        answer.bars,
        scope.lag(item.asset_type),
        cut=not answer.complete or answer.repeats,
    )
    if not settled.length:
        error = "The provider cuts its answer off at the first bar, so nothing is settled."
        return Judgement([(fetch.items, Strike(error))], "empty", error)
    ledger = known.ledger.with_settled(settled)
    if ledger.past_begins is not None and settled.start < ledger.past_begins:
        ledger = ledger._replace(past_begins=None)
    filled = Filled(item.symbol, settled, 0, fetch.seconds)
    return Judgement(
        [(fetch.items, Idle())],
        bars=answer.bars,
        entry=_entry(scope, fetch, ledger, settled, tried=request.again),
        progress=[*judge.left_out(item, answer), filled],
    )


def _past_denied(scope: Scope, fetch: Fetch, error: TimeRangeDenied, known: Known) -> Judgement:
    """Ask for a shorter past: the plan's begins later than the range that was asked.

    After a day one call tries the range before it again.
    """
    [item], span = fetch.items, _request(fetch).span
    # Time has passed since the call: a start within the safe past lies a little before it now.
    if span.start < known.now - SAFE_HISTORY - _CLOSE_ENOUGH and not scope.missing.past:
        return _not_so_far_back(scope, fetch, error)
    begins = known.ledger.past_begins
    if begins is None or begins < span.end:  # it was not found on an earlier day
        begins = span.end
        if span.length > _CLOSE_ENOUGH:
            begins = start_of_bar(span.start + span.length / 2)
    ledger = known.ledger._replace(past_begins=begins)
    denied = scope.missing._replace(past_symbols=scope.missing.past_symbols | {item.symbol})
    nothing = Span(span.end, span.end)
    return Judgement(
        [(fetch.items, Idle())],
        TimeRangeDenied.kind,
        f"The plan's past begins after {span.start:%-d %B %Y}; it is asked for from"
        f" {begins:%-d %B %Y} on. What is before is tried again after a day.",
        bars=(),
        missing=[NotIncluded("past", [item.symbol])],
        scope_changed=True,
        entry=_entry(replace(scope, missing=denied), fetch, ledger, nothing, tried=False),
        progress=[Filled(item.symbol, nothing, 0, fetch.seconds)],
    )


def _not_so_far_back(scope: Scope, fetch: Fetch, error: TimeRangeDenied) -> Judgement:
    """Ask for the past that every plan has, of all assets: the key has less than the settings say.

    After a day one call tries again, since a plan may be upgraded at any time.
    """
    instead = f"those of the last {SAFE_HISTORY.days} days"
    return Judgement(
        [(fetch.items, Idle())],
        error.kind,
        str(error),
        missing=[NotIncluded("past")],
        scope_changed=True,
        progress=[scope.not_included("bars of so long ago", instead)],
    )


def _entry(scope: Scope, fetch: Fetch, ledger: Ledger, settled: Span, *, tried: bool) -> Entry:
    [item] = fetch.items
    hours = scope.hours(item.symbol)
    since = scope.past_begins(item.symbol, fetch.asked_at, ledger)
    left = coverage.asked_down_to(hours, ledger, since, fetch.asked_at)
    return Entry(ledger, settled, hours, left, tried=tried)


def _request(fetch: Fetch) -> HistoryRequest:
    if not isinstance(fetch.request, HistoryRequest):
        raise TypeError(f"history came for {fetch.request.endpoint}")
    return fetch.request
