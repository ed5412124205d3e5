"""The base class of all errors of asset-sync, and the exit codes."""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The process's exit codes, as the README lists them."""

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

    Each package derives its own errors from this. Any other exception is a bug.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE
    """The program's exit code if nothing catches the error."""
