"""What the process tells cron: one table of exit codes, and what leads to which."""

from enum import IntEnum

from asset_sync import __version__
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


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Return what cron and the user are told of what ended the program."""
    match error:
        case AssetSyncError():
            return exit_code(error), str(error)
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED, f"interrupted; {_GIVEN_BACK}"
        case SystemExit():
            return ExitCode.TERMINATED, f"terminated; {_GIVEN_BACK}"
        case _:
            return ExitCode.BUG, _bug(error)


_GIVEN_BACK = "what was under way went back to the queue."


def _bug(error: BaseException) -> str:
    """Say where it happened, but not with which values: they may be secret."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "?"
    if frame is not None:
        code = frame.tb_frame.f_code
        where = f"{code.co_filename}:{frame.tb_lineno} in {code.co_name}"
    return (
        f"this is a bug ({type(error).__name__} at {where}) of version {__version__}. Nothing is "
        "lost; please report this line where you got asset-sync from."
    )


def exit_code(error: AssetSyncError) -> ExitCode:
    """Return the code of the family that the error is of."""
    # Only now that something failed: importing them costs more than most commands take.
    from asset_sync.database import DatabaseError  # noqa: PLC0415
    from asset_sync.database.embedded import EmbeddedError  # noqa: PLC0415

    if isinstance(error, DatabaseError | EmbeddedError):
        return ExitCode.DATABASE
    return ExitCode.USAGE
