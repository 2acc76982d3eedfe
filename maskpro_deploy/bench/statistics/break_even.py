"""From which size on is one arm faster?"""

from __future__ import annotations

from collections.abc import Mapping

from maskpro_deploy.bench.statistics import stats


def find_break_even(verdicts: Mapping[int, str]) -> int | None:
    """The smallest measured size from which on every measured size is faster; None if the largest is not.

    Args:
        verdicts: size -> verdict, as `stats.Ratio` has it.
    """
    smallest = None
    for size in sorted(verdicts, reverse=True):
        if verdicts[size] != stats.FASTER:
            break
        smallest = size
    return smallest
