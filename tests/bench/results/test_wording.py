from __future__ import annotations

import dataclasses

import pytest
from simulated import LIKE

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.results import wording

NONE = dataclasses.replace(LIKE, speedup=1.004, low=0.99, high=1.018, verdict=stats.NO_INTEREST)
UNSEEN = dataclasses.replace(LIKE, speedup=1.02, low=0.95, high=1.09, verdict=stats.NO_DIFFERENCE)
SMALL = dataclasses.replace(LIKE, speedup=1.011, low=1.006, high=1.016)
SLOW = dataclasses.replace(LIKE, speedup=0.8, low=0.7, high=0.9, verdict=stats.SLOWER)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (LIKE, "faster"),
        (SLOW, "slower"),
        (UNSEEN, "no difference seen"),
        (NONE, "no difference of interest (within 2 %)"),
        (SMALL, "faster, estimated below the least difference of interest (2 %)"),
        (dataclasses.replace(NONE, least_difference=0.005), "no difference of interest (within 0.5 %)"),
    ],
)
def test_the_outcome_says_what_was_seen_and_whether_it_is_of_interest(ratio: stats.Ratio, said: str) -> None:
    assert wording.describe_outcome(ratio) == said


@pytest.mark.parametrize("ratio", [LIKE, SLOW, UNSEEN, NONE, SMALL])
def test_same_kernels_are_named_whatever_was_measured(ratio: stats.Ratio) -> None:
    said = wording.describe_outcome(ratio, same_kernels=True)
    assert "same kernels: no difference expected" in said
    assert ("disturbed this measurement" in said) == ratio.differs


def test_a_sentence_names_arms_ratio_and_interval() -> None:
    assert wording.describe_comparison("a", "b", LIKE) == "a runs at 1.200x the speed of b, 95 % interval [1.100, 1.300]: faster."


def test_a_tally_counts_each_outcome_once() -> None:
    assert wording.count_outcomes([LIKE, SLOW, UNSEEN, NONE, None]) == (
        "faster in 1, slower in 1, no difference of interest in 1, no difference seen in 1, "
        "too few sessions in 1 of 5 comparisons"
    )
    assert wording.count_outcomes([LIKE, LIKE], [False, True]).startswith(
        "faster in 1, a difference that same kernels cannot have"
    )


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "The verdict holds at 95 %; the run makes one comparison."),
        (2, "all 2 comparisons of this run together at 95 %: each uses its 97.5 %"),
    ],
)
def test_the_level_of_the_verdicts_is_said(count: int, said: str) -> None:
    assert said in wording.describe_family(count, 0.02)
