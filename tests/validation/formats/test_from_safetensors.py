"""Single safetensors files: intact ones hold, any damage to weights or file is found."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sparse_cases import FLOATS, STORED, damaged, lawful, seeds

from maskpro_deploy.errors import FormatError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

TWO_FOUR = NMPattern(2, 4)


def save(folder, tensors):
    path = Path(folder) / "weights.safetensors"
    save_file(tensors, path)
    return path


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(STORED),
    pattern=st.sampled_from([NMPattern(1, 2), TWO_FOUR, NMPattern(1, 4), NMPattern(4, 8), NMPattern(8, 16)]),
    kind=st.sampled_from(["none", "filled", "erased", "nan"]),
    given_pattern=st.booleans(),
    seed=seeds,
)
def test_intact_files_hold_and_damaged_ones_do_not(dtype, pattern, kind, given_pattern, seed):
    rng = np.random.default_rng(seed)
    tensors = {f"layers.{i}.up_proj.weight": lawful(rng, (int(rng.integers(8, 20)), 64), 1, pattern, dtype) for i in range(3)}
    hurt = f"layers.{rng.integers(3)}.up_proj.weight"
    if kind != "none" and (kind != "nan" or dtype in FLOATS):
        tensors[hurt], _ = damaged(rng, tensors[hurt], kind)
    else:
        kind = "none"
    with tempfile.TemporaryDirectory() as folder:
        report = validate(save(folder, tensors), pattern if given_pattern else None)
    assert report.holds == (kind == "none"), report.verdict
    assert [t.name for t in report.failed] == ([] if kind == "none" else [hurt])
    assert report.pattern == pattern
    assert report.detected == (not given_pattern)


def test_embeddings_norms_and_heads_do_not_count(tmp_path):
    rng = np.random.default_rng(0)
    dense = np.ones((8, 8), np.float32)
    tensors = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"), dense)
    vectors = {"model.norm.weight": np.ones(8, np.float32), "a.bias": np.ones(8, np.float32)}
    tensors |= {**vectors, "up.weight": lawful(rng, (8, 8), 1, TWO_FOUR, np.dtype(np.float32))}
    report = validate(save(tmp_path, tensors))
    assert report.holds
    assert [t.name for t in report.tensors] == ["up.weight"]
    assert report.share == pytest.approx(64 / (4 * 64 + 16))


def test_a_file_without_a_checkable_weight_never_holds(tmp_path):
    report = validate(save(tmp_path, {"model.norm.weight": np.zeros(8, np.float32)}), TWO_FOUR)
    assert not report.holds
    assert "nothing" in report.verdict


def test_packed_weights_are_not_checked_and_not_passed(tmp_path):
    tensors = {"up.weight": np.zeros((8, 8), np.uint8), "experts.gate_up": np.zeros((2, 8, 8), np.float32)}
    report = validate(save(tmp_path, tensors), TWO_FOUR, at_most=True)
    assert not report.holds
    assert {u.name for u in report.unchecked} == set(tensors)


def test_gpt2_weights_are_transposed(tmp_path):
    weight = lawful(np.random.default_rng(0), (8, 12), 0, TWO_FOUR, np.dtype(np.float32))
    path = save(tmp_path, {"h.0.mlp.c_fc.weight": weight})
    assert not validate(path, TWO_FOUR).holds
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert validate(path, TWO_FOUR).holds


def test_a_partial_last_group_fails_with_its_own_reason(tmp_path):
    report = validate(save(tmp_path, {"up.weight": np.zeros((4, 6), np.float32)}), TWO_FOUR, at_most=True)
    assert not report.holds
    assert report.tensors[0].partial
    assert "no multiple of 4" in report.tensors[0].why()


def test_an_empty_weight_is_not_a_pass(tmp_path):
    assert not validate(save(tmp_path, {"up.weight": np.zeros((0, 8), np.float32)}), TWO_FOUR).holds


def test_negative_zeros_are_counted_but_hold(tmp_path):
    weight = lawful(np.random.default_rng(0), (4, 8), 1, TWO_FOUR, np.dtype(np.float16))
    weight[weight == 0] = -0.0
    report = validate(save(tmp_path, {"up.weight": weight}))
    assert report.holds
    assert report.tensors[0].negative_zeros == 16


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = save(folder, {"up.weight": np.zeros((4, 8), np.float32)})
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(FormatError, match=r"weights\.safetensors"):
            validate(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_read_but_never_crashes(data):
    with tempfile.TemporaryDirectory() as folder:
        path = save(folder, {"up.weight": np.zeros((4, 8), np.float32)})
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 4 * 32 - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
        with contextlib.suppress(FormatError):
            # the weights are all zero: whatever the header says now, it is not exactly 2:4
            assert not validate(path, TWO_FOUR).holds


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    class Shrinking:
        def update(self, done, total, note=""):
            path.write_bytes(path.read_bytes()[:2000])

        def close(self):
            pass

    rng = np.random.default_rng(0)
    path = save(tmp_path, {f"{i}.weight": lawful(rng, (64, 64), 1, TWO_FOUR, np.dtype(np.float32)) for i in range(4)})
    with pytest.raises(FormatError, match="ends early"):
        validate(path, progress=Shrinking())


@pytest.mark.parametrize("kind", ["none", "filled"])
def test_fp4_tensors_are_read_two_to_a_byte(tmp_path, kind):
    """The numpy side of the library cannot write fp4: the header is written by hand."""
    weight = lawful(np.random.default_rng(0), (6, 8), 1, TWO_FOUR, np.dtype(ml_dtypes.float4_e2m1fn))
    if kind == "filled":
        weight, _ = damaged(np.random.default_rng(1), weight, "filled")
    bits = weight.view(np.uint8).reshape(-1)
    entries = {"up.weight": {"dtype": "F4", "shape": [6, 8], "data_offsets": [0, 24]}}
    report = validate(header_with(tmp_path, entries, (bits[0::2] | bits[1::2] << 4).tobytes()))
    assert report.holds == (kind == "none")
    assert report.tensors[0].dtype == "f4"


@pytest.mark.parametrize(("tied", "head", "share"), [(False, True, 1 / 3), (True, False, 1 / 3), (False, False, 1.0)])
def test_multiply_adds_count_the_head_also_where_it_is_the_embedding(tmp_path, tied, head, share):
    weight = lawful(np.random.default_rng(0), (8, 8), 1, TWO_FOUR, np.dtype(np.float32))
    dense = np.ones((16, 8), np.float32)
    tensors = {"model.embed_tokens.weight": dense, "up.weight": weight, "norm.weight": np.ones(8, np.float32)}
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    report = validate(save(tmp_path, tensors | ({"lm_head.weight": dense} if head else {})), TWO_FOUR)
    assert report.share_of_multiply_adds == pytest.approx(share)


def header_with(tmp_path, entries, data):
    head = json.dumps(entries).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


@pytest.mark.parametrize("second", [(0, 128), (64, 192), (128, 1 << 62), (192, 320), (256, 128)])
def test_tensors_that_overlap_or_leave_the_file_are_refused(tmp_path, second):
    places = {"0.weight": (0, 128), "1.weight": second}
    entries = {name: {"dtype": "F32", "shape": [4, 8], "data_offsets": list(at)} for name, at in places.items()}
    with pytest.raises(FormatError, match=r"w\.safetensors"):
        validate(header_with(tmp_path, entries, bytes(256)))
