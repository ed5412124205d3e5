"""Who goes on, chosen by a random number generator."""

from collections.abc import Sequence
from random import Random

from explorer.plans import HandOver, Striking


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
    return [
        Striking(random.randint(1, steps), HandOver(None), _label(random, labels))
        for _ in range(depth)
    ]


def preemptions(
    random: Random, names: Sequence[str], steps: int, bound: int, labels: Sequence[str] = ()
) -> list[Striking]:
    """Return a few steps at which another task goes on (CHESS: few preemptions find most bugs).

    They come in bursts, so that a task is often stopped within what it was let in for. Half of them
    wait for the next point with one of these labels.
    """
    found: list[Striking] = []
    step = random.randint(1, steps)
    for _ in range(bound):
        found.append(Striking(step, HandOver(random.choice(names)), _label(random, labels)))
        step = step + random.randint(1, 12) if random.random() < 0.5 else random.randint(1, steps)
    return found


def _label(random: Random, labels: Sequence[str]) -> str:
    return random.choice(labels) if labels and random.random() < 0.5 else ""
