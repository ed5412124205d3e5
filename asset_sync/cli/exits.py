"""What the process tells cron: one table of exit codes, and what leads to which."""

from enum import IntEnum

from asset_sync.errors import AssetSyncError


class ExitCode(IntEnum):
    """The exit codes, as the README lists them."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    DATABASE = 3
    REFUSED = 4
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


def exit_code(error: AssetSyncError) -> ExitCode:
    """Return the code of the family that the error is of."""
    # Only now that something failed: importing them costs more than most commands take.
    from asset_sync.database import DatabaseError  # noqa: PLC0415
    from asset_sync.embedded import EmbeddedError  # noqa: PLC0415

    if isinstance(error, DatabaseError | EmbeddedError):
        return ExitCode.DATABASE
    return ExitCode.USAGE
