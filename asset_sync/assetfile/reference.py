"""The provider's reference: which tickers there are, and whether the assets' are among them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from asset_sync.budget import slots
from asset_sync.budget.slots import Lane
from asset_sync.database import Connection
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.answers import Listed, TickersAnswer
from asset_sync.provider.current import MARKETS, endpoints
from asset_sync.provider.errors import Fault, ProviderError, Unavailable
from asset_sync.settings import SYMBOL_PATTERN, Settings
from asset_sync.sync.ask import NoCallLeftError, Questions

_MOST_PAGES = 20
# After so many calls in a row without an answer the rest is not asked.
_SILENT_CALLS = 3
# From how many assets of a market on its whole list costs fewer calls and tells the same.
_LIST_FROM = 10
# One letter that is wrong, missing or out of its place leaves a pair's ticker this much alike.
_ALIKE = 0.75


# --- Which there are -----------------------------------------------------------------------------


def pages(
    questions: Questions, asset_type: AssetType, search: str = ""
) -> Iterator[tuple[Listed, ...]]:
    """Give the tickers of a market, a page a call; one that brings nothing new is the last."""
    seen: set[str] = set()
    page = endpoints.tickers(asset_type, search)
    for _ in range(_MOST_PAGES):
        answer = _page(questions, page)
        new = {one.ticker: one for one in answer.tickers if one.ticker not in seen}
        seen.update(new)
        yield tuple(new.values())
        if not new or answer.next_page is None:
            return
        page = answer.next_page


def _page(questions: Questions, page: str) -> TickersAnswer:
    return questions.ask(lambda api: api.tickers(page))


class Skipped(NamedTuple):
    """A ticker that cannot become an asset by itself."""

    ticker: str
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has brought."""

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
    """Turn pages of tickers into assets, none of which is `there`; at most so many new ones.

    No page is asked for once there are enough.
    """
    by_ticker = {asset.ticker: asset for asset in there}
    by_symbol = {asset.symbol: asset for asset in there}
    new: list[Asset] = []
    already: list[Asset] = []
    skipped: list[Skipped] = []
    for ticker, name in (one for page in found for one in page):
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


# --- Whether they exist --------------------------------------------------------------------------


class Verdict(StrEnum):
    """What came of the question whether the provider has a ticker."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    """The provider refuses the key or its plan."""
    UNANSWERED = "unanswered"
    """Asked in vain, or not asked at all."""


class Checked(NamedTuple):
    """What came of it for one asset."""

    asset: Asset
    verdict: Verdict
    why: str | None = None
    """Where there is no answer, the reason."""


class Check:
    """Asks whether tickers exist: one call each, or a market's whole list where that is less."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._lists: dict[AssetType, tuple[str, ...]] = {}
        self._silent_calls = 0

    def each(self, assets: Sequence[Asset]) -> Iterator[Checked]:
        """Give a verdict for each; what would fail for all of them is not tried again."""
        many = Counter(asset.asset_type for asset in assets)
        not_asked: str | None = None
        for asset in assets:
            if not_asked is not None:
                yield Checked(asset, Verdict.UNANSWERED, not_asked)
                continue
            checked = self._one(asset, many[asset.asset_type] > _LIST_FROM)
            yield checked
            if checked.verdict is Verdict.REFUSED or self._silent_calls == _SILENT_CALLS:
                not_asked = "Not asked: it would fail as the calls before it did."

    def nearest(self, asset: Asset) -> str | None:
        """Return the ticker that an unknown one may be meant to be, from its market's list.

        The list costs `calls_to_suggest` once; raises what `Questions.ask` does.
        """
        from difflib import get_close_matches  # noqa: PLC0415  only a mistake needs it

        near = get_close_matches(asset.ticker, self._list(asset.asset_type), 1, _ALIKE)
        return near[0] if near else None

    def calls_to_suggest(self, unknown: Iterable[Asset]) -> int:
        """Return how many calls `nearest` makes for all of these."""
        kinds = {asset.asset_type for asset in unknown} - set(self._lists)
        return sum(MARKETS[kind].pages for kind in kinds)

    def _one(self, asset: Asset, by_list: bool) -> Checked:  # noqa: FBT001

        try:
            # What the list lacks is asked for by itself: only that answer is about this ticker.
            exists = (by_list and self._is_listed(asset)) or self._questions.ask(
                lambda api: api.ticker_exists(asset.ticker)
            )
        except NoCallLeftError as error:
            none = f"Not asked: the budget is used up for {error.seconds:.0f} s."
            return Checked(asset, Verdict.UNANSWERED, none)
        except ProviderError as error:
            silent = isinstance(error, Unavailable)
            self._silent_calls = self._silent_calls + 1 if silent else 0
            refused = error.fault is Fault.ACCOUNT
            return Checked(asset, Verdict.REFUSED if refused else Verdict.UNANSWERED, error.reason)
        self._silent_calls = 0
        return Checked(asset, Verdict.EXISTS if exists else Verdict.UNKNOWN)

    def _is_listed(self, asset: Asset) -> bool:

        try:
            return asset.ticker in self._list(asset.asset_type)
        except ProviderError as error:
            if error.fault is not Fault.ASSET:
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
    """Return how many calls `Check.each` makes for these, if all of them exist."""
    many = Counter(asset.asset_type for asset in assets)
    return sum(MARKETS[kind].pages if many[kind] > _LIST_FROM else many[kind] for kind in many)


def seconds_for(db: Connection, settings: Settings, calls: int) -> float:
    """Return in how many seconds the last of so many calls can begin."""
    rate = slots.rate_of(settings)
    times = slots.free_times(slots.budget(db, rate), Lane.QUEUE)
    return next(islice(times, max(0, calls - 1), None))
