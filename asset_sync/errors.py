"""The root of everything that asset-sync says went wrong, and the exit codes."""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process tells cron, as the README lists it."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    DATABASE = 3
    REFUSED = 4
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class AssetSyncError(Exception):
    """A sentence for the user: what happened, to which asset or setting, and what to do.

    Each package derives its own family from this. Whatever is not of this family is a bug.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE
    """How the program ends where nothing catches the error."""
