"""Faults of paging: endless pages, a next page on another host, or short pages."""

from asset_sync.demo import wire
from asset_sync.demo.faults.registry import fault
from asset_sync.demo.wire import REFERENCE_PATH, Call, Reply


@fault("endless-next-url")
def _endless_next_url(call: Call, right: Reply) -> Reply:
    """Name a next page in every answer, without end."""
    following = int(call.query.get("page", "1")) + 1
    return right.with_keys(next_url=call.page(page=str(following)))


@fault("foreign-next-url", applies=lambda call: "page" not in call.query)
def _foreign_next_url(call: Call, right: Reply) -> Reply:
    """Name a next page on another host, in the first answer only."""
    return right.with_keys(next_url=call.page(address=wire.FOREIGN_HOST, page="2"))


_SHORT_PAGE = 2


@fault("short-pages", applies=lambda call: call.path == REFERENCE_PATH)
def _short_pages(call: Call, right: Reply) -> Reply:
    """Send the list of tickers in pages of two rows."""
    rows = right.rows()
    if len(rows) <= _SHORT_PAGE:
        return right
    following = int(call.query.get("offset", "0")) + _SHORT_PAGE
    return right.with_rows(rows[:_SHORT_PAGE]).with_keys(
        next_url=call.page(offset=str(following)), count=_SHORT_PAGE
    )
