from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_llama import inverse_frequencies

from maskpro_deploy.exporters.graph.rope import RopeConfig, compute_frequencies, make_tables


@given(st.sampled_from(["default", "linear", "llama3"]), st.floats(10, 1e6), st.integers(1, 64), st.floats(1, 32))
def test_frequencies_agree_with_the_case_by_case_definition(kind, theta, half, factor):
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = RopeConfig(kind=kind, theta=theta, factor=factor, original_length=512, **bands)
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": 512, **bands}
    expected = inverse_frequencies({"rope_theta": theta, "rope_scaling": scaling}, 2 * half)
    np.testing.assert_allclose(compute_frequencies(rope, 2 * half), expected, rtol=1e-12)


def test_tables_hold_one_row_a_position():
    cos, sin = (table[:] for table in make_tables(RopeConfig(kind="default", theta=1e4), 8, 5))
    assert cos.shape == sin.shape == (5, 4)
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    assert sin[3, 0] == pytest.approx(np.sin(3.0))


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_rows_read_in_parts_are_those_of_the_whole(length, start, stop):
    rope = RopeConfig(
        kind="longrope", theta=1e4, original_length=16, short_factor=(1.0, 2.0), long_factor=(3.0, 5.0), attention_factor=1.2
    )
    for table, function in zip(make_tables(rope, 4, length), (np.cos, np.sin), strict=True):
        positions = [*range(min(length, 16)), *range(length)] if length > 16 else [*range(length)]
        short, long = ((1.0, 1e-2) / np.asarray(factors) for factors in ((1.0, 2.0), (3.0, 5.0)))
        whole = [1.2 * function(p * (short if row < 16 or length <= 16 else long)) for row, p in enumerate(positions)]
        assert table.shape == (len(positions), 2)
        np.testing.assert_allclose(table[start:stop], np.asarray(whole)[start:stop].reshape(-1, 2), rtol=1e-12, atol=1e-15)
