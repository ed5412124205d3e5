"""Finds tickers in the provider's list, and checks that the assets' tickers exist."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from asset_sync.budget import slots
from asset_sync.database import Connection
from asset_sync.model import Asset, AssetType, Lane, Level
from asset_sync.provider.answers import Listed, TickersAnswer
from asset_sync.provider.current import MARKETS, endpoints
from asset_sync.provider.errors import Cause, ProviderError, Unavailable
from asset_sync.settings import SYMBOL_PATTERN, Settings
from asset_sync.sync.ask import NoCallLeftError, Questions

_MOST_PAGES = 20
# After so many calls in a row without an answer no more are made.
_SILENT_CALLS = 3
# For more assets of a market than this, its whole list takes fewer calls than one call each.
_MOST_SINGLE_CALLS = 10
# The least similarity: tickers of pairs that differ by one wrong, missing or moved letter have it.
_LEAST_SIMILARITY = 0.75


# --- finding tickers -----------------------------------------------------------------------------


def pages(
    questions: Questions, asset_type: AssetType, search: str = ""
) -> Iterator[tuple[Listed, ...]]:
    """Yield the tickers of a market, one page per call, until a page has no new ones."""
    seen: set[str] = set()
    page = endpoints.tickers(asset_type, search)
    for _ in range(_MOST_PAGES):
        answer = _page(questions, page)
        new = {listed.ticker: listed for listed in answer.tickers if listed.ticker not in seen}
        seen.update(new)
        yield tuple(new.values())
        if not new or answer.next_page is None:
            return
        page = answer.next_page


def _page(questions: Questions, page: str) -> TickersAnswer:
    return questions.ask(lambda api: api.tickers(page))


class Skipped(NamedTuple):
    """A ticker that cannot become an asset without the user's help."""

    ticker: str
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    new: tuple[Asset, ...]
    there: tuple[Asset, ...]
    """Assets of the settings whose tickers were found."""

    skipped: tuple[Skipped, ...]


def find(
    found: Iterable[tuple[Listed, ...]],
    asset_type: AssetType,
    there: Sequence[Asset],
    *,
    level: Level,
    every_seconds: int,
    most: int | None = None,
) -> Found:
    """Turn pages of tickers into assets that are not yet `there`, at most so many new ones.

    Once there are enough, no further page is read.
    """
    by_ticker = {asset.ticker: asset for asset in there}
    by_symbol = {asset.symbol: asset for asset in there}
    new: list[Asset] = []
    already: list[Asset] = []
    skipped: list[Skipped] = []
    for ticker, name in (listed for page in found for listed in page):
        symbol = ticker.removeprefix(MARKETS[asset_type].prefix)
        if (asset := by_ticker.get(ticker)) is not None:
            already.append(asset)
        elif (unfit := _unfit(ticker, symbol, asset_type, by_symbol)) is not None:
            skipped.append(Skipped(ticker, unfit))
        else:
            new.append(Asset(symbol, ticker, asset_type, name, level, 0, every_seconds))
            if len(new) == most:
                break
    return Found(tuple(new), tuple(already), tuple(skipped))


def _unfit(
    ticker: str, symbol: str, asset_type: AssetType, by_symbol: dict[str, Asset]
) -> str | None:
    if symbol == ticker:
        return f"does not begin with {MARKETS[asset_type].prefix}"
    if not re.fullmatch(SYMBOL_PATTERN, symbol):
        return f"{symbol!r} is no symbol: `assets add` takes one of your own with --ticker"
    if symbol in by_symbol:
        return f"{symbol} is {by_symbol[symbol].ticker} in the settings; `assets add` it as another"
    return None


# --- checking tickers ----------------------------------------------------------------------------


class TickerStatus(StrEnum):
    """Whether the provider has a ticker."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    """The provider refuses the key or its plan."""
    UNANSWERED = "unanswered"
    """There was no usable answer, or no call."""


class Checked(NamedTuple):
    """The result for one asset."""

    asset: Asset
    verdict: TickerStatus
    why: str | None = None
    """The reason, if there is no answer."""


class TickerCheck:
    """Asks whether tickers exist: one call each, or a market's whole list if that is cheaper."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._lists: dict[AssetType, tuple[str, ...]] = {}
        self._silent_calls = 0

    def each(self, assets: Sequence[Asset]) -> Iterator[Checked]:
        """Yield the result of each asset; no more calls after an error that concerns all."""
        many = Counter(asset.asset_type for asset in assets)
        not_asked: str | None = None
        for asset in assets:
            if not_asked is not None:
                yield Checked(asset, TickerStatus.UNANSWERED, not_asked)
                continue
            checked = self._check(asset, many[asset.asset_type] > _MOST_SINGLE_CALLS)
            yield checked
            if checked.verdict is TickerStatus.REFUSED or self._silent_calls == _SILENT_CALLS:
                not_asked = "Not asked, because the calls before it failed."

    def nearest(self, asset: Asset) -> str | None:
        """Return the ticker of the market's list that is most similar to an unknown one.

        The list costs `calls_to_suggest` once; raises what `Questions.ask` raises.
        """
        from difflib import get_close_matches  # noqa: PLC0415  only a mistake needs it

        tickers = self._list(asset.asset_type)
        near = get_close_matches(asset.ticker, tickers, 1, _LEAST_SIMILARITY)
        return near[0] if near else None

    def calls_to_suggest(self, unknown: Iterable[Asset]) -> int:
        """Return how many calls `nearest` makes for all of these."""
        kinds = {asset.asset_type for asset in unknown} - set(self._lists)
        return sum(MARKETS[kind].pages for kind in kinds)

    def _check(self, asset: Asset, by_list: bool) -> Checked:  # noqa: FBT001
        try:
            # A ticker that is not in the list gets its own call: only that answer is certain.
            exists = (by_list and self._is_listed(asset)) or self._questions.ask(
                lambda api: api.ticker_exists(asset.ticker)
            )
        except NoCallLeftError as error:
            none = f"Not asked: the budget is used up for {error.seconds:.0f} s."
            return Checked(asset, TickerStatus.UNANSWERED, none)
        except ProviderError as error:
            silent = isinstance(error, Unavailable)
            self._silent_calls = self._silent_calls + 1 if silent else 0
            refused = error.cause is Cause.ACCOUNT
            return Checked(
                asset, TickerStatus.REFUSED if refused else TickerStatus.UNANSWERED, error.reason
            )
        self._silent_calls = 0
        return Checked(asset, TickerStatus.EXISTS if exists else TickerStatus.UNKNOWN)

    def _is_listed(self, asset: Asset) -> bool:
        try:
            return asset.ticker in self._list(asset.asset_type)
        except ProviderError as error:
            if error.cause is not Cause.ASSET:
                raise
            self._lists[asset.asset_type] = ()  # it would be as unreadable the next time
            return False

    def _list(self, kind: AssetType) -> tuple[str, ...]:
        if kind not in self._lists:
            self._lists[kind] = tuple(
                listed.ticker for page in pages(self._questions, kind) for listed in page
            )
        return self._lists[kind]


def calls_to_check(assets: Sequence[Asset]) -> int:
    """Return how many calls `TickerCheck.each` makes for these, if all of them exist."""
    many = Counter(asset.asset_type for asset in assets)
    return sum(
        MARKETS[kind].pages if number > _MOST_SINGLE_CALLS else number
        for kind, number in many.items()
    )


def seconds_for(db: Connection, settings: Settings, calls: int) -> float:
    """Return in how many seconds the last of so many calls can begin."""
    rate = slots.rate_of(settings)
    times = slots.free_times(slots.budget(db, rate), Lane.QUEUE)
    return next(islice(times, max(0, calls - 1), None))
