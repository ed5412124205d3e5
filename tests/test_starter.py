"""A run finds out whether cron, systemd or a person started it."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from asset_sync.starter import Starter

ASK = "from asset_sync.starter import starter; print(starter().value)"


def asked(*command: str, **environ: str) -> str:
    """Return what a process without a terminal reports if it is started in this way."""
    return subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environ},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_process_that_cron_starts_through_a_shell_is_attributed_to_cron(tmp_path: Path) -> None:
    cron = tmp_path / "cron"
    cron.symlink_to("/bin/bash")

    command = f"/bin/sh -c '{sys.executable} -c \"{ASK}\"; true'; true"

    assert asked(str(cron), "-c", command) == Starter.CRON
    assert asked(str(cron), "-c", command, INVOCATION_ID="0" * 32) == Starter.CRON


def test_a_process_that_systemd_starts_is_attributed_to_systemd(tmp_path: Path) -> None:
    systemd = tmp_path / "systemd"
    systemd.symlink_to("/bin/bash")
    command = f"{sys.executable} -c '{ASK}'; true"

    assert asked(str(systemd), "-c", command, INVOCATION_ID="0" * 32) == Starter.SYSTEMD
    assert asked(str(systemd), "-c", command) == Starter.OTHER, "as what a login left behind"


def test_a_process_started_at_a_terminal_is_attributed_to_a_person_even_if_redirected(
    tmp_path: Path,
) -> None:
    answer = tmp_path / "answer"
    command = f"{sys.executable} -c '{ASK}' </dev/null >{answer} 2>&1"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["/bin/sh", "-c", command])

    os.waitpid(pid, 0)
    os.close(terminal)

    assert answer.read_text().strip() == Starter.TERMINAL


@pytest.mark.parametrize("environ", [{}, {"INVOCATION_ID": "0" * 32}])
def test_a_process_of_an_unknown_starter_is_attributed_to_nobody(environ: dict[str, str]) -> None:
    assert asked(sys.executable, "-c", ASK, **environ) == Starter.OTHER
