"""The host's clock: it measures how much time has passed, never what time it is."""

import time

# On macOS CLOCK_MONOTONIC includes sleep if it is read in this way; on Linux it does not.
_COUNTS_SLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_SLICE_SECONDS = 0.5


def monotonic() -> float:
    """Return seconds since some moment, including the time that the host was suspended."""
    return time.monotonic() if _COUNTS_SLEEP is None else time.clock_gettime(_COUNTS_SLEEP)


class Clock:
    """Measures and waits; tests use one that does not wait. Dates are the database's."""

    def monotonic(self) -> float:
        """Return seconds since some moment, including the time that the host was suspended."""
        return monotonic()

    def steady(self) -> float:
        """Return seconds to compare with the database's clock, including every `sleep`."""
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in slices, because a signal just before a sleep does not interrupt it."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))
