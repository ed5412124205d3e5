"""Judges who started this process, so that the history can say so."""

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


_CRONS = frozenset({"cron", "crond", "anacron", "fcron"})


def starter() -> Starter:
    """Return who started this process, as far as this machine tells.

    A person's has a terminal, even where all its output goes elsewhere. Jobs of cron and of systemd
    have none; cron is among their ancestors, or systemd is their parent and has numbered them.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        pass
    else:
        return Starter.TERMINAL
    ancestors = [name.lower() for name in _ancestors()]
    if not _CRONS.isdisjoint(ancestors):
        return Starter.CRON
    if ancestors[:1] == ["systemd"] and "INVOCATION_ID" in os.environ:
        return Starter.SYSTEMD
    return Starter.OTHER


def _ancestors() -> Iterator[str]:
    """Yield the names of this process's ancestors, the nearest first; none where /proc is not."""
    pid = os.getppid()
    while pid > 0:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return
        name, _, rest = status.partition("(")[2].rpartition(")")
        yield name
        pid = int(rest.split()[1])
