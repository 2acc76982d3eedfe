"""How much of a limited time goes into measuring: which held-out windows, how many measurements, and what time was spent on.

With a time limit, measuring takes at most `SHARE` of it. The first measurement of a run, that of the dense model, goes through
windows spread over the held-out text until its part of the time is used up: all later ones have these windows, so that the points
of a curve can be compared. How many measurements fit then follows from what the last one took. One window is measured in any
case, at the start and at the end.

Shapes: `W` windows, `T` tokens in a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.learn.model.model import Windows

SHARE = 0.15  # of a time limit, at most
FIRST_PART = 0.2  # of that share, for the first measurement: the start, the end and one in between fit, too, if masks slow them


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the time of a run went into, and what was measured in it."""

    steps_s: float
    measuring_s: float
    preparing_s: float  # before the first step
    prepared: str  # that, in a word
    heldout_tokens: int  # measured on
    of_tokens: int  # of the held-out text's
    measurements: int  # points of the curve, the dense model left out

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps_s + self.measuring_s + self.preparing_s

    def describe(self) -> str:
        """The shares in a few words: steps 82 %, measuring 12 %, prior 6 %."""
        parts = (("steps", self.steps_s), ("measuring", self.measuring_s), (self.prepared, self.preparing_s))
        return ", ".join(f"{name} {100 * seconds / max(self.seconds, 1e-9):.0f} %" for name, seconds in parts)

    def to_json(self) -> dict[str, Any]:
        """The figures, as they go into the record of a run."""
        kinds = {"steps": self.steps_s, "measuring": self.measuring_s, "preparing": self.preparing_s}
        measured = {
            "heldout_tokens": self.heldout_tokens,
            "of_heldout_tokens": self.of_tokens,
            "measurements": self.measurements,
            "share_of_time": round(self.measuring_s / max(self.seconds, 1e-9), 4),
        }
        return {"seconds_by_kind": {kind: round(seconds, 1) for kind, seconds in kinds.items()}, "measured": measured}


def spread_order(count: int) -> list[int]:
    """The numbers below `count` in an order in which the first k are spread evenly, for every k: by their reversed bits."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in reversed_bits if i < count]


def measure_within(
    loss: Callable[[Windows], float], windows: Windows, at_a_time: int, allowed_s: float, clock: Callable[[], float]
) -> tuple[float, list[int]]:
    """Measure on as many windows as a time allows, one at least.

    Args:
        loss: of some windows, mean over them; nats a token.
        windows: those there are (W, T).
        at_a_time: windows in a batch; the first one is alone, to see what one takes.
        allowed_s: seconds.
        clock: seconds since some moment.

    Returns:
        The mean loss, and the places of the windows that were measured, in order.
    """
    order, started = spread_order(len(windows)), clock()
    total, done, more = 0.0, 0, 1
    while more > 0:
        total += loss(windows[sorted(order[done : done + more])]) * more
        done += more
        used_s = clock() - started
        fitting = int((allowed_s - used_s) / used_s * done) if used_s > 0 else len(order)
        more = min(at_a_time, len(order) - done, fitting)
    return total / done, sorted(order[:done])


def count_fitting(wanted: int, done: int, left_s: float, each_s: float) -> int:
    """How many measurements a run has after the one at its start: those `wanted` that fit, the one at the end in any case.

    `done` of them are done, and one takes `each_s` of the seconds that are left for measuring.
    """
    fitting = max(0, int(left_s / each_s)) if each_s > 0 else wanted
    return max(1, min(wanted, done + fitting))
