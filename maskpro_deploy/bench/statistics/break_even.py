"""From which size on is one arm faster?"""

from __future__ import annotations

from collections.abc import Mapping

from maskpro_deploy.bench.statistics import stats


def find_break_even(verdicts: Mapping[int, str]) -> int | None:
    """The smallest measured size from which on every measured size is faster by its verdict; None if the largest is not."""
    smallest = None
    for size in sorted(verdicts, reverse=True):
        if verdicts[size] != stats.FASTER:
            break
        smallest = size
    return smallest
