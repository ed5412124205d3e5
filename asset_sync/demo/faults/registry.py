"""The type of a fault, and the registry of all faults by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from asset_sync.demo.wire import Call, Reply

Answer: TypeAlias = Callable[[Call, Reply], Reply]
"""Takes the call and the right answer; returns what is sent instead."""


def _always(_: Call) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which the API, or a proxy before it, fails."""

    name: str
    about: str
    """What happens, in one line."""

    answer: Answer
    applies: Callable[[Call], bool]
    counts: bool
    """Whether the call counts against the key's window; a 401 does not."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, applies: Callable[[Call], bool] = _always, counts: bool = True
) -> Callable[[Answer], Answer]:
    """Register a function as the fault of this name."""

    def register(answer: Answer) -> Answer:
        about = (answer.__doc__ or "").strip().rstrip(".")
        FAULTS[name] = Fault(name, about, answer, applies, counts)
        return answer

    return register
