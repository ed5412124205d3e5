"""The host's clock, which measures durations only: the time of day comes from the database."""

import time

# The clock that also runs while the host is suspended. Linux has CLOCK_BOOTTIME for that; on macOS
# CLOCK_MONOTONIC does it if it is read by `clock_gettime`.
_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_SLICE_SECONDS = 0.5


def monotonic() -> float:
    """Return the seconds since a fixed moment, including the time that the host was suspended."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class Clock:
    """Measures durations and waits; tests use a clock that does not wait."""

    def monotonic(self) -> float:
        """Return seconds since a fixed moment, including the time that the host was suspended."""
        return monotonic()

    def steady(self) -> float:
        """Return the seconds since a fixed moment, to be compared with the database's clock.

        The two differ only in tests, whose `sleep` moves `monotonic` but not the database's clock.
        """
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in slices, because a signal just before a sleep does not interrupt it."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))
