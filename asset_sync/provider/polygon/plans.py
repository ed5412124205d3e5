"""The provider's plans."""

from collections.abc import Mapping
from types import MappingProxyType

from asset_sync.model import Feed
from asset_sync.provider.plan import Plan

_PAID_FEEDS = (Feed.SNAPSHOT, Feed.BARS)

PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        plan.name: plan
        for plan in (
            Plan("free", 5, 60.0, (Feed.BARS,), 720, 1, 0),
            Plan("starter", 100, 1.0, _PAID_FEEDS, 3650, 8, 49),
            Plan("developer", 100, 1.0, _PAID_FEEDS, 3650, 8, None),
            Plan("advanced", 100, 1.0, _PAID_FEEDS, 3650, 8, None),
        )
    }
)
"""The plans by name.

A free key has five calls a minute and two years of history. 720 days are a little less, because the
API rejects a range that starts earlier. Paid keys have no limit except "stay under 100 requests a
second". With eight calls of 0.3 s in flight a run makes 22 a second, and full answers bring as much
as the database writes. Their ten years are more than one call covers anyway. The prices of free
(Basic) and starter are those of `massive.com/pricing` for currencies, as quoted by users in 2026;
developer and advanced are sold for stocks only.
"""
