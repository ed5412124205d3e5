"""The last quote and the day's figures, many assets a call; paid plans only."""

from collections.abc import Sequence
from dataclasses import dataclass

from asset_sync.model import Feed
from asset_sync.provider.answers import Quote, SnapshotAnswer
from asset_sync.provider.current import endpoints
from asset_sync.provider.errors import FeedDenied, ProviderError, TimeRangeDenied
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Item
from asset_sync.sync import judge
from asset_sync.sync.judge import Fail, Fetch, Finish, ItemEnd, Judgement, Known, NotIncluded, Skip
from asset_sync.sync.news import Chance
from asset_sync.sync.progress import Progress, Synced, Warned
from asset_sync.sync.scope import NO_SNAPSHOTS, Scope, Target


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """The quotes of these tickers."""

    tickers: Sequence[str]

    @property
    def endpoint(self) -> str:
        """Path and query."""
        return endpoints.snapshot(self.tickers)

    def call(self, provider: Provider) -> SnapshotAnswer:
        """Return the quotes. Raises any `ProviderError`."""
        return provider.snapshots(self.tickers)


def request(scope: Scope, targets: Sequence[Target], known: Known) -> SnapshotRequest:  # noqa: ARG001  # as every feed's
    """Return the next call."""
    return SnapshotRequest([item.ticker for item in targets])


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:  # noqa: ARG001  # as every feed's
    """Judge quotes, or why there are none."""
    match fetch.answer:
        case SnapshotAnswer() as answer:
            return _quotes(fetch, answer)
        case FeedDenied() as error:
            return _without_snapshots(scope, fetch, error)
        case ProviderError() as error if len(fetch.items) > 1:
            return _use_bars_for_a_day(fetch, error)
        case TimeRangeDenied() as error:
            return judge.failed(fetch, error)._replace(not_in_plan=error)
        case ProviderError() as error:
            return judge.failed(fetch, error)
        case exists:
            nothing_new = judge.nothing_new(fetch, Chance())
            return judge.verified(fetch, exists=exists is True, without_data=nothing_new)


def _quotes(fetch: Fetch, answer: SnapshotAnswer) -> Judgement:
    """Store the quotes; judge each row by itself."""
    ends: list[tuple[Sequence[Item], ItemEnd]] = []
    progress: list[Progress] = []
    missing: list[NotIncluded] = []
    found = [
        (item, answer.quotes[item.ticker]) for item in fetch.items if item.ticker in answer.quotes
    ]
    if found:
        ends.append(([item for item, _ in found], Finish()))
        progress += [_synced(item, quote, fetch.seconds) for item, quote in found]
    for item in fetch.items:
        error = answer.refused.get(item.ticker)
        if isinstance(error, FeedDenied):
            missing.append(NotIncluded(Feed.SNAPSHOT, [item.symbol]))
            ends.append(([item], Skip(str(error))))
            progress.append(Warned(f"{item.symbol}: no snapshots for it on this plan; using bars."))
        elif error is not None:
            ends.append(([item], Fail(str(error))))
    return Judgement(ends, quotes=found, missing=missing, progress=progress)


def _synced(item: Item, quote: Quote, seconds: float) -> Synced:
    return Synced(
        item.symbol,
        item.feed,
        0,
        quote.last_price,
        quote.at,
        seconds,
        recovered=judge.had_failed(item),
    )


def _without_snapshots(scope: Scope, fetch: Fetch, error: ProviderError) -> Judgement:
    return Judgement(
        [(fetch.items, Skip(NO_SNAPSHOTS))],
        error.kind,
        str(error),
        missing=[NotIncluded(Feed.SNAPSHOT)],
        scope_changed=True,
        progress=[scope.not_included("snapshots", "bars")],
    )


def _use_bars_for_a_day(fetch: Fetch, error: ProviderError) -> Judgement:
    """Serve these assets by bars for a day: one of them makes the whole call fail."""
    why = Warned(f"{error} Bars serve these {len(fetch.items)} assets for a day.")
    return Judgement(
        [(fetch.items, Skip(str(error)))],
        error.kind,
        str(error),
        missing=[NotIncluded(Feed.SNAPSHOT, fetch.symbols)],
        scope_changed=True,
        progress=[why],
    )
