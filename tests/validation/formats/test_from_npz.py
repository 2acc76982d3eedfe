"""MaskLLM's mask files: bits alone, shapes from a checkpoint beside them, traps refused."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskpro_deploy.errors import FormatError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import law, validate

TWO_FOUR = NMPattern(2, 4)
NAME = "model.layers.0.mlp.up_proj.weight"


def write(folder, masks, **others):
    path = folder / "mask_compressed.npz"
    np.savez_compressed(path, **{f"{n}.mask": np.packbits(m) for n, m in masks.items()}, **others)
    return path


def mask_of(shape=(16, 24), pattern=TWO_FOUR, seed=0):
    return pattern.top(np.random.default_rng(seed).random(shape))


def test_a_mask_file_holds_along_its_flat_order_and_says_so(tmp_path):
    report = validate(write(tmp_path, {NAME: mask_of(), "b.weight": mask_of(seed=1)}))
    assert report.holds
    assert (report.kind, report.pattern, report.detected) == ("maskllm masks", TWO_FOUR, True)
    assert [t.name for t in report.tensors] == ["b.weight", NAME]
    assert report.tensors[0].shape == (384,)
    assert any("flat order" in note for note in report.notes)


def test_a_checkpoint_beside_it_gives_shapes(tmp_path):
    path = write(tmp_path, {NAME: mask_of((3, 4))})  # 12 bits: the padding is no group
    assert not validate(path, TWO_FOUR).holds
    (tmp_path / "config.json").write_text("{}")
    save_file({NAME: np.zeros((3, 4), np.float16)}, tmp_path / "model.safetensors")
    report = validate(path, TWO_FOUR)
    assert report.holds
    assert (report.tensors[0].shape, report.tensors[0].axis, len(report.notes)) == ((3, 4), 1, 1)


def test_a_mask_of_another_size_than_the_checkpoints_weight_is_not_passed(tmp_path):
    path = write(tmp_path, {NAME: mask_of(), "good.weight": mask_of()})
    (tmp_path / "config.json").write_text("{}")
    save_file({NAME: np.zeros((16, 32), np.float16)}, tmp_path / "model.safetensors")
    report = validate(path, TWO_FOUR)
    assert not report.holds
    assert "384 bits, the weight [16, 32] has 512" in report.unchecked[0].reason


@pytest.mark.parametrize("tile", [1, 50, 1 << 17])
@pytest.mark.parametrize("pattern", [TWO_FOUR, NMPattern(3, 5), NMPattern(5, 32)])
def test_pieces_of_any_size_are_unpacked_in_order(tmp_path, tile, pattern, monkeypatch):
    monkeypatch.setattr(law, "_TILE", tile)
    mask = mask_of((8, pattern.m * 5), pattern)
    assert validate(write(tmp_path, {NAME: mask}), pattern).holds
    mask[5, 7] ^= True
    found = validate(write(tmp_path, {NAME: mask}), pattern).tensors[0]
    flat = 5 * pattern.m * 5 + 7
    assert (found.violations, found.first) == (1, ((flat - flat % pattern.m,),))


def test_an_empty_archive_is_no_pass(tmp_path):
    assert not validate(write(tmp_path, {}), TWO_FOUR).holds


def test_an_archive_that_would_grow_beyond_reason_is_not_unpacked(tmp_path):
    path = tmp_path / "mask_compressed.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}.mask.npy", bytes(1 << 27))
    with pytest.raises(FormatError, match="it is not unpacked"):
        validate(path)


def test_a_pickle_inside_is_refused(tmp_path):
    with pytest.raises(FormatError, match="is a pickle"):
        validate(write(tmp_path, {}, x=np.array([{}], dtype=object)))


@pytest.mark.parametrize("other", [np.ones((2, 2), np.uint8), np.ones(4, np.float32), np.ones(4, np.bool_)])
def test_arrays_of_another_kind_are_refused(tmp_path, other):
    with pytest.raises(FormatError, match="is not a packed mask"):
        validate(write(tmp_path, {NAME: mask_of()}, x=other))


def test_members_of_one_name_are_refused(tmp_path):
    path = write(tmp_path, {NAME: mask_of()})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(FormatError, match="two arrays of one name"):
        validate(path)


def test_an_archive_without_an_array_inside_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("manifest.json", json.dumps({}))
    with pytest.raises(FormatError, match="not a complete npz file"):
        validate(tmp_path / "x.npz")
