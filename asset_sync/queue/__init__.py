"""The queue: one row per asset and feed, from idle to waiting to leased and back.

A row is leased by one run at a time, under a token that only this run has. If another run has taken
the item back, the first run can no longer change it.
"""

from asset_sync.queue.claiming import Item, can_claim, claim, claim_history
from asset_sync.queue.ending import (
    TRY_AGAIN_SECONDS,
    LostLeaseError,
    Struck,
    fail,
    finish,
    idle,
    move_back,
    release,
    resume,
    skip,
    strike,
    verify,
)
from asset_sync.queue.entering import LINE_LENGTH, Enqueued, enqueue, reclaim
from asset_sync.queue.rules import FAILING_STRIKES, LONGEST_BACK_OFF_SECONDS, Wanted, calls_for
from asset_sync.queue.view import (
    Dead,
    Failing,
    Freshness,
    HeldHistory,
    LevelStatus,
    Upcoming,
    dead,
    due_within,
    failing,
    freshness,
    held_history,
    last_success,
    levels,
    line,
    next_ready_seconds,
    preview,
)

__all__ = [
    "FAILING_STRIKES",
    "LINE_LENGTH",
    "LONGEST_BACK_OFF_SECONDS",
    "TRY_AGAIN_SECONDS",
    "Dead",
    "Enqueued",
    "Failing",
    "Freshness",
    "HeldHistory",
    "Item",
    "LevelStatus",
    "LostLeaseError",
    "Struck",
    "Upcoming",
    "Wanted",
    "calls_for",
    "can_claim",
    "claim",
    "claim_history",
    "dead",
    "due_within",
    "enqueue",
    "fail",
    "failing",
    "finish",
    "freshness",
    "held_history",
    "idle",
    "last_success",
    "levels",
    "line",
    "move_back",
    "next_ready_seconds",
    "preview",
    "reclaim",
    "release",
    "resume",
    "skip",
    "strike",
    "verify",
]
