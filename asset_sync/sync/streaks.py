"""Failures in a row, and when they end a run."""

from dataclasses import dataclass, field

from asset_sync.database import DriverError
from asset_sync.provider.errors import NotSent, ProviderError, RateLimited, Unavailable
from asset_sync.sync.apply import Result
from asset_sync.sync.judge import Fetch, is_well
from asset_sync.sync.report import Ended

# The run ends after so many requests in a row that could not be sent.
UNSENT_CALLS = 3
# After bad answers for so many different assets in a row, the run makes one call each half window
# until the provider answers well again.
BAD_ANSWERS = 3
# If the plan does not include so many different assets in a row, it includes none.
NOT_IN_PLAN = 2


class Stop(Exception):  # noqa: N818  # not an error: how a call ends the loop
    """Ends a run."""

    def __init__(self, reason: Ended, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Streaks:
    """Failures in a row since the last good answer, of all workers of a run together."""

    unsent: int = 0
    """Requests that could not be sent."""
    bad: set[str] = field(default_factory=set)
    """Assets that got a bad answer or none."""
    not_in_plan: dict[str, str] = field(default_factory=dict)
    """Assets that the plan does not include, and what the provider said of each."""
    unavailable: str = ""
    """The last call's error, if the API did not answer it."""
    wasted: int = 0
    """Calls whose answers the database did not store, since it last stored one."""
    refused_by_database: tuple[str, str] | None = None
    """The asset whose data the database refused last, and the SQLSTATE."""

    @property
    def is_bad(self) -> bool:
        """Whether so many assets got bad answers that the provider seems to be in trouble."""
        return len(self.bad) >= BAD_ANSWERS

    def note(self, fetch: Fetch, result: Result) -> None:
        """Count the result of a call."""
        answer = fetch.answer
        self.unsent = self.unsent + 1 if isinstance(answer, NotSent) else 0
        self.unavailable = str(answer) if isinstance(answer, Unavailable) else ""
        if is_well(answer):
            self.bad.clear()
            self.not_in_plan.clear()
        elif isinstance(answer, ProviderError) and not isinstance(answer, NotSent | RateLimited):
            self.bad.update(fetch.symbols)
        if result.not_in_plan is not None:
            self.not_in_plan |= dict.fromkeys(fetch.symbols, str(result.not_in_plan))

    def refused(self, symbol: str, error: DriverError) -> bool:
        """Note that the database refused an asset's data; return whether the database is the cause.

        It is the cause if it refuses two different assets in a row for the same reason.
        """
        before = self.refused_by_database
        self.refused_by_database = (symbol, error.pgcode or "")
        return before is not None and before[0] != symbol and before[1] == error.pgcode

    def check(self, result: Result) -> None:
        """Raise Stop if every further call would fail in the same way."""
        if result.hopeless is not None:
            raise Stop(Ended.KEY_REFUSED, str(result.hopeless))
        if result.not_in_plan is not None and len(self.not_in_plan) >= NOT_IN_PLAN:
            raise Stop(Ended.PLAN_REFUSED, str(result.not_in_plan))
        if self.unsent >= UNSENT_CALLS:
            raise Stop(
                Ended.UNAVAILABLE,
                f"{self.unavailable} After {UNSENT_CALLS} requests that could not be sent "
                "the run ends; the next one tries again.",
            )
