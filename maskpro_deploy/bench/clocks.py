"""Whether the clocks of this machine can be trusted while something is timed.

Timings come from a monotonic clock. The wall clock runs beside it: where the two part, the machine slept, was moved to another
host or had its time set, and a timing across that moment says nothing about the work.
"""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]

ALLOWED_S = 0.5  # what slewing by a time server and the reading of two clocks may come to
ALLOWED_PART = 0.01


class ClockWatch:
    """Compares two clocks since it was made, or since the last time it was asked.

    Args:
        clock: seconds, monotonic.
        wall: seconds of the wall clock.
    """

    def __init__(self, clock: Clock, wall: Clock) -> None:
        self._clock, self._wall = clock, wall
        self._last = clock(), wall()

    def find_jump(self) -> str | None:
        """Why a timing since the last call says nothing, or None."""
        now = self._clock(), self._wall()
        passed_s, wall_s = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        if passed_s < 0:
            return f"the clock went back by {-passed_s:.3g} s."
        if abs(wall_s - passed_s) > ALLOWED_S + ALLOWED_PART * passed_s:
            return (
                f"the clock jumped: {passed_s:.1f} s passed by the monotonic clock and {wall_s:.1f} s by the wall clock. "
                "Was the machine asleep, moved, or its time set?"
            )
        return None
