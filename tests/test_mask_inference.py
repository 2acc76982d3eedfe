"""Masks inferred from weights: the masks that the weights were pruned with, strict, whatever the zeros look like."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from maskpro_deploy.checkpoint import Checkpoint, apply_mask
from maskpro_deploy.errors import InputError
from maskpro_deploy.mask_inference import GivenMasks, Inferred, check_origin, infer_masks, open_masks
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import USUAL_PATTERNS, NMPattern

TWO_FOUR = NMPattern(2, 4)
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


def write(folder: Path, **weights: np.ndarray) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return Checkpoint.open(folder)


def draw(seed: int, dtype: type = np.float32, shape: tuple[int, int] = (6, 64)) -> np.ndarray:
    """Values of both signs, none of them zero."""
    rng = np.random.default_rng(seed)
    return ((0.1 + rng.random(shape)) * rng.choice([-1, 1], shape)).astype(dtype)


def infer(folder: Path, pattern: NMPattern | None = None, **weights: np.ndarray) -> Inferred | None:
    return infer_masks(write(folder, **weights), dict.fromkeys(weights, 1), pattern)


@given(
    seed=st.integers(0, 9999),
    pattern=st.sampled_from([*USUAL_PATTERNS, NMPattern(3, 8)]),
    dtype=st.sampled_from(DTYPES),
    zero=st.sampled_from([0.0, -0.0]),
)
def test_the_masks_that_weights_were_pruned_with_come_back(seed, pattern, dtype, zero):
    weights = {name: draw(seed + i, dtype) for i, name in enumerate("abc")}
    masks = {name: pattern.top(np.random.default_rng(seed).random(w.shape)) for name, w in weights.items()}
    pruned = {name: np.where(masks[name], w, np.asarray(zero, dtype)) for name, w in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        found = infer(Path(folder), None if pattern in USUAL_PATTERNS else pattern, **pruned, dense=weights["a"])
    assert found is not None
    assert found.masks.sha256() == MaskSet.from_arrays(pattern, masks).sha256()
    assert (found.masks.dense_sha256, found.short, found.others) == ("", {}, ("dense",))


@given(seed=st.integers(0, 9999), pattern=st.sampled_from([TWO_FOUR, NMPattern(4, 8), NMPattern(3, 4)]))
def test_short_groups_keep_their_nonzeros_and_the_earliest_zeros(seed, pattern):
    rng = np.random.default_rng(seed)
    kept = pattern.top(rng.random((4, 8 * pattern.m))) & (rng.random((4, 8 * pattern.m)) < 0.9)
    with tempfile.TemporaryDirectory() as folder:
        found = infer(Path(folder), pattern, w=np.where(kept, draw(seed, shape=kept.shape), 0))
    assert found is not None
    expected, short = kept.reshape(-1, pattern.m).copy(), 0
    for group in expected:
        short += group.sum() < pattern.n
        for i in range(pattern.m):
            group[i] |= group.sum() < pattern.n
    np.testing.assert_array_equal(found.masks.mask("w").reshape(-1, pattern.m), expected)
    assert sum(found.short.values()) == short
    found.masks.check_strict("the masks")


@pytest.mark.parametrize("row", [0, 5])
def test_one_group_with_too_many_is_enough_for_a_no(tmp_path, row):
    weight = apply_mask(draw(0), TWO_FOUR.top(np.abs(draw(1))))
    broken = weight.copy()
    broken[row, 60:] = 1
    found = infer(tmp_path, a=weight, b=broken)
    assert found is not None
    assert (list(found.masks), found.others) == (["a"], ("b",))
    assert infer(tmp_path, b=broken) is None


def test_of_several_patterns_the_one_of_most_weights_then_the_finest(tmp_path):
    two = {name: apply_mask(draw(1), TWO_FOUR.top(draw(1))) for name in "ab"}
    four = apply_mask(draw(2), np.tile([True] * 4 + [False] * 4, (6, 8)))
    assert infer(tmp_path, **two).masks.pattern == TWO_FOUR  # they hold 4:8 and 8:16 too
    found = infer(tmp_path, **two, c=four)
    assert (found.masks.pattern, list(found.masks)) == (NMPattern(4, 8), ["a", "b", "c"])
    assert infer(tmp_path, TWO_FOUR, **two, c=four).others == ("c",)


def test_zeros_alone_hold_a_pattern_only_if_it_is_asked_for(tmp_path):
    zeros = np.zeros((4, 16), np.float32)
    assert infer(tmp_path, w=zeros) is None
    found = infer(tmp_path, TWO_FOUR, w=zeros)
    assert found is not None
    np.testing.assert_array_equal(found.masks.mask("w"), np.tile([True, True, False, False], (4, 4)))
    assert found.short == {"w": 16}


def test_a_dense_weight_is_left_at_its_first_row(tmp_path, monkeypatch):
    checkpoint = write(tmp_path, w=draw(0, shape=(512, 64)))
    monkeypatch.setattr(Checkpoint, "read_blocks", lambda *_: pytest.fail("the whole weight was read"))
    assert infer_masks(checkpoint, {"w": 1}) is None


def test_a_weight_that_is_stored_with_its_inputs_first_has_its_mask_the_other_way(tmp_path):
    kept = TWO_FOUR.top(draw(1))
    checkpoint = write(tmp_path, turned=apply_mask(draw(0), kept).T, dense=draw(2).T)
    found = infer_masks(checkpoint, {"turned": 0, "dense": 0})
    assert found is not None
    assert (list(found.masks), found.masks.transposed, found.others) == (["turned"], {"turned"}, ("dense",))
    np.testing.assert_array_equal(found.masks.mask("turned"), kept)
    found.masks.check_fits(checkpoint.shapes, "the masks", "the checkpoint")


def test_a_dimension_that_no_group_divides_holds_nothing(tmp_path):
    assert infer(tmp_path, w=np.eye(4, 7, dtype=np.float32)) is None
    assert infer(tmp_path, w=np.zeros((0, 8), np.float32)) is None


# -- whose masks they are -------------------------------------------------------------------------------------------------


def opened(folder: Path) -> GivenMasks:
    return open_masks(folder, "SPARSE", lambda checkpoint: dict.fromkeys(checkpoint.names, 1))


@pytest.mark.parametrize(("dense_dtype", "sparse_dtype"), [(np.float32, np.float16), (ml_dtypes.bfloat16, np.float32)])
def test_sparse_weights_belong_to_dense_ones_that_round_to_them(tmp_path, dense_dtype, sparse_dtype):
    weight = draw(0, dense_dtype)
    dense = write(tmp_path / "dense", w=weight)
    write(tmp_path / "sparse", w=apply_mask(weight.astype(sparse_dtype), TWO_FOUR.top(draw(1))))
    check_origin(opened(tmp_path / "sparse"), dense, "SPARSE", other_weights=False)


def test_updated_weights_belong_to_others_unless_that_is_wanted(tmp_path):
    weights = {"u": draw(0), "v": draw(1)}
    dense = write(tmp_path / "dense", **weights)
    pruned = {name: apply_mask(w, TWO_FOUR.top(w)) for name, w in weights.items()}
    pruned["v"][3] *= np.float32(1.001)
    write(tmp_path / "sparse", **pruned)
    with pytest.raises(InputError, match=r"1 of 2 layers differ where they are not zero, such as v\.\n.*--other-weights"):
        check_origin(opened(tmp_path / "sparse"), dense, "SPARSE", other_weights=False)
    check_origin(opened(tmp_path / "sparse"), dense, "SPARSE", other_weights=True)


def test_other_weights_still_have_to_fit(tmp_path):
    write(tmp_path / "sparse", w=apply_mask(draw(0), TWO_FOUR.top(draw(0))))
    other = write(tmp_path / "other", w=draw(0)[:3])
    with pytest.raises(InputError, match="do not belong to"):
        check_origin(opened(tmp_path / "sparse"), other, "SPARSE", other_weights=True)


def test_a_mask_file_without_a_hash_is_taken_with_a_word_about_it(tmp_path, caplog):
    dense = write(tmp_path / "dense", w=draw(0))
    MaskSet.from_arrays(TWO_FOUR, {"w": TWO_FOUR.top(draw(0))}).save(tmp_path / "m.safetensors")
    check_origin(opened(tmp_path / "m.safetensors"), dense, "MASKS", other_weights=False)
    assert "MASKS does not say which weights it was made for" in caplog.text


def test_a_folder_without_masks_or_sparse_weights_is_one_plain_error(tmp_path):
    write(tmp_path / "dense", w=draw(0))
    with pytest.raises(InputError, match=r"SPARSE has no masks.safetensors, and none of its weights holds an N:M pattern"):
        opened(tmp_path / "dense")
