"""Sixteen processes at once share one budget, and the API never has to refuse a call."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, Process, one_bar

from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn

PROCESSES = 16
CALLS, PERIOD_SECONDS = 40, 2.0
SECONDS = 20.0
CRITICAL, OTHERS = 3, 64
# Behind the queue it would wait for nearly a whole window. `make soak` measures the target (p95).
PRIORITY_WAIT_SECONDS = PERIOD_SECONDS / 4

SETTINGS = f"""
[provider]
call_timeout_seconds = 5
[rate_limit]
calls = {CALLS}
period_seconds = {PERIOD_SECONDS}
[batch]
interval_minutes = 0.5
"""


def long_tail(generator: random.Random) -> float:
    return generator.uniform(0.5, 2.5) if generator.random() < 0.02 else generator.uniform(0, 0.2)


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn(calls=CALLS, period_seconds=PERIOD_SECONDS, latency=long_tail) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, url: str, db: Connection, api: StandIn) -> Iterator[Machine]:
    """More assets than the window has calls, due again each second, that last ran an hour ago."""
    text = SETTINGS
    for number in range(CRITICAL + OTHERS):
        critical, ticker = number < CRITICAL, ("X:BTCUSD", "X:ETHUSDT")[number % 2]
        text += f"""
[[{"priority" if critical else "secondary"}_assets]]
symbol = "A{number:02}"
polygon_ticker = "{ticker}"
asset_type = "crypto"
update_frequency_seconds = {25 if critical else 1}
"""
        one_bar(db, f"A{number:02}", ticker)
    with Machine(tmp_path, url, api) as machine:
        machine.file(text)
        yield machine


def test_sixteen_processes_keep_the_limit_share_the_work_and_do_not_delay_priority_runs(
    machine: Machine, db: Connection, api: StandIn
) -> None:
    def start(lane: str, seconds: float) -> Process:
        return machine.start("sync", lane, "-q", "--json", "--max-runtime", str(seconds))

    # A reservation for a priority run that is due in six seconds.
    query(
        db,
        """
        update asset_sync.limiter
        set reserved_calls = %s, reserved_at = now() + interval '6 s'
        """,
        (CRITICAL,),
    )
    expected = time.monotonic() + 6
    started = [start("queue", SECONDS) for _ in range(PROCESSES)]
    time.sleep(max(0.0, expected - time.monotonic()))
    started.append(start("priority", 10))
    ended = [machine.end(process) for process in started]

    # A call without an answer in time is only a failure of its run.
    assert {told.code for told in ended} <= {0, 1}, ended
    assert (api.refused, api.most_in_a_window() <= CALLS) == (0, True)
    *calls, of_priority = [json.loads(out)["api_calls_used"] for _, out, _ in ended]
    assert sum(calls) + of_priority == len(api.log)
    assert min(calls) >= sum(calls) / PROCESSES / 4, calls
    priority = json.loads(ended[-1].out)
    assert len(priority["updated"]) == CRITICAL
    assert priority["waited_seconds"] < PRIORITY_WAIT_SECONDS
    # Each slot serves one call per window and call. `make soak` measures this more exactly.
    [(mean,)] = query(db, "select avg(duration_ms)::float8 / 1000 from asset_sync.calls")
    turns = (api.log[-1].at_seconds - api.log[0].at_seconds) / (PERIOD_SECONDS + mean)
    assert sum(calls) > 0.5 * CALLS * turns, (calls, mean)
