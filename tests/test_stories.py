"""Schedules that once broke a promise, each told by what happens where.

`tests/explore.py` found them; it prints a new one in this form. A story that does not happen any
more, because a statement has another name, fails too: give it the new name.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from exploration import Laboratory, Scenario, Start
from explore import laboratory as new_laboratory
from explorer.plans import Action, Fault, HandOver, Interrupt, Plan, Spot
from explorer.sessions import JUMP, LOST, REPLY_LOST

from asset_sync.model import Lane


class Story(NamedTuple):
    what: str
    scenario: Scenario
    order: tuple[str, ...]
    spots: Mapping[Spot, Action]


LATER = (
    Start("queue-1", Lane.QUEUE, 0.0),
    Start("queue-2", Lane.QUEUE, 45.0),
    Start("queue-3", Lane.QUEUE, 45.0),
)
TWO_QUEUES = (Start("queue-1", Lane.QUEUE, 0.0), Start("queue-2", Lane.QUEUE, 0.0))

STORIES = (
    Story(
        "while one run's claim waits for its commit the other one pauses",
        Scenario(TWO_QUEUES, ("S1",), calls=3),
        ("queue-1", "queue-2"),
        {Spot("queue-1", "claiming.claim commit", 1): HandOver(None)},
    ),
    Story(
        "a signal just before the commit gives item and slot back",
        Scenario(TWO_QUEUES, ("S1",), calls=3),
        ("queue-1", "queue-2"),
        {Spot("queue-1", "caller.serve commit", 1): Interrupt()},
    ),
    Story(
        "an item that could be claimed before the clock was set back can be claimed after it",
        Scenario(LATER, ("S1", "S2"), calls=1),
        ("queue-1", "queue-3", "queue-2"),
        {Spot("queue-1", "slots.release", 1): Fault(JUMP, -3600.0)},
    ),
    Story(
        "a clock that is set back after a run began is noticed before any slot is taken",
        Scenario(TWO_QUEUES, ("S1", "S2"), calls=1),
        ("queue-1", "queue-2"),
        {Spot("queue-1", "entering.enqueue 2", 1): Fault(JUMP, -3600.0)},
    ),
    Story(
        "another thread of the run knows the time from before the clock was set forward",
        Scenario(
            (Start("queue-1", Lane.QUEUE, 0.0), Start("priority-2", Lane.PRIORITY, 0.0)),
            ("P1", "S1", "S2", "S3"),
            calls=2,
            history=True,
            workers=2,
        ),
        ("priority-2.2", "priority-2.1", "priority-2", "queue-1", "queue-1.1", "queue-1.2"),
        {Spot("queue-1.1", "claiming.claim", 1): Fault(JUMP, 3600.0)},
    ),
    Story(
        "a connection that is lost while the run asks whether it has committed is no lost lease",
        Scenario((Start("priority-1", Lane.PRIORITY, 0.0),), ("P1",), calls=1),
        ("priority-1",),
        {
            Spot("priority-1", "caller.serve commit", 1): Fault(REPLY_LOST),
            Spot("priority-1", "caller.serve commit", 2): Fault(LOST),
        },
    ),
)


@pytest.fixture(scope="module")
def laboratory(maintenance_url: str) -> Iterator[Laboratory]:
    with new_laboratory(maintenance_url) as made:
        yield made


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.what)
def test_what_once_broke_a_promise_keeps_it(laboratory: Laboratory, story: Story) -> None:
    plan = Plan(story.order, at_spots=story.spots)
    verdict = laboratory.explore(story.scenario, plan)
    assert verdict.used == story.spots, "the story does not happen any more"
    assert verdict.findings == ()
