"""The host's clock for measuring: it says how much time has passed, never what time it is."""

import time

# CLOCK_MONOTONIC of macOS counts sleep if it is read in this way; that of Linux does not.
_COUNTS_SLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_SLICE_SECONDS = 0.5


def monotonic() -> float:
    """Return seconds since some moment; those in which the host was suspended count."""
    return time.monotonic() if _COUNTS_SLEEP is None else time.clock_gettime(_COUNTS_SLEEP)


class Clock:
    """Measures and waits; tests bring one that does not wait. Dates are the database's."""

    def monotonic(self) -> float:
        """Return seconds since some moment; those in which the host was suspended count."""
        return monotonic()

    def steady(self) -> float:
        """Return seconds to compare with the database's clock: all that `sleep` waited for."""
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in slices: a signal that comes just before a sleep does not end it."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))
