"""Plans: what happens to the tasks of one schedule, and where."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class HandOver(NamedTuple):
    """Another task goes on."""

    to: str | None
    """Which one goes first from now on; None lets the one that worked go last instead."""

    def __str__(self) -> str:
        return "goes last from here on" if self.to is None else f"{self.to} goes first from here on"


class Sleep(NamedTuple):
    """The task stands still, as if its host slept."""

    seconds: float

    def __str__(self) -> str:
        return f"stands still for {self.seconds:g} s"


class Die(NamedTuple):
    """The task is killed."""

    def __str__(self) -> str:
        return "is killed"


class Interrupt(NamedTuple):
    """The task gets a signal that it can answer."""

    def __str__(self) -> str:
        return "is told to end"


class Fault(NamedTuple):
    """Something else goes wrong; only the program under test knows what it means."""

    name: str
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.amount:g}" if self.amount else self.name


Action: TypeAlias = HandOver | Sleep | Die | Interrupt | Fault


class Spot(NamedTuple):
    """A point in a schedule that has the same name even if other parts of the plan change."""

    task: str
    label: str
    number: int
    """The how manyth point with this label in the task."""

    def __str__(self) -> str:
        return f"{self.task} before {self.label!r}, {self.number}"


class Striking(NamedTuple):
    """An action that happens at the first point, from a step on, that offers it."""

    step: int
    """The number of points that all tasks have passed."""
    action: Action
    labels: str = ""
    """What the point's label begins with."""


@dataclass(frozen=True)
class Plan:
    """Which task goes first, and what happens where."""

    order: tuple[str, ...]
    """The tasks' names; of those that can work the first one does."""
    at_steps: tuple[Striking, ...] = ()
    """In the order of the steps."""
    at_spots: Mapping[Spot, Action] = field(default_factory=dict)


class Ahead:
    """What of a plan is still to come."""

    def __init__(self, plan: Plan) -> None:
        self.used: dict[Spot, Action] = {}
        self._at_spots = plan.at_spots
        self._at_steps = list(plan.at_steps)

    def at(
        self, spot: Spot, step: int, offers: Collection[object], *, is_servers: bool
    ) -> Action | None:
        """Return what happens at a point; nothing happens to a task for which a server works."""
        action = self._at_spots.get(spot)
        if action is None and self._at_steps and self._at_steps[0].step <= step:
            action = self._take(spot.label, step, offers, is_servers=is_servers)
        if isinstance(action, HandOver) and action.to == spot.task:
            action = HandOver(None)
        if action is not None:
            self.used[spot] = action
        return action

    def drop(self) -> None:
        """Let nothing more happen."""
        self._at_spots, self._at_steps = {}, []

    def is_planned(self, spot: Spot, step: int) -> bool:
        """Whether something may happen at a point that is still to come."""
        if spot in self._at_spots:
            return True
        for since, _, labels in self._at_steps:
            if since > step:
                return False
            if spot.label.startswith(labels):
                return True
        return False

    def _take(
        self, label: str, step: int, offers: Collection[object], *, is_servers: bool
    ) -> Action | None:
        for place, (since, action, labels) in enumerate(self._at_steps):
            if since > step:
                return None
            if isinstance(action, Fault):
                is_offered = action.name in offers
            else:
                is_offered = isinstance(action, HandOver) or not is_servers
            if is_offered and label.startswith(labels):
                del self._at_steps[place]
                return action
        return None
