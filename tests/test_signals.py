"""SIGINT, SIGTERM and SIGHUP: none is lost, wherever the program is; the end is 130 or 143."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Event

import pytest
from machine import Machine

from asset_sync.cli.signals import signals_as_exceptions
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]

# Runs the command line, which gets a signal when it imports the given module.
SIGNALLED = """
import os, sys

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

number, module = int(sys.argv[1]), sys.argv[2]
sys.meta_path.insert(0, Finder())
sys.argv = ["asset-sync", *sys.argv[3:]]
from asset_sync.__main__ import main
main()
"""

# Modules that get a signal, and lose what its handler raises.
IGNORES = """
import os
try:
    os.kill(os.getpid(), {number})
except BaseException:
    pass
"""
CREATES_A_CLASS = """
import os

class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {number})

class Owner:
    field = Field()
"""


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn("free") as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, url: str, api: StandIn) -> Iterator[Machine]:
    with Machine(tmp_path, url, api) as found:
        yield found


def wait_after(step: Callable[[], object]) -> None:
    """Take the step, and then wait until an exception ends the wait."""
    step()
    assert Event().wait(20), "the signal was lost"


# --- while the program loads ------------------------------------------------------------------


def test_ctrl_c_before_a_command_begins_ends_the_program_without_a_word(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SIGNALLED, str(int(signal.SIGINT)), "asset_sync.cli.commands"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("module", ["asset_sync.sync.loop", "_ssl"])
def test_a_signal_while_a_command_is_imported_ends_it_before_its_first_call(
    machine: Machine, db: Connection, api: StandIn, module: str, number: signal.Signals, code: int
) -> None:
    """psycopg2 imports `_ssl` and ignores every exception of this import."""
    process = machine.python("-c", SIGNALLED, str(int(number)), module, "sync", "queue")

    told = machine.end(process)

    assert (told.code, told.out) == (code, ""), told.err
    assert api.log == []
    assert query(db, "select count(token) from asset_sync.slots") == [(0,)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_a_run_that_holds_an_item_imports_a_module_gives_the_item_back(
    machine: Machine, db: Connection, number: signal.Signals, code: int
) -> None:
    client = "asset_sync.provider.polygon.client"
    process = machine.python("-c", SIGNALLED, str(int(number)), client, "sync", "queue")

    told = machine.end(process)

    assert (told.code, told.out) == (code, ""), told.err
    items = query(db, "select distinct state, attempts from asset_sync.queue where state <> 'idle'")
    assert items == [("waiting", 0)]
    assert query(db, "select count(token) from asset_sync.slots") == [(0,)]
    assert query(db, "select reason_ended from asset_sync.runs") == [("interrupted",)]


# --- exceptions that are lost -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("source", [IGNORES, CREATES_A_CLASS], ids=["ignores", "creates a class"])
def test_a_signal_during_an_import_is_raised_when_the_import_is_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    number: signal.Signals,
    raised: type[BaseException],
) -> None:
    (tmp_path / "signalled.py").write_text(source.format(number=int(number)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "signalled", raising=False)

    with pytest.raises(raised), signals_as_exceptions():
        wait_after(lambda: import_module("signalled"))

    assert "signalled" in sys.modules, "Python removes a module whose import failed"


class Thing:
    """What a weak reference can refer to."""


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_in_a_callback_whose_exception_python_ignores_is_raised_again(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, raised: type[BaseException]
) -> None:
    things = [Thing()]
    reference = weakref.ref(things[0], lambda _: os.kill(os.getpid(), number))

    with pytest.raises(raised), signals_as_exceptions():
        wait_after(things.clear)

    assert reference() is None
    assert capfd.readouterr().err == ""


def test_any_other_exception_that_python_ignores_is_reported_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: reported.append(one.exc_type))
    thing = Thing()
    reference = weakref.ref(thing, lambda _: int("no number"))

    with signals_as_exceptions():
        del thing

    assert reference() is None
    assert reported == [ValueError]


def test_ctrl_c_while_a_mistake_in_the_command_line_is_shown_ends_with_130(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Exception) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.rich_utils.rich_format_error", interrupted)

    told = machine.tell("queue", "status", "--watch")

    assert (told.code, told.out, told.err) == (130, "", "")


# --- around a command -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_parent_process_ignores_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals_as_exceptions():
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_after_a_command_signals_are_handled_as_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    hook = sys.unraisablehook

    with suppress(ZeroDivisionError), signals_as_exceptions():
        assert [signal.getsignal(number) for number in numbers] != before
        raise ZeroDivisionError

    assert [signal.getsignal(number) for number in numbers] == before
    assert sys.unraisablehook is hook
