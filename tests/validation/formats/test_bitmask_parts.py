"""`sparse-24-bitmask` and `sparse-bitmask`: the bitmask is the mask; what does not fit together is never passed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from packed_folders import compress
from safetensors.numpy import save_file
from sparse_cases import lawful

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import law, validate

TWO_FOUR = NMPattern(2, 4)
LAYER = "model.layers.0.mlp.up_proj"


def compressed(array, prefix=LAYER):
    """The three tensors of a weight, as compressed-tensors writes them."""
    return {prefix + name: value for name, value in compress(array).items()}


def weight(shape=(8, 12), dtype=np.float16):
    return lawful(np.random.default_rng(0), shape, 1, TWO_FOUR, np.dtype(dtype))


def judge(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return validate(folder / "model.safetensors", TWO_FOUR)


@pytest.fixture(params=[1, 1 << 17], ids=["smallest tiles", "one tile"], autouse=True)
def tiles(request, monkeypatch):
    monkeypatch.setattr(law, "_TILE", request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_a_compressed_weight_holds_in_its_full_shape(tmp_path, dtype):
    report = judge(tmp_path, {**compressed(weight(dtype=dtype)), "model.norm.weight": np.ones(5, np.float32)})
    assert report.holds
    found = report.tensors[0]
    assert (found.name, found.shape, found.axis, found.density) == (f"{LAYER}.weight", (8, 12), 1, 0.5)
    assert (report.num_parameters, report.multiply_adds) == (8 * 12 + 5, 8 * 12)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_bitmask_of_any_number_of_values_claims_nothing_and_is_judged(tmp_path, kept):
    pattern = NMPattern(kept, 4)
    parts = compress(lawful(np.random.default_rng(0), (8, 12), 1, pattern, np.dtype(np.float16)), free=True)
    save_file({LAYER + name: value for name, value in parts.items()}, tmp_path / "model.safetensors")
    report = validate(tmp_path / "model.safetensors")
    assert (report.holds, report.pattern) == ((True, pattern) if kept < 3 else (False, None))
    assert not report.unchecked
    assert validate(tmp_path / "model.safetensors", TWO_FOUR, at_most=True).holds == (kept < 3)


def test_in_a_folder_too(tmp_path):
    save_file(compressed(weight()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert validate(tmp_path, TWO_FOUR).holds


def test_a_kept_zero_is_short_and_a_nan_fails(tmp_path):
    tensors = compressed(weight())
    tensors[f"{LAYER}.compressed"][3, 2] = 0
    report = judge(tmp_path, tensors)
    assert report.holds
    assert report.tensors[0].short == 1
    tensors[f"{LAYER}.compressed"][3, 2] = np.nan
    report = judge(tmp_path, tensors)
    assert report.failed[0].not_finite == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_is_found_at_its_group(tmp_path, seed):
    tensors = compressed(weight())
    row, column = np.random.default_rng(seed).integers((8, 12))
    tensors[f"{LAYER}.bitmask"][row, column // 8] ^= 1 << column % 8
    report = judge(tmp_path, tensors)
    assert report.failed[0].bad_masks == 1
    assert report.failed[0].first == ((row, column - column % 4),)


@pytest.mark.parametrize("pattern", [None, TWO_FOUR, NMPattern(1, 4), NMPattern(3, 4)])
@pytest.mark.parametrize("bit", range(4))
def test_a_flipped_bit_is_found_whatever_is_asked_for(tmp_path, pattern, bit):
    tensors = compressed(weight((1, 4)))
    tensors[f"{LAYER}.bitmask"][0, 0] ^= 1 << bit
    save_file(tensors, tmp_path / "model.safetensors")
    report = validate(tmp_path / "model.safetensors", pattern, at_most=True)
    assert not report.holds
    assert "values are stored" in report.problems[0]


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("shape", np.array([8, 20], np.int64), "bitmask has shape"),
        ("shape", np.array([8, 12], np.float32), "no valid shape"),
        ("shape", np.array([-8, -12], np.int64), "no valid shape"),
        ("bitmask", np.zeros((8, 2), np.int8), "bitmask has shape"),
        ("compressed", np.ones((8, 5), np.float16), "has 40 values"),
        ("compressed", np.ones((8, 6), np.int32), "dtype I32"),
    ],
)
def test_parts_that_do_not_fit_together_are_not_passed(tmp_path, part, value, reason):
    report = judge(tmp_path, compressed(weight()) | {f"{LAYER}.{part}": value})
    assert not report.holds
    assert reason in report.unchecked[0].reason


def test_a_missing_shape_is_not_passed(tmp_path):
    tensors = compressed(weight())
    del tensors[f"{LAYER}.shape"]
    assert "no valid shape" in judge(tmp_path, tensors).unchecked[0].reason


@pytest.mark.parametrize("suffix", ["weight_packed", "qweight", "W_q", "B_24"])
def test_other_packed_layers_are_not_checked_and_not_passed(tmp_path, suffix):
    report = judge(tmp_path, {"a.up_proj.weight": weight(), f"b.up_proj.{suffix}": np.zeros((4, 4), np.int32)})
    assert not report.holds
    assert "packs" in report.unchecked[0].reason
