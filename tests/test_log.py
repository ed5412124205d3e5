"""Without a terminal a run prints one line per event, as text or as JSON."""

import ast
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import commandline
import pytest
from commandline import without_times
from conftest import ETHER, TYPO, with_ether
from machine import Machine, until, waits_for_a_reader

import asset_sync
from asset_sync.cli.log import Log, LogFormat, sentence
from asset_sync.cli.options import Common
from asset_sync.cli.sync import summary
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.sync.progress import Failed, Recovered, Synced
from asset_sync.sync.report import Report

JSON = ("--log-format", "json")

Line: TypeAlias = dict[str, object]
Tell: TypeAlias = Callable[..., commandline.Told]


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn("free", calls=20) as server:
        yield server


@pytest.fixture
def machine(url: str, db: Connection, api: StandIn, tmp_path: Path) -> Iterator[Machine]:
    with with_ether(url, db, api, tmp_path) as machine:
        yield machine


@pytest.fixture
def tell(machine: Machine) -> Tell:
    return machine.tell


def lines(told: str) -> list[Line]:
    return [json.loads(line) for line in told.splitlines()]


def events(told: str) -> list[object]:
    return [line["event"] for line in lines(told)]


# --- JSON lines ---------------------------------------------------------------------------------


def test_each_line_is_an_object_with_time_host_and_run(tell: Tell) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)

    told = tell("sync", "queue", *JSON)

    assert (told.code, told.out) == (0, "")
    assert events(told.err) == ["started", "synced", "ended"]
    for line in lines(told.err):
        assert before <= datetime.fromisoformat(str(line["at"])) <= datetime.now(UTC)
        assert str(line["at"]).endswith("+00:00")
        assert line["level"] == "info"
        assert line["host"]
        assert (line["command"], line["run_id"]) == ("queue", 1)
        assert line["message"]


def test_each_event_has_its_own_keys(tell: Tell) -> None:
    [settings, plan, _, calling, synced, _] = lines(tell("-v", "sync", "queue", *JSON).err)

    assert settings["event"] == plan["event"] == "settings"
    assert settings["run_id"] is None
    assert (calling["event"], calling["symbols"], calling["feed"]) == (
        "calling",
        ["ETHUSDT"],
        "bars",
    )
    assert (synced["symbol"], synced["feed"], synced["more"]) == ("ETHUSDT", "bars", False)
    assert isinstance(synced["bars_written"], int)
    assert isinstance(synced["last_price"], float)
    assert isinstance(synced["seconds"], float)
    assert datetime.fromisoformat(str(synced["as_of"])).tzinfo is not None


def test_the_last_line_is_the_report(tell: Tell) -> None:
    told = tell("sync", "queue", "--json", *JSON)

    report = json.loads(told.out)
    ended = lines(told.err)[-1]
    assert {key: ended[key] for key in report if key != "message"} == {
        key: value for key, value in report.items() if key != "message"
    }
    assert (ended["event"], ended["exit_code"]) == ("ended", 0)
    assert str(ended["message"]).startswith("queue: 1 refreshed, 1 call, ")


def test_a_failure_and_the_end_of_a_failed_run_have_the_level_error(
    tell: Tell, tmp_path: Path
) -> None:
    (tmp_path / "assets.toml").write_text(TYPO)

    told = tell("sync", "queue", *JSON)

    *_, failed, ended = lines(told.err)
    assert told.code == 1
    assert (failed["event"], failed["level"], failed["symbol"]) == ("failed", "error", "TYPO")
    assert "X:TYPO" in str(failed["error"])
    assert (ended["event"], ended["level"], ended["exit_code"]) == ("ended", "error", 1)


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"POLYGON_API_KEY": ""}, 2, "POLYGON_API_KEY is not set"),
        ({"QUEUE_MAX_SIZE": "many"}, 2, "QUEUE_MAX_SIZE"),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 3, "nothing listens"),
        ({"POLYGON_API_KEY": "another"}, 4, "POLYGON_API_KEY"),
    ],
)
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_an_error_that_ends_the_program_is_a_line_too(
    tell: Tell, changes: dict[str, str], code: int, word: str, quiet: tuple[str, ...]
) -> None:
    told = tell(*quiet, "sync", "queue", *JSON, **changes)

    *before, ended = lines(told.err)
    assert told.code == code
    assert (ended["event"], ended["level"], ended["exit_code"]) == ("ended", "error", code)
    assert word in str(ended["message"])
    assert ended["run_id"] == (1 if code == 4 else None)
    assert [line["event"] for line in before] == (["started"] if code == 4 and not quiet else [])


def test_a_bug_is_a_line_too(machine: Machine) -> None:
    script = (
        "from asset_sync import queue\n"
        "def broken(*what, **more): raise RuntimeError('sesame')\n"
        "queue.claim = broken\n"
        "from asset_sync.cli import main; main()"
    )
    ended = machine.end(machine.python("-c", script, "sync", "queue", *JSON))

    last = lines(ended.err)[-1]
    assert ended.code == last["exit_code"] == 70
    assert "this is a bug (RuntimeError at" in str(last["message"])
    assert "sesame" not in ended.err
    assert last["run_id"] == 1


def test_an_interrupted_run_says_so_in_its_last_line(machine: Machine, api: StandIn) -> None:
    api.set_faults(["stall"])
    process = machine.start("-v", "sync", "queue", *JSON)
    assert process.stderr is not None
    while '"calling"' not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    ended = machine.end(process)

    assert ended.code == 130
    assert events(ended.err) == ["ended"]
    assert "went back to the queue" in ended.err


def test_json_lines_are_printed_on_a_terminal_too(machine: Machine) -> None:
    master, slave = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "asset_sync", "-v", "sync", "queue", *JSON],
        env=machine.environ | {"TERM": "xterm-256color", "COLUMNS": "40"},
        cwd=machine.home,
        stderr=slave,
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )
    os.close(slave)
    told = b""
    while not told.endswith(b"\n") or b'"ended"' not in told:
        told += os.read(master, 65536)
    os.close(master)

    assert ended.returncode == 0
    assert events(told.decode())[-1] == "ended"


# --- cron ---------------------------------------------------------------------------------------


def test_a_quiet_success_prints_nothing_in_either_format(tell: Tell) -> None:
    for log_format in ("text", "json"):
        told = tell("-q", "sync", "queue", "--log-format", log_format)
        assert (told.code, told.out, told.err) == (0, "", "")


def test_a_quiet_failure_prints_only_what_went_wrong(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "assets.toml").write_text(ETHER + TYPO)

    told = tell("-q", "sync", "queue", *JSON)

    assert events(told.err) == ["failed", "ended"]


def test_each_line_of_text_begins_with_its_time(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "assets.toml").write_text(ETHER + TYPO)
    before = datetime.now(UTC).replace(microsecond=0)

    ran = tell("-q", "sync", "queue")
    down = tell("-q", "sync", "queue", DATABASE_URL="postgresql://127.0.0.1:1/x")
    wrong = tell("-q", "sync", "queue", QUEUE_MAX_SIZE="many", POLYGON_TIER="gold")

    assert without_times(ran.err).startswith("run 1: failed: TYPO: ")
    assert without_times(down.err).startswith('asset-sync: The database "x"')
    assert len(without_times(wrong.err).splitlines()) == 2
    for line in (ran.err + down.err + wrong.err).splitlines():
        assert before <= datetime.fromisoformat(line.split()[0]) <= datetime.now(UTC)


@pytest.mark.parametrize("log_format", LogFormat)
def test_a_quiet_run_does_not_repeat_a_known_failure_and_says_when_it_is_over(
    log_format: LogFormat, capfd: pytest.CaptureFixture[str]
) -> None:
    quiet = Log(Common(quiet=True), "queue", log_format)
    talkative = Log(Common(), "queue", log_format)
    known = Failed("OLD", Feed.BARS, "OLD: as before.", is_news=False)
    told = (
        Failed("NEW", Feed.BARS, "NEW: no bars."),
        known,
        Synced("WELL", Feed.BARS, 1, None, None, 0.1),
        Synced("BACK", Feed.BARS, 1, None, None, 0.1, recovered=True),
        Recovered("the database", 12.0),
    )

    for one in told:
        quiet.hear(one)
    [first, back, over] = capfd.readouterr().err.splitlines()
    assert "NEW: no bars." in first
    assert "BACK: works again: 1 new bar, " in back
    assert "The database works again after 12 s." in over
    assert sentence(known) in quiet.lines, "who is told of the run's end hears all of it"

    for one in told:
        talkative.hear(one)
    assert len(capfd.readouterr().err.splitlines()) == len(told)


def test_a_key_that_stays_refused_is_not_mailed_in_each_cycle(tell: Tell) -> None:
    quiet = ("-q", "sync", "queue")
    first, again = (tell(*quiet, POLYGON_API_KEY="bad") for _ in range(2))
    by_hand = tell("sync", "queue", POLYGON_API_KEY="bad")
    well = tell(*quiet)

    assert [one.code for one in (first, again, by_hand, well)] == [4, 4, 4, 0]
    assert "does not accept the key" in first.err
    assert again.err == ""
    assert "does not accept the key" in by_hand.err
    assert "The API serves this key again" in well.err


def test_the_message_that_ends_a_run_has_the_runs_number(tell: Tell) -> None:
    told = tell("sync", "queue", POLYGON_API_KEY="another")

    assert told.code == 4
    assert without_times(told.err).startswith("run 1: The API does not accept the key")


def test_a_mistyped_format_gets_a_hint(tell: Tell) -> None:
    told = tell("sync", "queue", "--log-format", "xml")

    assert (told.code, told.out) == (2, "")
    assert "json" in told.err


# --- output that cannot be written --------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "to", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 >/dev/null | :"]
)
def test_a_run_does_its_work_even_if_its_output_cannot_be_written(
    machine: Machine, db: Connection, tmp_path: Path, to: str, log_format: str
) -> None:
    ended = redirected(to, machine, "-v", "sync", "queue", "--log-format", log_format)

    assert (tmp_path / "code").read_text() == "0\n", ended.stderr
    assert "bug" not in ended.stdout + ended.stderr
    assert query(db, "select reason_ended from asset_sync.runs") == [("done",)]


@pytest.mark.parametrize(
    ("command", "to", "code", "said"),
    [
        ("--help", ">/dev/full", 2, "The output could not be written: No space left on device."),
        ("plan --help", ">/dev/full", 2, "The output could not be written: No space left"),
        ("asets", "2>/dev/full", 2, ""),
    ],
)
def test_help_and_a_usage_error_on_a_full_disk_are_no_bug(
    machine: Machine, tmp_path: Path, command: str, to: str, code: int, said: str
) -> None:
    told = redirected(to, machine, *command.split()).stderr

    assert said in told
    assert "bug" not in told
    assert (tmp_path / "code").read_text() == f"{code}\n"


def test_a_report_that_cannot_be_written_is_no_bug_and_the_run_has_one_end(
    machine: Machine, tmp_path: Path
) -> None:
    told = redirected(">/dev/full", machine, "sync", "queue", *JSON, "--json").stderr

    *log, why = told.splitlines()
    assert events("\n".join(log)) == ["started", "synced", "ended"]
    assert why == "asset-sync: The output could not be written: No space left on device."
    assert (tmp_path / "code").read_text() == "2\n"


def redirected(to: str, machine: Machine, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command line with its streams redirected by a shell; `code` is its exit code."""
    script = f'( "$@"; echo $? 3>code >&3 ) {to}'
    return subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "asset_sync", *arguments],
        env=machine.environ,
        cwd=machine.home,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("stream", "command"), [("stdout", "--help"), ("stderr", "asets"), ("stderr", "-v sync queue")]
)
def test_a_signal_ends_a_command_whose_output_nobody_reads(
    machine: Machine, stream: str, command: str, number: signal.Signals
) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))  # it is full
    process = subprocess.Popen(
        [sys.executable, "-m", "asset_sync", *command.split()],
        cwd=machine.home,
        env=machine.environ,
        stdout=writer if stream == "stdout" else subprocess.DEVNULL,
        stderr=writer if stream == "stderr" else subprocess.DEVNULL,
    )
    try:
        until(lambda: waits_for_a_reader(process))
        process.send_signal(number)

        assert process.wait(10) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


# --- the texts and the source -------------------------------------------------------------------


@pytest.mark.parametrize(("bars", "words"), [(0, "0 bars"), (1, "1 bar"), (1234, "1,234 bars")])
def test_one_bar_is_written_in_the_singular(bars: int, words: str) -> None:
    synced = Synced("EURUSD", Feed.BARS, bars, None, None, 0.1)

    assert sentence(synced).startswith(f"EURUSD: {words.replace(' ', ' new ')}, ")
    assert f" {words} written." in summary(Report(1, Lane.QUEUE, bars_written=bars))


def test_only_the_command_line_prints() -> None:
    package = Path(asset_sync.__file__).parent
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (called and node.func.id == "print"), path  # type: ignore[attr-defined]
            assert not (
                isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr", "__stderr__"}
                and isinstance(node.value, ast.Name) and node.value.id == "sys"
            ), path  # fmt: skip
