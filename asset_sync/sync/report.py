"""What a run did, and why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from asset_sync.model import Feed, Lane
from asset_sync.sync.progress import Failed, Filled, Progress, Synced


class Ended(StrEnum):
    """Why a run ended."""

    NOTHING_DUE = "nothing_due"
    DONE = "done"
    BUDGET = "budget_used_up"
    TIME = "time_up"
    LIMIT = "limit_reached"
    DISABLED = "disabled"
    KEY_REFUSED = "key_refused"
    PLAN_REFUSED = "plan_refused"
    UNAVAILABLE = "provider_unavailable"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"


NOT_SERVED = (Ended.KEY_REFUSED, Ended.PLAN_REFUSED, Ended.UNAVAILABLE)
"""The reasons that mean that the provider served nothing."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An asset that could not be refreshed, and why."""

    symbol: str
    error: str


@dataclass(slots=True)
class Report:
    """What a run did."""

    run_id: int
    lane: Lane
    updated: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    api_calls_used: int = 0
    bars_written: int = 0
    waited_seconds: float = 0.0
    """Spent waiting for a slot."""
    history_calls: int = 0
    """How many of the calls for history were answered well."""
    history_failed: list[Failure] = field(default_factory=list)
    """The assets whose past could not be asked; their newest data is fresh all the same."""
    closed_until: datetime | None = None
    """When the next market opens, if nothing was due because all are closed."""
    left_out: int = 0
    """How many due assets did not enter the queue because it was full."""
    reason_ended: Ended = Ended.DONE
    message: str = ""
    """The sentence that explains the reason, if there is one."""
    is_news: bool = True
    """Whether the command's run before this one ended differently."""

    @property
    def served(self) -> int:
        """How many assets were refreshed or failed."""
        return len(self.updated) + len(self.failed)

    @property
    def progress(self) -> int:
        """A number that grows while the run achieves something."""
        return self.served + self.bars_written

    def note(self, progress: Progress) -> None:
        """Count the result of a call; only the latest result of an asset stays."""
        if isinstance(progress, Synced):
            self.bars_written += progress.bars_written
            if not progress.more:
                self.failed = _without(self.failed, progress.symbol)
                if progress.symbol not in self.updated:
                    self.updated.append(progress.symbol)
        elif isinstance(progress, Filled):
            self.bars_written += progress.bars_written
            self.history_calls += 1
            self.history_failed = _without(self.history_failed, progress.symbol)
        elif isinstance(progress, Failed):
            failure = Failure(progress.symbol, progress.error)
            if progress.feed is Feed.HISTORY:
                self.history_failed = [*_without(self.history_failed, progress.symbol), failure]
            else:
                self.failed = [*_without(self.failed, progress.symbol), failure]


def _without(failures: Sequence[Failure], symbol: str) -> list[Failure]:
    return [failure for failure in failures if failure.symbol != symbol]
