"""The exit code and the sentence for an error or a signal that ends the program."""

import errno

from asset_sync import __version__
from asset_sync.errors import AssetSyncError, ExitCode

_GIVEN_BACK = "the item in work went back to the queue."


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Return the exit code and the sentence for what ended the program."""
    match error:
        case AssetSyncError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED, f"interrupted; {_GIVEN_BACK}"
        case SystemExit():
            return ExitCode.TERMINATED, f"terminated; {_GIVEN_BACK}"
        case OSError(errno=errno.ENOSPC, filename=None):  # typer itself prints help
            return ExitCode.USAGE, f"The output could not be written: {error.strerror}."
        case _:
            return ExitCode.BUG, _bug(error)


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
