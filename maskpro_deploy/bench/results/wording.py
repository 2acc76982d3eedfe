"""Comparisons in words: the sentence of a verdict, the tally of a run, and what the verdicts hold for.

The words keep apart what was measured and what it may mean. A difference that was seen stays one, however small, but a sentence
says where its estimate is below the least difference of interest; and where both arms run the same kernels, a difference says
something about the measurement and nothing about the arms.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskpro_deploy.bench import stats

SAME_KERNELS = "same kernels: no difference expected"


def format_percent(fraction: float) -> str:
    """Such as "2 %"."""
    return f"{100 * fraction:.4g} %"


def format_ratio(ratio: stats.Ratio) -> tuple[str, str]:
    """The ratio and its interval, for a table."""
    return f"{ratio.speedup:.3f}x", f"[{ratio.low:.3f}, {ratio.high:.3f}]"


def describe_outcome(ratio: stats.Ratio, *, same_kernels: bool = False) -> str:
    """The verdict in words; `same_kernels`: both arms are known to run the same kernels on the same shapes."""
    if not ratio.differs:
        within = f" (within {format_percent(ratio.least_difference)})" if ratio.verdict == stats.NO_INTEREST else ""
        return f"{ratio.verdict}{within}{f' ({SAME_KERNELS})' if same_kernels else ''}"
    if same_kernels:
        return f"measured {ratio.verdict}, but {SAME_KERNELS}. Something disturbed this measurement"
    if ratio.below_interest:
        return f"{ratio.verdict}, estimated below the least difference of interest ({format_percent(ratio.least_difference)})"
    return ratio.verdict


def describe_comparison(candidate: str, baseline: str, ratio: stats.Ratio, *, same_kernels: bool = False) -> str:
    """Such as "sparse runs at 1.020x the speed of dense, 95 % interval [0.990, 1.050]: no difference seen."."""
    speed, interval = format_ratio(ratio)
    words = describe_outcome(ratio, same_kernels=same_kernels)
    return (
        f"{candidate} runs at {speed} the speed of {baseline}, {format_percent(ratio.confidence)} interval {interval}: {words}."
    )


def count_outcomes(
    ratios: Sequence[stats.Ratio | None], same_kernels: Sequence[bool] = (), *, few: str = "too few sessions"
) -> str:
    """How many comparisons of a run came out how, such as "faster in 2, no difference seen in 1 of 3 comparisons".

    A ratio is None where there was not enough to compare, which is called `few`. `same_kernels` says for each whether both arms
    run the same kernels; by default none do.
    """
    flags = same_kernels or [False] * len(ratios)
    counts = dict.fromkeys((stats.FASTER, stats.SLOWER, stats.NO_INTEREST, stats.NO_DIFFERENCE, SAME_KERNELS, few), 0)
    for ratio, same in zip(ratios, flags, strict=True):
        counts[few if ratio is None else SAME_KERNELS if ratio.differs and same else ratio.verdict] += 1
    unexpected = counts.pop(SAME_KERNELS)
    parts = [f"{word} in {count}" for word, count in counts.items() if count]
    if unexpected:
        parts.append(f"a difference that same kernels cannot have, so a disturbed measurement, in {unexpected}")
    return f"{', '.join(parts)} of {len(ratios)} comparisons"


def describe_family(comparisons: int, least_difference: float) -> str:
    """What the verdicts of a run hold for, and which differences interest its reader."""
    together = format_percent(stats.CONFIDENCE)
    level = f"The verdict holds at {together}; the run makes one comparison."
    if comparisons > 1:
        each = format_percent(stats.each_confidence(comparisons))
        level = (
            f"Verdicts hold for all {comparisons} comparisons of this run together at {together}: each uses its {each} interval."
        )
    return f"{level} The least difference of interest is {format_percent(least_difference)} (--least-difference)."


def family_json(comparisons: int, least_difference: float) -> dict[str, float]:
    """The same for `result.json`."""
    return {
        "comparisons": comparisons,
        "confidence_together": stats.CONFIDENCE,
        "confidence_each": stats.each_confidence(comparisons),
        "least_difference": least_difference,
    }
