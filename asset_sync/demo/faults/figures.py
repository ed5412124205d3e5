"""Faults of the data: rows with impossible values, in the wrong order, or of another asset."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from asset_sync.demo.faults.registry import fault
from asset_sync.demo.replay import BAR_MS, DAY_MS
from asset_sync.demo.wire import SNAPSHOT_PATH, Call, Document, Reply


@fault("nan")
def _nan(_: Call, right: Reply) -> Reply:
    """Send NaN as the newest price."""
    return _with_last_price(right, lambda _: math.nan)


@fault("infinity")
def _infinity(_: Call, right: Reply) -> Reply:
    """Send Infinity as the newest price."""
    return _with_last_price(right, lambda _: math.inf)


@fault("negative")
def _negative(_: Call, right: Reply) -> Reply:
    """Send the newest price below zero."""
    return _with_last_price(right, lambda price: -price)


@fault("high-below-low")
def _high_below_low(_: Call, right: Reply) -> Reply:
    """Send the newest bar with its high below its low."""

    def spoil(row: Document) -> None:
        session = row.get("session")
        figures, high, low = (
            (session, "high", "low") if isinstance(session, dict) else (row, "h", "l")
        )
        floor = figures.get(low)
        if isinstance(floor, int | float):
            figures[high] = floor * 0.99

    return _with_last_row(right, spoil)


@fault("future")
def _future(call: Call, right: Reply) -> Reply:
    """Send the newest row with a time of tomorrow."""
    tomorrow_ms = (call.now_ms + DAY_MS) // BAR_MS * BAR_MS

    def spoil(row: Document) -> None:
        if "t" in row:
            row["t"] = tomorrow_ms
        for holder in _children(row, "last_quote", "last_trade"):
            holder["last_updated"] = tomorrow_ms * 1_000_000

    return _with_last_row(right, spoil)


@fault("unordered")
def _unordered(_: Call, right: Reply) -> Reply:
    """Send the rows in the wrong order: the second half before the first."""
    rows = right.rows()
    middle = len(rows) // 2
    return right.with_rows([*rows[middle:], *rows[:middle]]) if rows else right


@fault("duplicate")
def _duplicate(_: Call, right: Reply) -> Reply:
    """Send the newest bar twice: first with an earlier close, then with the right one."""
    rows = right.rows()
    if not rows:
        return right
    earlier = deepcopy(rows[-1])
    if isinstance(earlier, dict) and "o" in earlier:
        earlier["c"] = earlier["o"]
    return right.with_rows([*rows[:-1], earlier, rows[-1]])


OTHER_TICKER = "C:ILSCHF"
"""The ticker that `other-ticker` answers for: it exists at the API but not here."""


@fault("other-ticker")
def _other_ticker(_: Call, right: Reply) -> Reply:
    """Answer with another ticker than the requested one."""

    def spoil(row: Document) -> None:
        for key in ("T", "ticker"):
            if key in row:
                row[key] = OTHER_TICKER

    named = isinstance(right.body, dict) and "ticker" in right.body
    return _with_last_row(right.with_keys(ticker=OTHER_TICKER) if named else right, spoil)


@fault("not-entitled", applies=lambda call: call.path == SNAPSHOT_PATH)
def _not_entitled(_: Call, right: Reply) -> Reply:
    """Send NOT_ENTITLED in the last row of a snapshot: the plan does not include its ticker."""

    def spoil(row: Document) -> None:
        ticker = row.get("ticker")
        row.clear()
        row |= {
            "ticker": ticker,
            "error": "NOT_ENTITLED",
            "message": "Not entitled to this ticker.",
        }

    return _with_last_row(right, spoil)


@fault("wrong-shape")
def _wrong_shape(_: Call, right: Reply) -> Reply:
    """Answer 200, with rows in an undocumented shape."""
    return right.with_keys(results={"rows": right.rows()})


@fault("empty")
def _empty(_: Call, right: Reply) -> Reply:
    """Answer 200 without rows, as for a market that was closed for the whole range."""
    if not isinstance(right.body, dict) or isinstance(right.body.get("results"), dict):
        return right  # details of one ticker are no rows
    kept = {key: value for key, value in right.body.items() if key not in ("results", "next_url")}
    counts: Document = {key: 0 for key in ("queryCount", "resultsCount", "count") if key in kept}
    return replace(right, body={**kept, **counts})


def _with_last_row(right: Reply, spoil: Callable[[Document], None]) -> Reply:
    rows = right.rows()
    if not rows:
        return right
    last = deepcopy(rows[-1])
    if isinstance(last, dict):
        spoil(last)
    return right.with_rows([*rows[:-1], last])


def _with_last_price(right: Reply, change: Callable[[float], float]) -> Reply:
    """Change each last price of the newest row: close, bid and trade."""

    def spoil(row: Document) -> None:
        for holder in (row, *_children(row, "session", "last_quote", "last_trade")):
            for key in ("c", "close", "bid", "price"):
                price = holder.get(key)
                if isinstance(price, int | float):
                    holder[key] = change(price)

    return _with_last_row(right, spoil)


def _children(row: Document, *names: str) -> list[Document]:
    found = (row.get(name) for name in names)
    return [child for child in found if isinstance(child, dict)]
