"""The search: who works when, what goes wrong where, and that it can be repeated."""

from collections.abc import Callable, Iterator
from queue import Empty

import psycopg2
import pytest
from anytime import SEARCH_PATH, shadowing
from exploration import (
    LIMITED,
    SILENT,
    Laboratory,
    Scenario,
    Start,
    schedule_of,
)
from explore import laboratory as new_laboratory
from explorer import sessions
from explorer.plans import Die, Fault, HandOver, Interrupt, Plan, Sleep, Spot, Striking
from explorer.scheduler import Event, Scheduler
from explorer.sessions import LOST, Server
from explorer.shrinking import smallest
from explorer.stories import story
from explorer.threads import Threads
from psycopg2.extensions import make_dsn

from asset_sync.budget import slots
from asset_sync.model import Lane

# --- tasks ------------------------------------------------------------------------------------


class Trial:
    """Tasks that note each of their steps."""

    def __init__(self, plan: Plan) -> None:
        self.scheduler = Scheduler(plan)
        self.steps: list[str] = []

    def add(self, name: str, *labels: str | float, starts_at: float = 0.0) -> None:
        """Add a task with a point for each label and a sleep for each number."""

        def work() -> None:
            for label in labels:
                if isinstance(label, float):
                    self.scheduler.sleep(label)
                else:
                    self.scheduler.point(label, {"a fault"})
                    self.steps.append(f"{name}{label}")

        self.scheduler.add(name, work, starts_at=starts_at)

    def run(self) -> str:
        """Return the steps in order."""
        self.scheduler.run()
        return " ".join(self.steps)


def test_the_first_task_works_until_it_sleeps_or_ends() -> None:
    trial = Trial(Plan(("b", "a")))
    trial.add("a", "1", "2")
    trial.add("b", "1", 5.0, "2")
    assert trial.run() == "b1 a1 a2 b2"


def test_time_passes_only_when_every_task_sleeps() -> None:
    trial = Trial(Plan(("a", "b")))
    trial.add("a", 5.0, "1")
    trial.add("b", 2.0, "1", starts_at=1.0)
    assert trial.run() == "b1 a1"
    assert trial.scheduler.now == pytest.approx(5.0, abs=0.01)


def test_a_task_goes_last_from_the_point_on_at_which_the_plan_says_so() -> None:
    trial = Trial(Plan(("a", "b"), at_spots={Spot("a", "2", 1): HandOver(None)}))
    trial.add("a", "1", "2", "3")
    trial.add("b", "1", "2")
    assert trial.run() == "a1 b1 b2 a2 a3"


def test_another_task_goes_first_from_the_point_on_at_which_the_plan_says_so() -> None:
    trial = Trial(Plan(("a", "b", "c"), (Striking(2, HandOver("c")),)))
    trial.add("a", "1", "2")
    trial.add("b", "1")
    trial.add("c", "1")
    assert trial.run() == "a1 c1 a2 b1"


def test_a_killed_task_does_nothing_more_and_its_end_is_told() -> None:
    trial = Trial(Plan(("a", "b"), at_spots={Spot("a", "2", 1): Die()}))
    trial.add("a", "1", "2", "3")
    trial.add("b", "1")
    assert trial.run() == "a1 b1"


def test_a_task_that_is_told_to_end_gets_a_signal() -> None:
    scheduler = Scheduler(Plan(("a",), at_spots={Spot("a", "1", 1): Interrupt()}))
    task = scheduler.add("a", lambda: scheduler.point("1") and None)
    scheduler.run()
    assert isinstance(task.error, SystemExit)


def test_a_task_that_stands_still_lets_the_others_work() -> None:
    trial = Trial(Plan(("a", "b"), at_spots={Spot("a", "2", 1): Sleep(9.0)}))
    trial.add("a", "1", "2")
    trial.add("b", 5.0, "1")
    assert trial.run() == "a1 b1 a2"
    assert trial.scheduler.now > 9


def test_a_fault_happens_at_the_first_point_that_offers_it() -> None:
    scheduler = Scheduler(Plan(("a",), (Striking(1, Fault("noise"), "loud"),)))
    seen: list[object] = []

    def work() -> None:
        seen.extend(
            (
                scheduler.point("loud"),
                scheduler.point("quiet", {"noise"}),
                scheduler.point("loud 2", {"noise"}),
            )
        )

    scheduler.add("a", work)
    scheduler.run()
    assert seen == [None, None, Fault("noise")]
    assert scheduler.used == {Spot("a", "loud 2", 1): Fault("noise")}


def test_tasks_that_never_pause_are_ended() -> None:
    scheduler = Scheduler(Plan(("a", "b")))

    def work() -> None:
        while True:
            scheduler.point("again")

    scheduler.add("a", work)
    scheduler.add("b", work)
    scheduler.run()
    assert scheduler.is_endless


def test_a_sleeper_learns_whether_anything_changed_meanwhile() -> None:
    scheduler = Scheduler(Plan(("a", "b")))
    alone: list[bool] = []

    def sleeper() -> None:
        alone.extend((scheduler.sleep(1.0), scheduler.sleep(5.0)))

    def changes() -> None:
        scheduler.sleep(2.0)
        scheduler.changes += 1

    scheduler.add("a", sleeper)
    scheduler.add("b", changes)
    scheduler.run()
    assert alone == [True, False]


# --- threads ------------------------------------------------------------------------------------


class Threaded:
    """A process with a main thread that waits for what its second thread tells it."""

    def __init__(self, plan: Plan) -> None:
        self.scheduler = Scheduler(plan)
        self.threads = Threads(lambda: self.scheduler)
        self.steps: list[str] = []

    def run(self, *labels: str, pause: float = 0.0, patience: float = 60.0) -> str:
        """Let the second thread pass these points after a pause each and tell; return the steps."""
        told = self.threads.SimpleQueue()

        def work() -> None:
            for label in labels:
                self.scheduler.sleep(pause)
                self.scheduler.point(label)
                told.put(label)

        def main() -> None:
            try:
                self.threads.Thread(target=work, daemon=True).start()
                for _ in labels:
                    self.steps.append(f"heard {told.get(timeout=patience)}")
            except Empty:
                self.steps.append("heard nothing")
            except SystemExit:
                self.steps.append("signal")
                raise
            self.scheduler.point("end")
            self.steps.append("end")

        self.scheduler.add("a", main)
        self.scheduler.run()
        return " ".join(self.steps)


def test_a_thread_that_waits_goes_on_as_soon_as_another_one_tells_it() -> None:
    trial = Threaded(Plan(("a", "a.1")))
    assert trial.run("1", "2", pause=5.0) == "heard 1 heard 2 end"
    assert trial.scheduler.now == pytest.approx(10.0, abs=0.01)


def test_a_thread_that_waits_for_too_long_goes_on_and_its_end_ends_the_process() -> None:
    trial = Threaded(Plan(("a", "a.1")))
    assert trial.run("1", pause=5.0, patience=2.0) == "heard nothing end"
    assert trial.scheduler.now == pytest.approx(2.0, abs=0.01)


def test_a_killed_thread_takes_its_whole_process_along() -> None:
    trial = Threaded(Plan(("a", "a.1"), at_spots={Spot("a.1", "2", 1): Die()}))
    assert trial.run("1", "2") == "heard 1"


def test_a_signal_for_any_thread_reaches_the_main_one() -> None:
    trial = Threaded(Plan(("a", "a.1"), at_spots={Spot("a.1", "1", 1): Interrupt()}))
    assert trial.run("1", "2", pause=5.0) == "signal"


def test_a_plan_shrinks_to_the_actions_that_matter() -> None:
    spots = {Spot("a", str(number), 1): HandOver(None) for number in range(6)}
    needed = {Spot("a", "1", 1), Spot("a", "4", 1)}
    plan = smallest(
        ("a",), spots, lambda plan: plan.at_spots if needed <= set(plan.at_spots) else None
    )
    assert set(plan.at_spots) == needed


def test_a_story_has_a_line_for_each_stretch_and_each_action() -> None:
    events = [
        Event(0.0, "a", "reads"),
        Event(0.1, "a", "writes"),
        Event(0.1, "a", "is killed", is_action=True),
        Event(0.2, "b", "reads"),
    ]
    assert [line.split(maxsplit=1)[1] for line in story(events)] == [
        "a: reads … writes (2)",
        "a ▸ is killed",
        "b: reads",
    ]


# --- sessions ---------------------------------------------------------------------------------


@pytest.fixture
def server(url: str) -> Iterator[Server]:
    for sql in (shadowing("pg_catalog.now()", "pg_catalog.clock_timestamp()"), sessions.CLOCK):
        db = psycopg2.connect(url)
        with db, db.cursor() as cursor:
            cursor.execute(sql)
            cursor.execute("create table if not exists public.counter (n int)")
        db.close()
    with Server(make_dsn(url, options=f"-c search_path={SEARCH_PATH}"), package="test_") as made:
        made.begin(Scheduler(Plan(())), 1_000_000.0)
        made.query("insert into public.counter values (0)")
        yield made


def try_sessions(server: Server, plan: Plan, *works: Callable[[sessions.Session], None]) -> None:
    """Run each function in a task of its own, named a, b, …."""
    scheduler = Scheduler(plan)
    server.begin(scheduler, 1_000_000.0)
    for name, work in zip("abc", works, strict=False):
        scheduler.add(name, lambda work=work: work(server.session_of(scheduler.running)))  # type: ignore[misc]
    scheduler.run()


def add_one(session: sessions.Session) -> None:
    """Lose an update of another session between the two statements."""
    with session.cursor() as cursor:
        cursor.execute("select n from public.counter")
        [(number,)] = cursor.fetchall()
        cursor.execute("update public.counter set n = %s", (int(str(number)) + 1,))


def add_one_locked(session: sessions.Session) -> None:
    with session.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("select n from public.counter for update")
        [(number,)] = cursor.fetchall()
        cursor.execute("update public.counter set n = %s", (int(str(number)) + 1,))
        cursor.execute("commit")


def counted(server: Server) -> int:
    [(number,)] = server.query("select n from public.counter")
    return int(str(number))


def test_an_update_is_lost_between_two_statements(server: Server) -> None:
    try_sessions(server, Plan(("a", "b")), add_one, add_one)
    assert counted(server) == 2
    stop = {Spot("a", "test_explorer.add_one", 2): HandOver("b")}
    try_sessions(server, Plan(("a", "b"), at_spots=stop), add_one, add_one)
    assert counted(server) == 3


def test_a_session_that_waits_for_a_lock_lets_the_other_one_work(server: Server) -> None:
    stop = {Spot("a", "test_explorer.add_one_locked", 2): HandOver("b")}
    try_sessions(server, Plan(("a", "b"), at_spots=stop), add_one_locked, add_one_locked)
    assert counted(server) == 2
    [wait] = server.lock_waits
    assert (wait.task, wait.holders) == ("b", ("a",))


def test_a_deadlock_is_found(server: Server) -> None:
    server.query("insert into public.counter values (10)")

    def lock(*numbers: int) -> Callable[[sessions.Session], None]:
        def work(session: sessions.Session) -> None:
            with session.cursor() as cursor:
                cursor.execute("begin")
                for number in numbers:
                    cursor.execute(f"update public.counter set n = n where n = {number}")
                cursor.execute("commit")

        return work

    stop = {Spot("a", "test_explorer.work", 2): HandOver("b")}
    server_names = Plan(("a", "b"), at_spots=stop)
    try_sessions(server, server_names, lock(0, 10), lock(10, 0))
    assert server.deadlocks


def test_a_killed_session_leaves_nothing_of_its_transaction(server: Server) -> None:
    dies = {Spot("a", "test_explorer.add_one_locked commit", 1): Die()}
    try_sessions(server, Plan(("a",), at_spots=dies), add_one_locked)
    assert counted(server) == 0


def test_a_lost_reply_to_a_commit_leaves_the_transaction_committed(server: Server) -> None:
    lost = {Spot("a", "test_explorer.add_one_locked commit", 1): Fault(sessions.REPLY_LOST)}
    try_sessions(server, Plan(("a",), at_spots=lost), add_one_locked)
    assert counted(server) == 1
    lost = {Spot("a", "test_explorer.add_one_locked commit", 1): Fault(LOST)}
    try_sessions(server, Plan(("a",), at_spots=lost), add_one_locked)
    assert counted(server) == 1


def test_a_session_that_stands_still_in_a_transaction_is_ended(server: Server) -> None:
    def add_one_later(session: sessions.Session) -> None:
        server.scheduler.sleep(15.0)
        add_one_locked(session)

    stop = {Spot("a", "test_explorer.add_one_locked commit", 1): Sleep(60.0)}
    try_sessions(server, Plan(("a", "b"), at_spots=stop), add_one_locked, add_one_later)
    assert counted(server) == 1


def test_a_wait_for_a_lock_ends_with_an_error_after_its_time_limit(server: Server) -> None:
    stop = {Spot("a", "test_explorer.add_one_locked commit", 1): Sleep(15.0)}
    failed: list[Exception] = []

    def add_or_fail(session: sessions.Session) -> None:
        try:
            add_one_locked(session)
        except psycopg2.OperationalError as error:
            failed.append(error)

    try_sessions(server, Plan(("a", "b"), at_spots=stop), add_one_locked, add_or_fail)
    assert counted(server) == 1
    assert len(failed) == 1


def test_the_clock_is_read_after_the_wait_for_a_lock(server: Server) -> None:
    read: list[float] = []

    def late(session: sessions.Session) -> None:
        with session.cursor() as cursor:
            cursor.execute(
                "select from public.counter for update;"
                " select extract(epoch from now())::float8,"
                " extract(epoch from clock_timestamp())::float8"
            )
            [row] = cursor.fetchall()
            read.extend(float(str(value)) for value in row)

    stop = {Spot("a", "test_explorer.add_one_locked commit", 1): Sleep(8.0)}
    try_sessions(server, Plan(("a", "b"), at_spots=stop), add_one_locked, late)
    assert read == pytest.approx([1_000_000.0, 1_000_008.0], abs=0.1)


# --- the real runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory(maintenance_url: str) -> Iterator[Laboratory]:
    with new_laboratory(maintenance_url) as made:
        yield made


TWO = Scenario(
    (Start("queue-1", Lane.QUEUE, 0.0), Start("queue-2", Lane.QUEUE, 0.0)), ("S1", "S2"), calls=1
)
FIRST_SILENT = {Spot("queue-1", "call for X:S1", 1): Fault(SILENT, 30.0)}


def test_a_schedule_is_the_same_each_time(laboratory: Laboratory) -> None:
    for seed in range(8):
        scenario, plan = schedule_of(seed)
        first = laboratory.explore(scenario, plan)
        again = laboratory.explore(scenario, plan)
        by_spots = laboratory.explore(scenario, Plan(plan.order, at_spots=first.used))
        assert first.shape == again.shape == by_spots.shape


def test_different_integers_are_different_schedules(laboratory: Laboratory) -> None:
    shapes = {laboratory.explore(*schedule_of(seed)).shape for seed in range(100, 110)}
    assert len(shapes) >= 9


def test_the_search_sees_a_slot_that_is_released_too_early(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(("queue-1", "queue-2"), at_spots=FIRST_SILENT)
    assert laboratory.explore(TWO, plan).findings == ()
    monkeypatch.setattr(slots, "FREEZE_WINDOWS", 0.0)
    [finding, *_] = laboratory.explore(TWO, plan).findings
    assert finding.startswith("over the limit")


def test_the_search_sees_a_429_that_stops_nobody(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        ("queue-1", "queue-2"),
        at_spots={Spot("queue-1", "call for X:S1", 1): Fault(LIMITED)},
    )
    scenario = TWO._replace(calls=3)
    assert laboratory.explore(scenario, plan).findings == ()
    monkeypatch.setattr(slots, "LEAST_BLOCK_SECONDS", 0.0)
    assert any("429" in one for one in laboratory.explore(scenario, plan).findings)
