"""The lines that have cron start the two jobs; `crontab` is the table that they are in."""

import os
import re
import shlex

from asset_sync.model import Lane
from asset_sync.schedule import crontab
from asset_sync.schedule.installation import (
    POSSIBLE_INTERVALS,
    Installation,
    ScheduleError,
    difference,
)

_COMMAND_BYTES = 990  # cron's own limit is 998


def block(this: Installation) -> str:
    """Return the lines for the crontab, with the marks around them. Raises ScheduleError."""
    times = _times(this)
    jobs = "".join(f"{times}  {_command(this, lane)}\n" for lane in Lane)
    return (
        f"{crontab.BEGIN}: written by `asset-sync schedule cron --install`;"
        " `--remove` takes it out.\n"
        f"{jobs}"
        f"{crontab.END}\n"
    )


def _command(this: Installation, lane: Lane) -> str:
    variables = [
        *(f"{name}={value}" for name, value in this.environment),
        *(f"{name}_FILE={path}" for name, path in this.secrets),
    ]
    words = [*(["env", *variables] if variables else []), *this.program, "sync", lane.value, "-q"]
    for word in words:
        if re.search(r"[\\\n\r]", word):
            raise ScheduleError(
                f"cron cannot be given {word!r}: it holds a backslash or a line break; choose"
                " another path or value."
            )
    # cron takes % for a line break, and \% for %.
    command = shlex.join(words).replace("%", r"\%")
    if len(os.fsencode(command)) > _COMMAND_BYTES:
        raise ScheduleError(
            f"The job's command is {len(os.fsencode(command))} bytes long, and cron takes at most"
            f" {_COMMAND_BYTES}: move variables into assets.toml, or choose shorter paths."
        )
    return command


def _times(this: Installation) -> str:
    match this.interval:
        case 1, "minutes":
            return "* * * * *"
        case step, "minutes":
            return f"*/{step} * * * *"
        case 1, "hours":
            return "0 * * * *"
        case 24, "hours":
            return "0 0 * * *"
        case step, "hours":
            return f"0 */{step} * * *"
        case _:
            raise ScheduleError(
                f"cron cannot start a job every {this.interval_minutes:g} minutes. Set"
                f" batch.interval_minutes to {POSSIBLE_INTERVALS}."
            )


def install(lines: str) -> str:
    """Put the block into the user's crontab; return the difference. Raises CrontabError."""
    before = crontab.read()
    return _write(before, crontab.with_block(before, os.fsencode(lines)))


def remove() -> str:
    """Take the block out of the user's crontab; return the difference, empty if it has none."""
    before = crontab.read()
    return _write(before, crontab.without_block(before))


def _write(before: bytes, after: bytes) -> str:
    if before != after:
        crontab.write(after)
    shown = (table.decode(errors="backslashreplace") for table in (before, after))
    return difference("crontab", *shown)
