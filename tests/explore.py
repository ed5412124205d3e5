"""Searches the interleavings of runs for broken promises, on a real PostgreSQL.

    .venv/bin/python tests/explore.py                    two minutes of new schedules
    .venv/bin/python tests/explore.py --seed 4711        replays one schedule and tells its story
    EXPLORE_SECONDS=3600 make explore

A schedule is an integer. It exits 1 if a schedule broke a promise, or if a process of the search
failed, and prints the story of each, shrunk to as few hand-overs and faults as show it.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from random import SystemRandom
from typing import NamedTuple

import psycopg2
from exploration import Laboratory, Scenario, Verdict, schedule_of
from explorer.plans import Action, Plan, Spot
from explorer.scheduler import StuckError
from explorer.shrinking import smallest
from explorer.stories import story
from psycopg2.extensions import make_dsn

from asset_sync import database
from asset_sync.database import embedded
from asset_sync.secret import Secret

PROCESSES = 2
BATCH = 20
# What two databases take to be made; a busy machine needs more.
_START_SECONDS = 5.0


class Batch(NamedTuple):
    """What some schedules showed."""

    schedules: int
    shapes: frozenset[int]
    broken: Mapping[int, str]
    """The first finding of each that broke a promise, by its seed."""
    cpu_seconds: float
    """Of the process, without the server's."""


# --- databases --------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[str]:
    """The server: TEST_DATABASE_URL, or an embedded one that is deleted at the end."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Other accounts must be able to enter: if root runs this, the server has another one.
    with tempfile.TemporaryDirectory(prefix="asset-sync-explore-") as directory:
        own = embedded.start(Path(directory) / "data")
        url = own.address("postgres")
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
            _execute(url, f"alter system set {setting} = off")
        _execute(url, "alter system set deadlock_timeout = '50ms'")
        _execute(url, "select pg_reload_conf()")
        try:
            yield url
        finally:
            own.leave()


@contextmanager
def laboratory(url: str) -> Iterator[Laboratory]:
    """A laboratory in a database of its own."""
    name = f"asset_sync_explore_{os.getpid()}"
    _execute(url, f'create database "{name}"')
    try:
        own = make_dsn(url, dbname=name)
        with database.raw_session(Secret(own)) as db:
            database.migrate(db)
        with closing(Laboratory(own)) as made:
            yield made
    finally:
        _execute(url, f'drop database "{name}" with (force)')


def _execute(url: str, sql: str) -> None:
    db = psycopg2.connect(url)
    try:
        db.autocommit = True
        with db.cursor() as cursor:
            cursor.execute(sql)
    finally:
        db.close()


# --- searching --------------------------------------------------------------------------------


def search(
    url: str,
    first: int,
    every: int,
    until: float,
    results: "Queue[Batch]",
    most: int,
    until_found: bool,  # noqa: FBT001  # passed to another process
) -> None:
    """Run every so many seeds from the first one on, in a process of its own.

    A laboratory in which a schedule hangs is of no more use, and another one is made.
    """
    parent = multiprocessing.parent_process()
    seeds = iter(range(first, first + most * every, every))

    def goes_on() -> bool:
        return time.monotonic() < until and (parent is None or parent.is_alive())

    hangs = True
    while hangs and goes_on():
        with laboratory(url) as lab:
            results.put(Batch(0, frozenset(), {}, 0.0))  # it begins
            hangs = False
            while not hangs and goes_on():
                batch, hangs = _try(lab, islice(seeds, BATCH), until, until_found=until_found)
                if not batch.schedules:
                    return
                results.put(batch)


def _try(
    lab: Laboratory, seeds: Iterator[int], until: float, *, until_found: bool
) -> tuple[Batch, bool]:
    """Run some seeds; return what they showed, and whether the last one hangs."""
    began = time.process_time()
    shapes: set[int] = set()
    broken: dict[int, str] = {}
    ended, hangs = 0, False
    for seed in seeds:
        ended += 1
        try:
            verdict = lab.explore(*schedule_of(seed))
        except StuckError as error:
            broken[seed], hangs = f"it hangs: {error}", True
        else:
            shapes.add(verdict.shape)
            if verdict.findings:
                broken[seed] = verdict.findings[0]
        if hangs or time.monotonic() > until or (broken and until_found):
            break
    return Batch(ended, frozenset(shapes), broken, time.process_time() - began), hangs


def explore(url: str, first: int, seconds: float, *, most: int, until_found: bool) -> list[int]:
    """Search with several processes; return the seeds that broke a promise.

    Ends the program with 1 if a process fails, or if no schedule was tried.
    """
    context = multiprocessing.get_context("spawn")
    results: Queue[Batch] = context.Queue()
    began = time.monotonic()
    workers = [
        context.Process(
            target=search,
            args=(
                url,
                first + number,
                PROCESSES,
                began + seconds + _START_SECONDS,
                results,
                most // PROCESSES,
                until_found,
            ),
            daemon=True,
        )
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    schedules, cpu = 0, 0.0
    shapes: set[int] = set()
    broken: dict[int, str] = {}
    try:
        while any(worker.is_alive() for worker in workers) or not results.empty():
            try:
                batch = results.get(timeout=0.5)
            except Empty:
                continue
            schedules += batch.schedules
            shapes |= batch.shapes
            broken |= batch.broken
            for seed, finding in batch.broken.items():
                say(f"{seed}: {finding}")
            cpu += batch.cpu_seconds
            if not schedules:
                began = time.monotonic()  # the databases are made
            if broken and until_found:
                seconds = time.monotonic() - began
                first_one = next(iter(broken.values()))
                say(f"found after {seconds:.1f} s, {schedules} schedules: {first_one}")
                break
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        failed = any(worker.exitcode for worker in workers)
        for worker in workers:
            worker.terminate()
            worker.join()
    took = time.monotonic() - began
    say(
        f"{schedules} schedules from {first} on, {len(shapes)} distinct, {schedules / took:.1f} a"
        f" second ({1000 * cpu / max(1, schedules):.0f} ms of a core each, without the server's);"
        f" {len(broken)} broke a promise, load {os.getloadavg()[0]:.1f}"
    )
    if failed or not schedules:
        sys.exit("a process of the search failed, or no schedule was tried")
    return list(broken)


# --- stories ----------------------------------------------------------------------------------


def shrunk(
    lab: Laboratory, scenario: Scenario, plan: Plan, verdict: Verdict
) -> tuple[Plan, Verdict]:
    """Return the smallest plan that breaks the same promise, and its verdict."""
    kind = kind_of(verdict.findings[0])
    last = verdict

    def shows(fewer: Plan) -> Mapping[Spot, Action] | None:
        nonlocal last
        seen = lab.explore(scenario, fewer)
        if kind not in map(kind_of, seen.findings):
            return None
        last = seen
        return seen.used

    return smallest(plan.order, verdict.used, shows), last


def kind_of(finding: str) -> str:
    """Return a finding without its names and numbers."""
    return " ".join(word for word in finding.split() if word.isalpha() and word.islower())


def tell(url: str, seed: int) -> bool:
    """Replay a schedule, shrink it and print its story; return whether it breaks a promise."""
    scenario, plan = schedule_of(seed)
    with laboratory(url) as lab:
        try:
            verdict = lab.explore(scenario, plan)
        except StuckError as error:
            say(f"schedule {seed} hangs: {error}")
            return True
        if not verdict.findings:
            say(f"schedule {seed} keeps every promise")
            _say_story(scenario, plan, verdict)
            return False
        smaller, verdict = shrunk(lab, scenario, plan, verdict)
    say(f"\nschedule {seed}:")
    for finding in verdict.findings:
        say(f"  {finding}")
    _say_story(scenario, smaller, verdict)
    return True


def _say_story(scenario: Scenario, plan: Plan, verdict: Verdict) -> None:
    say(f"  {scenario}\n  first goes {', then '.join(plan.order)}")
    for spot, action in verdict.used.items():
        say(f"    {spot!r}: {action!r},")
    for line in story(verdict.events):
        say(f"  {line}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, or replay one schedule; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    seconds = float(os.environ.get("EXPLORE_SECONDS", "120"))
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--first", type=int, help="the first seed; by default new ones")
    parser.add_argument("--schedules", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, help="replay this schedule and tell its story")
    parser.add_argument("--until-found", action="store_true", help="stop at the first one, untold")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is removed
    first = options.first if options.first is not None else SystemRandom().randrange(10**12)
    with server() as url:
        if options.seed is None:
            broken = explore(
                url,
                first,
                options.seconds,
                most=options.schedules,
                until_found=options.until_found,
            )
        else:
            broken = [options.seed]
        if not broken or options.until_found:
            return int(bool(broken))
        stories = [tell(url, seed) for seed in broken[:5]]
        return int(options.seed is None or any(stories))


if __name__ == "__main__":
    sys.exit(main())
