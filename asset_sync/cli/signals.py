"""SIGINT, SIGTERM and SIGHUP: they end a command as an exception does, which no other code loses.

So the item in work goes back and the slot is stamped. But Python and libraries lose exceptions:

- psycopg2 imports `ssl` and ignores all that this raises; 5 of 100 signals were lost there.
- Python 3.11 makes a RuntimeError of what is raised while a class is created.
- Python only prints what the callback of a weak reference raises.

So during an import a signal waits until the import is over, and a callback's exception is raised
again.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from asset_sync.errors import ExitCode

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_RETRY_SECONDS = 0.001


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """In this block SIGINT raises KeyboardInterrupt, and SIGTERM and SIGHUP raise SystemExit.

    A signal that the parent process has ignored, as `nohup` does with SIGHUP, stays ignored.
    """
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    print_unraisable = sys.unraisablehook

    def hear(unraisable: "UnraisableHookArgs") -> None:
        match unraisable.exc_value:
            case KeyboardInterrupt():
                _retry(signal.SIGINT)
            case SystemExit(code=ExitCode.TERMINATED):
                _retry(signal.SIGTERM)
            case _:
                print_unraisable(unraisable)

    try:
        sys.unraisablehook = hear
        for number in handlers:
            signal.signal(number, _handle)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = print_unraisable


def _handle(number: int, frame: FrameType | None) -> None:
    """Raise the signal's exception; during an import, try again soon."""
    if _is_in_import(frame):
        _retry(number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(ExitCode.TERMINATED)


def _is_in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _retry(number: int) -> None:
    """Handle the signal again in a moment."""
    signal.signal(signal.SIGALRM, lambda _, frame: _handle(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
