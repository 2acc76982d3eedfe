"""Laws of the interval of a trimmed mean, and of Student's t."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.bench import intervals
from maskpro_deploy.errors import ConfigError

values = st.lists(st.floats(-10, 10), min_size=2, max_size=40).map(np.asarray)


@pytest.mark.parametrize(
    ("confidence", "degrees", "tabulated"),
    [  # two-sided, from printed tables
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 5, 2.57058),
        (0.95, 7, 2.36462),
        (0.95, 11, 2.200985),
        (0.95, 30, 2.04227),
        (0.95, 120, 1.97993),
        (0.99, 3, 5.84091),
        (0.99, 7, 3.49948),
        (0.90, 9, 1.83311),
        (0.999, 1, 636.619),
        (0.999, 7, 5.40788),
        (0.50, 4, 0.740697),
        (0.95, 1e6, 1.95997),
    ],
)
def test_student_t_agrees_with_the_tables(confidence: float, degrees: float, tabulated: float) -> None:
    assert intervals.student_t(confidence, degrees) == pytest.approx(tabulated, rel=2e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9995, 1 - 1e-6])
def test_student_t_of_one_and_two_degrees_has_a_closed_form(confidence: float) -> None:
    assert intervals.student_t(confidence, 1) == pytest.approx(np.tan(np.pi * confidence / 2), rel=1e-8)
    assert intervals.student_t(confidence, 2) == pytest.approx(confidence * np.sqrt(2 / (1 - confidence**2)), rel=1e-8)


@given(st.floats(0.5, 0.9999), st.floats(1.0, 200.0))
def test_student_t_falls_with_more_degrees_and_grows_with_confidence(confidence: float, degrees: float) -> None:
    t = intervals.student_t(confidence, degrees)
    assert intervals.student_t(confidence, 2 * degrees) < t < intervals.student_t((1 + confidence) / 2, degrees)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 5), (1.0, 5), (0.95, 0), (0.95, float("nan"))])
def test_a_student_t_that_is_not_defined_is_refused(confidence: float, degrees: float) -> None:
    with pytest.raises(ConfigError, match="not defined"):
        intervals.student_t(confidence, degrees)


@given(values)
def test_the_trimmed_mean_moves_and_turns_with_its_values(x: intervals.Array) -> None:
    found, moved, turned = (intervals.trimmed_mean(v) for v in (x, x + 3.0, -x))
    assert x.min() - 1e-9 <= float(found.centre) <= x.max() + 1e-9
    assert float(moved.centre) == pytest.approx(float(found.centre) + 3.0, abs=1e-9)
    assert float(turned.centre) == pytest.approx(-float(found.centre), abs=1e-9)
    assert float(turned.error) == pytest.approx(float(found.error), abs=1e-9)


def test_few_values_have_the_mean_and_its_error() -> None:
    x = np.array([1.0, 2.0, 4.0, 5.0])
    found = intervals.trimmed_mean(x)
    assert (float(found.centre), float(found.degrees)) == (3.0, 3.0)
    assert float(found.error) == pytest.approx(x.std(ddof=1) / 2)


@pytest.mark.parametrize(("count", "kept"), [(7, 7), (8, 6), (12, 10), (24, 20), (40, 32)])
def test_one_value_in_ten_is_trimmed_at_each_end(count: int, kept: int) -> None:
    assert float(intervals.trimmed_mean(np.arange(float(count))).degrees) == kept - 1


@pytest.mark.parametrize("count", [8, 12, 24])
def test_one_disturbed_value_moves_neither_centre_nor_error_further_than_a_large_one(count: int) -> None:
    quiet = np.linspace(-0.03, 0.03, count)
    large, huge = quiet.copy(), quiet.copy()
    large[-1], huge[-1] = 0.1, 5.0
    a, b = intervals.trimmed_mean(large), intervals.trimmed_mean(huge)
    assert (float(a.centre), float(a.error)) == (float(b.centre), float(b.error))


def test_many_are_computed_as_one_by_one() -> None:
    many = np.random.default_rng(0).normal(size=(3, 5, 12))
    found = intervals.trimmed_mean(many)
    one = intervals.trimmed_mean(many[2, 4])
    assert found.centre.shape == (3, 5)
    assert found.centre[2, 4] == pytest.approx(float(one.centre))
    assert found.error[2, 4] == pytest.approx(float(one.error))


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ConfigError, match="at least two values; found 1"):
        intervals.trimmed_mean(np.ones(1))


@pytest.mark.parametrize(("counts", "spreads"), [((8, 8), (1.0, 1.0)), ((8, 24), (1.0, 1.0)), ((8, 20), (3.0, 1.0))])
def test_the_interval_of_a_difference_holds_its_truth(counts: tuple[int, int], spreads: tuple[float, float]) -> None:
    rng = np.random.default_rng(sum(counts))
    a, b = (rng.normal(0.0, s, (10_000, n)) for s, n in zip(spreads, counts, strict=True))
    found = intervals.difference(a, b + 1.0)
    t = np.array([intervals.half_width(1.0, round(float(d), 1), 0.95) for d in found.degrees])
    missed = float((np.abs(found.centre - 1.0) > t * found.error).mean())
    assert 0.015 < missed < 0.05


def test_a_difference_without_noise_is_exact() -> None:
    found = intervals.difference(np.full(8, 1.0), np.full(9, 1.5))
    assert (float(found.centre), float(found.error)) == (0.5, 0.0)
    assert found.interval(0.95) == (0.5, 0.5)
