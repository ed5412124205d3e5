"""The protocol that every provider implements."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from asset_sync.provider.answers import BarsAnswer, SnapshotAnswer, TickersAnswer


class Provider(Protocol):
    """A provider of market data; each method that returns data makes exactly one call.

    The call ends within `call_timeout_seconds`, and raises only a `ProviderError`.
    """

    call_timeout_seconds: float
    """The time limit of the next whole call; may be set between two calls."""

    def send_only_if(self, may_send: Callable[[], bool]) -> None:
        """Call `may_send` immediately before each request is written; if False, raise `NotSent`."""

    def bars(
        self, ticker: str, start: datetime, end: datetime, *, by_minute: bool = False
    ) -> BarsAnswer:
        """Return the five-minute bars that start between `start` and `end`, aware and included.

        With `by_minute` they are made from the provider's minute bars, in case it has only those.
        """
        ...

    def snapshots(self, tickers: Sequence[str]) -> SnapshotAnswer:
        """Return the last price of each ticker."""
        ...

    def ticker_exists(self, ticker: str) -> bool:
        """Return whether the provider knows the ticker."""
        ...

    def tickers(self, page: str) -> TickersAnswer:
        """Return a page of the provider's list of tickers."""
        ...

    def close(self) -> None:
        """Close the connection."""
