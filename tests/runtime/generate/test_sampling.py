"""Choosing tokens: laws of the filters, the penalties, the seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskpro_deploy.runtime.generate.sampling import NumericError, Sampler, draw, score, top_k_mask, top_p_mask
from maskpro_deploy.runtime.generate.sampling_params import SamplingError, SamplingParams

V = 12
logits_arrays = hnp.arrays(np.float32, V, elements=st.floats(-20, 20, width=32))
uniform = st.floats(0, 1, exclude_max=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


@given(logits_arrays)
def test_temperature_zero_takes_the_likeliest_token(logits: np.ndarray) -> None:
    assert Sampler(SamplingParams(temperature=0), [], V).sample(logits).token == int(np.argmax(logits))


@given(logits_arrays, uniform, st.integers(1, V))
def test_a_draw_stays_among_the_k_likeliest(logits: np.ndarray, u: float, k: int) -> None:
    token = draw(logits, 1.0, k, 1.0, 0.0, u)
    assert (logits > logits[token] + 1e-5).sum() < k, "closer ones are equal in single floats"


@given(logits_arrays, uniform, st.floats(0.01, 1))
def test_a_draw_stays_in_the_nucleus(logits: np.ndarray, u: float, p: float) -> None:
    token = draw(logits, 1.0, 0, p, 0.0, u)
    probabilities = softmax(logits)
    assert probabilities[probabilities > probabilities[token] * (1 + 1e-5)].sum() < p + 1e-6


@given(logits_arrays, uniform, st.floats(0, 1))
def test_min_p_is_relative_to_the_likeliest(logits: np.ndarray, u: float, p: float) -> None:
    probabilities = softmax(logits)
    assert probabilities[draw(logits, 1.0, 0, 1.0, p, u)] >= p * probabilities.max() * (1 - 1e-5)


@given(logits_arrays, uniform)
def test_without_filters_a_draw_is_the_inverse_of_the_distribution(logits: np.ndarray, u: float) -> None:
    token = draw(logits, 1.0, 0, 1.0, 0.0, u)
    cumulative = np.cumsum(softmax(logits))
    assert (cumulative[token - 1] if token else 0.0) <= u + 1e-6
    assert cumulative[token] >= u - 1e-6


@given(st.integers(1, 1300), st.integers(0, 2**32), uniform)
def test_a_draw_from_many_is_one_from_their_running_sum(size: int, seed: int, u: float) -> None:
    """Summed up in runs, with tokens of no weight among them; only where two sums round differently may a neighbour come out."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, size).astype(np.float32)
    logits[rng.random(size) < 0.3] = -np.inf
    logits[rng.integers(size)] = 9.0
    token = draw(logits, 1.0, 0, 1.0, 0.0, u)
    weights = np.exp((logits - logits.max()).astype(np.float64))
    running = np.cumsum(weights / weights.sum())
    assert weights[token] > 0
    assert (running[token - 1] if token else 0.0) - 1e-6 <= u <= running[token] + 1e-6


@given(hnp.arrays(np.float64, V, elements=st.floats(-3, 3).map(round)), st.integers(0, V + 3))
def test_top_k_keeps_exactly_k_also_among_equals(scores: np.ndarray, k: int) -> None:
    keep = top_k_mask(scores, k)
    assert keep.sum() == (min(k, V) or V)
    if not keep.all():
        assert scores[keep].min() >= scores[~keep].max()


@given(logits_arrays, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: np.ndarray, p: float) -> None:
    probabilities = softmax(logits)
    kept = probabilities[top_p_mask(probabilities, p)]
    assert kept.sum() >= p - 1e-9
    assert kept.sum() - kept.min() < p + 1e-9


@pytest.mark.parametrize("size", [3, 10, 49, 1000])
def test_a_tiny_nucleus_still_holds_a_token(size: int) -> None:
    assert top_p_mask(np.full(size, 1 / size) * (1 - 1e-15), 1e-12).sum() == 1


@given(logits_arrays, st.integers(0, V - 1), st.integers(0, V))
def test_log_probabilities_are_those_of_the_softmax(logits: np.ndarray, token: int, top: int) -> None:
    scored = score(logits, token, top)
    expected = np.log(softmax(logits))
    assert scored.logprob == pytest.approx(expected[token], abs=1e-5)
    assert [lp for _, lp in scored.top] == pytest.approx(np.sort(expected)[::-1][:top], abs=1e-5)


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(seed=3), [], 3)
    counts = np.bincount([sampler.sample(logits).token for _ in range(4000)], minlength=3)
    # five standard deviations of a binomial share
    assert np.abs(counts / 4000 - [0.5, 0.3, 0.2]).max() < 5 * math.sqrt(0.25 / 4000)


def test_a_seed_repeats_and_choices_differ() -> None:
    logits = np.zeros(V, np.float32)

    def run(seed: int, choice: int) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed), [], V, choice=choice)
        return [sampler.sample(logits).token for _ in range(20)]

    assert run(7, 0) == run(7, 0)
    assert run(7, 0) != run(7, 1)
    assert run(7, 0) != run(8, 0)
    assert run(-1, 0) == run(2**64 - 1, 0)


def test_one_number_is_drawn_per_token_whatever_the_filters() -> None:
    logits = np.linspace(0, 1, V, dtype=np.float32)
    plain, filtered = Sampler(SamplingParams(seed=1), [], V), Sampler(SamplingParams(seed=1, top_k=3, top_p=0.5), [], V)
    plain.sample(logits)
    filtered.sample(logits)
    assert plain._rng.random() == filtered._rng.random()


def test_penalties_move_away_from_what_was_said() -> None:
    logits = np.array([2.0, 1.9, -5.0, -5.0], np.float32)
    greedy = {"temperature": 0.0, "max_tokens": 9}
    assert Sampler(SamplingParams(repetition_penalty=2.0, **greedy), [0], 4).sample(logits).token == 1
    for setting in ("presence_penalty", "frequency_penalty"):
        sampler = Sampler(SamplingParams(**{setting: 0.5}, **greedy), [0], 4)
        assert [sampler.sample(logits).token for _ in range(2)] == [0, 1], "the prompt does not count, the answer does"
    frequency = Sampler(SamplingParams(frequency_penalty=1.0, **greedy), [], 4)
    assert [frequency.sample(logits).token for _ in range(4)] == [0, 1, 0, 1]


def test_repetition_penalty_makes_negative_logits_smaller() -> None:
    logits = np.array([-1.0, -1.1], np.float32)
    assert Sampler(SamplingParams(temperature=0, repetition_penalty=1.5), [0], 2).sample(logits).token == 1


def test_logit_bias_bans_and_forces() -> None:
    logits = np.array([3.0, 1.0, 0.0], np.float32)
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: -100}), [], 3).sample(logits).token == 1
    assert Sampler(SamplingParams(logit_bias={2: 100}), [], 3).sample(logits).token == 2


def test_end_tokens_are_banned_before_min_tokens() -> None:
    logits = np.array([3.0, 1.0], np.float32)
    sampler = Sampler(SamplingParams(temperature=0, min_tokens=2), [], 2, end_tokens={0})
    assert [sampler.sample(logits).token for _ in range(3)] == [1, 1, 0]


def test_reported_log_probabilities_are_the_models_own() -> None:
    logits = np.array([3.0, 1.0], np.float32)
    scored = Sampler(SamplingParams(temperature=0, logit_bias={1: 50}, logprobs=1), [], 2).sample(logits)
    assert scored.token == 1
    assert scored.logprob == pytest.approx(math.log(softmax(logits)[1]), abs=1e-6)
    assert scored.top[0][0] == 0


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"top_p": 0.5}, {"presence_penalty": 1}, {"min_tokens": 1}])
def test_unusable_logits_are_an_error(place: int, params: dict[str, float]) -> None:
    """Wherever the NaN is, also at an end token that is banned."""
    logits = np.array([1.0, 0.0, 2.0], np.float32)
    logits[place] = np.nan
    with pytest.raises(NumericError, match="NaN"):
        Sampler(SamplingParams(**params), [], 3, end_tokens=[0]).sample(logits)  # type: ignore[arg-type]


def test_sampling_leaves_the_logits_as_they_are() -> None:
    """They are the batch's own, and log-probabilities are read from them afterwards."""
    logits = np.array([1.0, 0.0, 2.0], np.float32)
    for params in ({}, {"temperature": 0}, {"presence_penalty": 1.0}, {"logit_bias": {0: 5.0}}):
        sampler = Sampler(SamplingParams(**params), [1], 3)  # type: ignore[arg-type]
        for _ in range(3):
            sampler.sample(logits)
    assert logits.tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("min_tokens", 17),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_k", -2),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("logit_bias", {5: 101.0}),
        ("logit_bias", {-1: 0.0}),
        ("stop", ("a", "")),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(SamplingError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
