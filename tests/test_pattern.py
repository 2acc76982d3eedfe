"""Laws of N:M patterns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskpro_deploy.errors import PatternError
from maskpro_deploy.pattern import NMPattern, count_in_groups

patterns = st.integers(2, 8).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m - 1), st.just(m)))


@given(pattern=st.integers(2, 64).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m - 1), st.just(m))))
def test_text_round_trip(pattern):
    assert NMPattern.parse(str(pattern)) == pattern
    assert NMPattern.parse(f"  {pattern} ") == pattern


@pytest.mark.parametrize(
    "text",
    ["4:2", "5", "", "2:", ":4", "2:2", "0:4", "-1:4", "2:65", "2:4:8", "two:four", "2/4", "2.0:4", "99999:999999", "٢:٤x"],
)
def test_malformed_patterns_are_refused_with_what_was_given(text):
    with pytest.raises(PatternError, match="--sparsity") as caught:
        NMPattern.parse(text)
    assert text in str(caught.value)
    assert 1 <= len(str(caught.value).splitlines()) <= 3


@given(text=st.text(max_size=12))
def test_any_text_is_a_pattern_or_a_pattern_error(text):
    try:
        pattern = NMPattern.parse(text)
    except PatternError:
        return
    assert 0 < pattern.n < pattern.m


def test_a_layer_that_is_not_divided_is_named():
    NMPattern(2, 3).check_divides(576, "up_proj")
    with pytest.raises(PatternError, match=r"2:3 does not fit up_proj.*64") as caught:
        NMPattern(2, 3).check_divides(64, "up_proj")
    assert "--exclude" in str(caught.value)


@given(pattern=patterns)
def test_all_masks_are_the_distinct_masks_that_hold(pattern):
    masks = pattern.all_masks()
    assert masks.shape == (pattern.num_masks, pattern.m)
    assert len({tuple(m) for m in masks.tolist()}) == pattern.num_masks
    assert (masks.sum(axis=1) == pattern.n).all()
    assert pattern.holds(masks)


@settings(deadline=None)
@given(pattern=patterns, data=st.data())
def test_top_keeps_n_and_no_mask_keeps_a_higher_sum(pattern, data):
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)) * pattern.m)
    scores = data.draw(arrays(np.float64, shape, elements=st.integers(-5, 5).map(float)))
    mask = pattern.top(scores)
    assert pattern.holds(mask)
    for group, kept in zip(scores.reshape(-1, pattern.m), mask.reshape(-1, pattern.m), strict=True):
        best = max(sum(group[list(c)]) for c in itertools.combinations(range(pattern.m), pattern.n))
        assert sum(group[kept]) == best


def test_ties_go_to_the_lower_index():
    assert NMPattern(2, 4).top(np.zeros((1, 4))).tolist() == [[True, True, False, False]]


@given(pattern=patterns, data=st.data())
def test_one_flip_breaks_it_and_counts_show_where(pattern, data):
    groups = data.draw(st.integers(1, 4))
    mask = pattern.top(np.random.default_rng(data.draw(st.integers(0, 99))).random((2, groups * pattern.m)))
    row, column = data.draw(st.integers(0, 1)), data.draw(st.integers(0, groups * pattern.m - 1))
    mask[row, column] ^= True
    assert not pattern.holds(mask)
    assert np.argwhere(pattern.counts(mask) != pattern.n).tolist() == [[row, column // pattern.m]]


@given(pattern=patterns, columns=st.integers(1, 30))
def test_a_partial_last_group_never_holds(pattern, columns):
    assume(columns % pattern.m)
    assert not pattern.holds(np.ones((1, columns), bool))


def test_figures():
    assert (NMPattern(2, 4).density, NMPattern(2, 4).num_masks, NMPattern(4, 8).num_masks) == (0.5, 6, 70)
    assert sorted([NMPattern(2, 4), NMPattern(1, 4)]) == [NMPattern(1, 4), NMPattern(2, 4)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), m=st.integers(2, 40), groups=st.integers(1, 5), inner=st.integers(1, 5))
def test_counts_in_groups_are_sums(seed, m, groups, inner):
    flags = np.random.default_rng(seed).random(groups * m * inner) < 0.5
    assert (count_in_groups(flags, [m], inner)[m] == flags.reshape(groups, m, inner).sum(axis=1).reshape(-1)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), sizes=st.sets(st.sampled_from([2, 3, 4, 6, 8, 12, 16, 24])), inner=st.integers(1, 3))
def test_counts_of_several_group_sizes_are_those_of_each(seed, sizes, inner):
    flags = np.random.default_rng(seed).random(48 * 2 * inner) < 0.6
    found = count_in_groups(flags, sizes, inner)
    assert found.keys() == sizes
    for m, counts in found.items():
        assert (counts == flags.reshape(-1, m, inner).sum(axis=1).reshape(-1)).all()


@pytest.mark.parametrize(("text", "count"), [("1:2", 2), ("1:3", 6), ("2:3", 6), ("1:4", 24), ("2:4", 90), ("3:4", 24)])
def test_all_transposable_masks_are_the_distinct_blocks_that_hold_along_both_axes(text, count):
    pattern = NMPattern.parse(text)
    masks = pattern.all_transposable_masks()
    assert masks.shape == (count, pattern.m**2)
    assert len({tuple(m) for m in masks.tolist()}) == count
    assert all(pattern.holds_both_ways(m.reshape(pattern.m, pattern.m)) for m in masks)


def test_a_matrix_holds_both_ways_only_if_rows_and_columns_do():
    pattern = NMPattern(1, 2)
    blocks = np.tile(np.eye(2, dtype=bool), (2, 2))
    assert pattern.holds_both_ways(blocks)
    rows_alone = np.tile([True, False], (4, 2))
    assert pattern.holds(rows_alone)
    assert not pattern.holds_both_ways(rows_alone)
    assert not pattern.holds_both_ways(rows_alone.T)
    assert not pattern.holds_both_ways(blocks[:3])  # no whole groups
