"""Finds out who started this process, for the history of runs."""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path


class Starter(StrEnum):
    """Who started a run."""

    TERMINAL = "terminal"
    CRON = "cron"
    SYSTEMD = "systemd"
    OTHER = "other"


_CRON_PROGRAMS = frozenset({"cron", "crond", "anacron", "fcron"})


def starter() -> Starter:
    """Return who started this process, or OTHER if this machine does not show it.

    A process that a person started has a terminal, even if all its output is redirected. Jobs of
    cron and systemd have no terminal. A job of cron has cron among its ancestors. A job of systemd
    has systemd as its parent, and an INVOCATION_ID.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        pass
    else:
        return Starter.TERMINAL
    ancestors = [name.lower() for name in _ancestors()]
    if not _CRON_PROGRAMS.isdisjoint(ancestors):
        return Starter.CRON
    if ancestors[:1] == ["systemd"] and "INVOCATION_ID" in os.environ:
        return Starter.SYSTEMD
    return Starter.OTHER


def _ancestors() -> Iterator[str]:
    """Yield the names of this process's ancestors, the nearest first; none without /proc."""
    pid = os.getppid()
    while pid > 0:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return
        name, _, rest = status.partition("(")[2].rpartition(")")
        yield name
        pid = int(rest.split()[1])
