"""The host's clock for measuring: it says how much time has passed, never what time it is."""

import time

# CLOCK_MONOTONIC of macOS counts sleep if it is read in this way; that of Linux does not.
_COUNTS_SLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def monotonic() -> float:
    """Return seconds since some moment; those in which the host was suspended count."""
    return time.monotonic() if _COUNTS_SLEEP is None else time.clock_gettime(_COUNTS_SLEEP)
