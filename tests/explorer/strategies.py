"""Who goes on, chosen by a random number generator."""

from collections.abc import Sequence
from random import Random

from explorer.plans import Action, HandOver, Striking


def shuffled(random: Random, names: Sequence[str]) -> tuple[str, ...]:
    """Return the order in which the tasks go first."""
    return tuple(random.sample(names, len(names)))


def change_points(
    random: Random, steps: int, depth: int, labels: Sequence[str] = ()
) -> list[Striking]:
    """Return a few steps at which whoever works goes last from then on.

    With the shuffled order this is PCT (Burckhardt and others, 2010): a bug that needs `depth`
    orders to be right is found with a probability of at least 1 / (tasks * steps ** (depth - 1)).
    Half of them wait for the next point with one of these labels.
    """
    return [strike(random, steps, HandOver(None), labels) for _ in range(depth)]


def preemptions(
    random: Random, names: Sequence[str], steps: int, bound: int, labels: Sequence[str] = ()
) -> list[Striking]:
    """Return a few steps at which another task goes on (CHESS: few preemptions find most bugs).

    They come in bursts, so that a task is often stopped within what it was let in for. Half of them
    wait for the next point with one of these labels.
    """
    found: list[Striking] = []
    for _ in range(bound):
        action = HandOver(random.choice(names))
        if found and random.random() < 0.5:
            found.append(Striking(found[-1].step + random.randint(1, 12), action))
        else:
            found.append(strike(random, steps, action, labels))
    return found


def strike(
    random: Random, steps: int, action: Action, labels: Sequence[str] = (), share: float = 0.5
) -> Striking:
    """Return an action at a random step; such a share waits for the next point with a label.

    Half of those come rather early, when more is still to be done.
    """
    step = random.randint(1, steps)
    if not labels or random.random() >= share:
        return Striking(step, action)
    if random.random() < 0.5:
        step = max(1, int(step * random.random()))
    return Striking(step, action, random.choice(labels))
