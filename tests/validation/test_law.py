"""Counting agrees with a plain loop, whatever the shape, axis, dtype, pattern and tile size."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import FLOATS, PATTERNS, STORED, damaged, holds_by_hand, lawful, seeds

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import law
from maskpro_deploy.validation.arrays import BitArray, MemoryArray, TransposedArray
from maskpro_deploy.validation.law import inspect_values, scan


@st.composite
def shapes(draw, m: int):
    """A shape of one to four axes, its reduction axis, whose length is a multiple of M."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] *= m
    return tuple(shape), axis


def judge(array, axis, pattern, at_most=False, mask=None):
    flat_mask = MemoryArray(np.ascontiguousarray(mask)) if mask is not None else None
    found = scan(MemoryArray(array), array.shape, axis, [pattern], mask=flat_mask, at_most=at_most)
    return found, found.tallies[0]


@pytest.fixture(params=[(1, 1 << 21), (1 << 20, 1 << 21), (8, 1)], ids=["smallest tiles", "one tile", "narrow panels"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(law, "_TILE", request.param[0])
    monkeypatch.setattr(law, "_LONGEST_RUN", request.param[1])


@pytest.mark.usefixtures("tiles")
class TestScan:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), pattern=st.sampled_from(PATTERNS), dtype=st.sampled_from(STORED), seed=seeds, at_most=st.booleans())
    def test_intact_tensors_hold(self, data, pattern, dtype, seed, at_most):
        shape, axis = data.draw(shapes(pattern.m))
        array = lawful(np.random.default_rng(seed), shape, axis, pattern, dtype)
        found, tally = judge(array, axis, pattern, at_most)
        assert (tally.violations, tally.over, tally.under, found.not_finite) == (0, 0, 0, 0)
        assert tally.groups * pattern.m == array.size
        assert found.nonzeros == tally.groups * pattern.n

    @settings(max_examples=100, deadline=None)
    @given(
        data=st.data(),
        pattern=st.sampled_from(PATTERNS),
        dtype=st.sampled_from(STORED),
        kind=st.sampled_from(["filled", "erased"]),
        seed=seeds,
    )
    def test_one_changed_weight_is_found_at_its_group(self, data, pattern, dtype, kind, seed):
        rng = np.random.default_rng(seed)
        shape, axis = data.draw(shapes(pattern.m))
        array, at = damaged(rng, lawful(rng, shape, axis, pattern, dtype), kind)
        _, tally = judge(array, axis, pattern)
        assert tally.violations == 1
        assert (tally.over, tally.under) == ((1, 0) if kind == "filled" else (0, 1))
        first = list(at)
        first[axis] -= first[axis] % pattern.m
        assert tally.first == [np.ravel_multi_index(first, shape)]
        _, lenient = judge(array, axis, pattern, at_most=True)
        assert lenient.violations == (1 if kind == "filled" else 0)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), dtype=st.sampled_from(FLOATS), seed=seeds)
    def test_nan_is_found(self, data, dtype, seed):
        rng = np.random.default_rng(seed)
        shape, axis = data.draw(shapes(4))
        array, _ = damaged(rng, lawful(rng, shape, axis, NMPattern(2, 4), dtype), "nan")
        assert judge(array, axis, NMPattern(2, 4))[0].not_finite == 1

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), pattern=st.sampled_from(PATTERNS), seed=seeds, density=st.floats(0, 1), at_most=st.booleans())
    def test_random_tensors_get_the_verdict_of_a_plain_loop(self, data, pattern, seed, density, at_most):
        rng = np.random.default_rng(seed)
        shape, axis = data.draw(shapes(pattern.m))
        array = (rng.random(shape) < density).astype(np.float32)
        _, tally = judge(array, axis, pattern, at_most)
        assert (tally.violations == 0) == holds_by_hand(array, axis, pattern, at_most=at_most)

    @settings(max_examples=40, deadline=None)
    @given(seed=seeds, axis=st.sampled_from([0, 1]), pattern=st.sampled_from(PATTERNS))
    def test_with_its_mask_a_zero_kept_weight_is_short_and_a_value_elsewhere_a_violation(self, seed, axis, pattern):
        rng = np.random.default_rng(seed)
        array = lawful(rng, (pattern.m * 2, pattern.m * 3), axis, pattern, np.dtype(np.float32))
        mask = array != 0
        short, _ = damaged(rng, array, "erased")
        _, tally = judge(short, axis, pattern, mask=mask)
        assert (tally.violations, tally.under) == (0, 1)
        moved, at = damaged(rng, short, "filled")
        _, tally = judge(moved, axis, pattern, mask=mask)
        if not mask[at]:
            assert (tally.violations, tally.outside) == (1, 1)

    def test_a_mask_of_another_pattern_is_a_violation(self):
        array = np.zeros((4, 8), np.float32)
        _, tally = judge(array, 1, NMPattern(2, 4), mask=np.ones((4, 8), bool))
        assert (tally.violations, tally.bad_masks) == (8, 8)


def test_a_partial_last_group_is_not_counted_as_checked():
    assert judge(np.zeros((3, 6), np.float32), 1, NMPattern(2, 4))[1].groups == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_negative_zero_is_zero_and_is_reported(dtype):
    values = inspect_values(np.array([-0.0, 0.0, 1.0, -1.0], dtype))
    assert values.nonzero.tolist() == [False, False, True, True]
    assert (values.negative_zeros, values.not_finite) == (1, 0)


@pytest.mark.parametrize("dtype", [*FLOATS, *STORED[6:8]], ids=str)
def test_every_value_of_a_type_is_told_apart_as_numpy_does(dtype):
    """All bit patterns of 8-bit and 16-bit types; the edges of the wider ones."""
    if dtype.itemsize <= 2:
        bits = np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}")
        array = bits.view(dtype)
    else:
        limits = np.finfo(dtype)
        array = np.array([0, limits.smallest_subnormal, limits.tiny, 1, limits.max, np.inf, -np.inf, np.nan], dtype)
    values = inspect_values(array)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = array.astype(np.float64)
    assert values.not_finite == np.count_nonzero(~np.isfinite(wide))
    assert values.negative_zeros == np.count_nonzero((wide == 0) & np.signbit(wide))
    finite = np.isfinite(wide)
    assert (values.nonzero[finite] == (wide[finite] != 0)).all()


@settings(max_examples=50, deadline=None)
@given(seed=seeds, size=st.integers(0, 70), data=st.data())
def test_any_run_of_packed_bits_unpacks(seed, size, data):
    bits = np.random.default_rng(seed).random(size) < 0.5
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    array = BitArray(base=MemoryArray(np.packbits(bits)), size=size, columns=size)
    assert array.read(start, stop).tolist() == bits[start:stop].tolist()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, rows=st.integers(1, 6), columns=st.integers(1, 30), order=st.sampled_from(["big", "little"]), data=st.data())
def test_any_run_of_bits_in_padded_rows_unpacks(seed, rows, columns, order, data):
    bits = np.random.default_rng(seed).random((rows, columns)) < 0.5
    packed = MemoryArray(np.packbits(bits, axis=1, bitorder=order))
    start = data.draw(st.integers(0, bits.size))
    stop = data.draw(st.integers(start, bits.size))
    array = BitArray(base=packed, size=bits.size, columns=columns, order=order)
    assert array.read(start, stop).tolist() == bits.reshape(-1)[start:stop].tolist()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, rows=st.integers(1, 20), columns=st.integers(1, 20), data=st.data())
def test_any_run_of_a_transposed_mask_is_that_of_the_transpose(seed, rows, columns, data):
    bits = np.random.default_rng(seed).random((rows, columns)) < 0.5
    array = TransposedArray(base=MemoryArray(np.packbits(bits)), rows=rows, columns=columns)
    start = data.draw(st.integers(0, bits.size))
    stop = data.draw(st.integers(start, bits.size))
    assert array.read(start, stop).tolist() == bits.T.reshape(-1)[start:stop].tolist()


def test_integers_have_no_negative_zero():
    values = inspect_values(np.array([-1, 0, 1], np.int8))
    assert values.nonzero.tolist() == [True, False, True]
    assert math.isclose(values.negative_zeros, 0)


def test_bfloat16_is_compared_by_its_bits():
    tiny = np.array([1], np.uint16).view(ml_dtypes.bfloat16)
    assert inspect_values(tiny).nonzero.all()
