"""The feeds: which request each makes, and how it judges the answer.

A run and a dry run use the same functions. A new feed is a module beside `bars` and `snapshot`, a
`Feed` in `asset_sync.model`, a line in `WORK`, and its name in the plans that have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asset_sync.model import Feed
from asset_sync.provider.current import endpoints
from asset_sync.provider.errors import ProviderError
from asset_sync.provider.protocol import Provider
from asset_sync.sync import judge
from asset_sync.sync.feeds import bars, history, snapshot
from asset_sync.sync.judge import Fetch, Judgement, Known, Request
from asset_sync.sync.scope import Scope, Target


class FeedWork(NamedTuple):
    """The two functions of a feed."""

    request: Callable[[Scope, Sequence[Target], Known], Request | None]
    """Return the next call for these assets; None if there can be nothing new."""

    judge: Callable[[Scope, Fetch, Known], Judgement]
    """Judge its answer."""


WORK: dict[Feed, FeedWork] = {
    Feed.BARS: FeedWork(bars.request, bars.judge_answer),
    Feed.SNAPSHOT: FeedWork(snapshot.request, snapshot.judge_answer),
    Feed.HISTORY: FeedWork(history.request, history.judge_answer),
}


@dataclass(frozen=True, slots=True)
class TickerRequest:
    """The question whether a ticker exists."""

    ticker: str

    @property
    def endpoint(self) -> str:
        """Path and query."""
        return endpoints.reference(self.ticker)

    def call(self, provider: Provider) -> bool:
        """Return whether it exists. Raises any `ProviderError`."""
        return provider.ticker_exists(self.ticker)


def request_of(scope: Scope, targets: Sequence[Target], known: Known) -> Request | None:
    """Return the one call that these assets need; None if it could bring nothing new."""
    first = targets[0]
    if first.verify_ticker:
        return TickerRequest(first.ticker)
    return WORK[first.feed].request(scope, targets, known)


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge an answer: `judge.refused` judges the errors of all feeds, the feed judges the rest."""
    if isinstance(fetch.answer, ProviderError):
        refused = judge.refused(fetch, fetch.answer)
        if refused is not None:
            return refused
    return WORK[fetch.items[0].feed].judge(scope, fetch, known)
