"""Decides which fault is used for which call."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from asset_sync.demo.faults.registry import FAULTS, Fault
from asset_sync.demo.wire import Call, StandInError


@dataclass(slots=True)
class _Rule:
    fault: Fault
    left: int | None
    ticker: str | None

    def matches(self, call: Call) -> bool:
        return (
            self.left != 0
            and (self.ticker is None or self.ticker in call.tickers)
            and self.fault.applies(call)
        )


_SPEC = re.compile(r"(?P<name>[a-z-]+)(?::(?P<left>[1-9]\d{0,8}))?(?:@(?P<ticker>[^@\s]+))?")


class FaultPlan:
    """The faults in use; a call gets the first one that matches it. Not thread-safe."""

    def __init__(self, specs: Iterable[str] = ()) -> None:
        """Raise StandInError for a spec that is not valid."""
        self.specs = tuple(specs)
        self._rules = [_rule(spec) for spec in self.specs]

    def take(self, call: Call) -> Fault | None:
        """Return the fault for this call, and count it; None for a right answer."""
        for rule in self._rules:
            if rule.matches(call):
                if rule.left is not None:
                    rule.left -= 1
                return rule.fault
        return None


def _rule(spec: str) -> _Rule:
    found = _SPEC.fullmatch(spec)
    if found is None or found["name"] not in FAULTS:
        raise StandInError(
            f"“{spec}” is no fault: write NAME, NAME:COUNT, NAME@TICKER or NAME:COUNT@TICKER, "
            f"where NAME is one of {', '.join(sorted(FAULTS))}."
        )
    left = found["left"]
    return _Rule(FAULTS[found["name"]], int(left) if left else None, found["ticker"])
