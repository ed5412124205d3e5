"""The API's client: each call is one HTTP request."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Self

from asset_sync.provider.access import Access
from asset_sync.provider.answers import BarsAnswer, SnapshotAnswer, TickersAnswer
from asset_sync.provider.polygon import endpoints
from asset_sync.provider.polygon.http import Http
from asset_sync.provider.polygon.parse import (
    read_bars,
    read_exists,
    read_snapshots,
    read_tickers,
)
from asset_sync.provider.polygon.refusals import CallContext


class Polygon:
    """The API, over one session; each method is exactly one HTTP request, and one slot.

    A call ends within `call_timeout_seconds`, and raises only a `ProviderError`, whatever the
    server does. The key is sent only in the `Authorization` header, and only to the host of
    `base_url`. For one thread at a time.
    """

    def __init__(self, access: Access) -> None:
        self._key = access.key
        self._http = Http(access)

    def __repr__(self) -> str:
        return f"<Polygon at {self._http.host}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def call_timeout_seconds(self) -> float:
        """The time limit of the next whole call; may be set between two calls."""
        return self._http.call_timeout_seconds

    @call_timeout_seconds.setter
    def call_timeout_seconds(self, seconds: float) -> None:
        self._http.call_timeout_seconds = seconds

    def send_only_if(self, may_send: Callable[[], bool]) -> None:
        """Call `may_send` immediately before each request is written; if False, raise `NotSent`."""
        self._http.may_send = may_send

    def close(self) -> None:
        """Close the connection; a later call opens another."""
        self._http.close()

    def bars(
        self, ticker: str, start: datetime, end: datetime, *, by_minute: bool = False
    ) -> BarsAnswer:
        """Return the five-minute bars that start between `start` and `end`, aware and included.

        With `by_minute` they are made of minute bars: for one user a day of C:XAUUSD had no bars of
        an hour while it had 35,424 of a minute. It is the same number of calls.

        The answer may have no bars: a quiet market and an unknown ticker look the same (see
        `ticker_exists`). A `next_url` is not followed but returned as `complete=False`. Raises any
        `ProviderError`; `TimeRangeDenied` when the plan does not include the range.
        """
        reply = self._http.get(endpoints.bars(ticker, start, end, by_minute=by_minute), ticker)
        return read_bars(reply, self._call(ticker), ticker, start, end, by_minute=by_minute)

    def snapshots(self, tickers: Sequence[str]) -> SnapshotAnswer:
        """Return the last price of each ticker, up to 250 of any market (paid plans only).

        Each row is judged by itself: the error of one ticker is in `refused`. An error of the
        whole call is raised: any `ProviderError`, `FeedDenied` on a free plan.
        """
        endpoint = endpoints.snapshot(tickers)
        asked = _shortened(tickers)
        reply = self._http.get(endpoint, asked)
        return read_snapshots(reply, self._call(asked), tickers)

    def ticker_exists(self, ticker: str) -> bool:
        """Return whether the API's reference knows the ticker; raises any `ProviderError`."""
        reply = self._http.get(endpoints.reference(ticker), ticker)
        return read_exists(reply, self._call(ticker), ticker)

    def tickers(self, page: str) -> TickersAnswer:
        """Return a page of the API's list; `page` is `endpoints.tickers` or an answer's next page.

        Raises any `ProviderError`.
        """
        asked = "the list of tickers"
        return read_tickers(self._http.get(page, asked), self._call(asked))

    def _call(self, asked: str) -> CallContext:
        return CallContext(asked=asked, host=self._http.host, key=self._key)


def _shortened(tickers: Sequence[str]) -> str:
    others = len(tickers) - 1
    return f"{tickers[0]} and {others} more" if others else tickers[0]
