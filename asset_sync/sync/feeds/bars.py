"""Five-minute bars, one asset a call."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from asset_sync.hours import BAR_LENGTH
from asset_sync.provider.answers import BarsAnswer
from asset_sync.provider.current import endpoints
from asset_sync.provider.errors import FeedDenied, ProviderError, TimeRangeDenied
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Item
from asset_sync.sync import judge
from asset_sync.sync.judge import (
    Fail,
    Fetch,
    Finish,
    Judgement,
    Known,
    NotIncluded,
    Price,
    Release,
    Resume,
    Verify,
)
from asset_sync.sync.progress import Synced, Warned
from asset_sync.sync.scope import Scope, Target
from asset_sync.sync.window import SAFE_HISTORY, Window


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """The bars of a window."""

    ticker: str
    window: Window

    @property
    def endpoint(self) -> str:
        """Path and query."""
        return endpoints.bars(self.ticker, self.window.start, self.window.end)

    def call(self, provider: Provider) -> BarsAnswer:
        """Return the bars. Raises any `ProviderError`."""
        return provider.bars(self.ticker, self.window.start, self.window.end)


def request(scope: Scope, targets: Sequence[Target], known: Known) -> BarsRequest | None:
    """Return the next call; None if it could bring this key nothing new."""
    [item] = targets
    window = scope.window(item.asset_type, known.newest, known.now, item.backfilled_to)
    return None if window is None else BarsRequest(item.ticker, window)


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge bars, or why there are none."""
    match fetch.answer:
        case BarsAnswer() as answer:
            return _bars(scope, fetch, answer, known)
        case TimeRangeDenied() as error:
            return _time_denied(scope, fetch, error, known)
        case FeedDenied() as error:
            return _not_in_plan(fetch, error)
        case ProviderError() as error:
            return judge.failed(fetch, error)
        case exists:
            without_data = _without_data(scope, fetch, known)
            return judge.verified(fetch, exists=exists is True, without_data=without_data)


def _bars(scope: Scope, fetch: Fetch, answer: BarsAnswer, known: Known) -> Judgement:
    """Store bars and last price; finish the item, or let another call continue."""
    [item], newest = fetch.items, known.newest
    window = _window(fetch)
    # A window that begins with stored bars should bring at least these again.
    if not answer.bars and (newest is None or window.start <= newest):
        return _empty(scope, fetch, known)
    last = _newest(answer, known)
    advanced = last is not None and (newest is None or last > newest)
    done = window.last and (answer.complete or not advanced)
    end = Finish() if done else Resume(backfilled_to=None if advanced else window.end)
    synced = Synced(
        item.symbol,
        item.feed,
        0,
        None,
        None,
        fetch.seconds,
        more=not done,
        recovered=done and judge.had_failed(item),
    )
    return Judgement(
        [(fetch.items, end)],
        bars=answer.bars,
        price=None if last is None else Price(last, _as_of(scope, item, last, known.now)),
        progress=[*_left_out(item, answer), synced],
    )


def _window(fetch: Fetch) -> Window:
    if not isinstance(fetch.request, BarsRequest):
        raise TypeError(f"bars came for {fetch.request.endpoint}")
    return fetch.request.window


def _newest(answer: BarsAnswer, known: Known) -> datetime | None:
    """Return the start of the newest bar after storing; bars of the future do not count."""
    came = next((bar.start for bar in reversed(answer.bars) if bar.start <= known.now), None)
    return max(filter(None, (came, known.newest)), default=None)


def _as_of(scope: Scope, item: Item, start: datetime, now: datetime) -> datetime:
    """Return the time of the price that is a bar's close: the end of the bar, but not after now.

    If the asset also has quotes, it is the start of the bar: a quote of the same five minutes is
    then newer, and is kept.
    """
    if scope.has_quotes(item.symbol):
        return start
    return min(start + BAR_LENGTH, now)


def _left_out(item: Item, answer: BarsAnswer) -> list[Warned]:
    if not answer.left_out:
        return []
    reasons = ", ".join(map(str, answer.left_out))
    return [Warned(f"{item.symbol}: bars that cannot be true were left out: {reasons}.")]


# --- no bars: the ticker is wrong, or the market is closed ------------------------------------


def _empty(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge an answer without bars: verify the ticker, unless an earlier attempt has counted."""
    if judge.tried_before(fetch.items[0]):
        return _without_data(scope, fetch, known)
    return Judgement([(fetch.items, Verify())], "empty")


def _without_data(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge an item whose ticker exists but has no new bars; it fails if no bars are stored."""
    [item] = fetch.items
    if known.newest is None:
        error = (
            f"The provider has no bars of {item.ticker} within one call's reach; check that it"
            " still trades."
        )
        return Judgement([(fetch.items, Fail(error))], error=error)
    window = scope.window(item.asset_type, known.newest, known.now, item.backfilled_to)
    if window is not None and not window.last:
        return Judgement([(fetch.items, Resume(backfilled_to=window.end))])
    return judge.nothing_new(fetch)


# --- what the plan does not include -----------------------------------------------------------


def _time_denied(scope: Scope, fetch: Fetch, error: TimeRangeDenied, known: Known) -> Judgement:
    """Ask for a shorter range if the plan may allow it; otherwise the plan lacks this asset."""
    if isinstance(fetch.request, BarsRequest):
        window = fetch.request.window
        if not scope.missing.past and window.start < known.now - SAFE_HISTORY - BAR_LENGTH:
            instead = f"those of the last {SAFE_HISTORY.days} days"
            return _without(scope, fetch, error, "past", "bars of so long ago", instead)
        if not scope.missing.today and window.last:
            return _without(
                scope, fetch, error, "today", "bars of the running day", "bars up to yesterday"
            )
    return _not_in_plan(fetch, error)


def _without(
    scope: Scope, fetch: Fetch, error: ProviderError, capability: str, what: str, instead: str
) -> Judgement:
    return Judgement(
        [(fetch.items, Release())],
        error.kind,
        str(error),
        missing=[NotIncluded(capability)],
        scope_changed=True,
        progress=[scope.not_included(what, instead)],
    )


def _not_in_plan(fetch: Fetch, error: ProviderError) -> Judgement:
    return judge.failed(fetch, error)._replace(not_in_plan=error)
