"""Checkpoint folders: the listed weights against their masks, shards, and what is not listed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copy(tiny_sparse, tmp_path):
    """A sparse checkpoint that a test may damage."""
    return shutil.copytree(tiny_sparse, tmp_path / "sparse")


def change(folder, name, at, value, file="model.safetensors"):
    tensors = load_file(folder / file)
    tensors[name][at] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})


def test_a_sparse_checkpoint_holds(tiny_sparse):
    report = validate(tiny_sparse)
    assert report.holds
    assert report.pattern == NMPattern(2, 4)
    assert len(report.required) == 14
    assert all(t.mask_known for t in report.required)


def test_a_dense_checkpoint_does_not(tiny_checkpoint):
    report = validate(tiny_checkpoint)
    assert not report.holds
    assert len(report.failed) == 14
    assert report.pattern is None
    assert not validate(tiny_checkpoint, NMPattern(2, 4)).holds


@pytest.mark.parametrize("seed", range(8))
def test_a_value_where_the_mask_has_none_is_found(copy, seed):
    mask = MaskSet.load(copy / MASKS_FILE).mask(UP)
    places = np.argwhere(~mask)
    at = tuple(places[np.random.default_rng(seed).integers(len(places))])
    change(copy, UP, at, 1e-30)
    report = validate(copy)
    assert [t.name for t in report.failed] == [UP]
    assert (report.failed[0].violations, report.failed[0].outside) == (1, 1)
    assert "mask has none" in report.failed[0].why()


def test_a_weight_moved_off_its_mask_is_found_although_the_counts_are_right(copy):
    weight = load_file(copy / "model.safetensors")[UP].copy()
    group = weight[3, :4]
    kept, free = np.flatnonzero(group)[0], np.flatnonzero(group == 0)[0]
    change(copy, UP, (3, kept), 0.0)
    change(copy, UP, (3, free), 1.0)
    assert not validate(copy).holds
    (copy / MASKS_FILE).unlink()
    assert validate(copy).holds  # without the mask nothing is wrong


def test_a_kept_weight_that_is_zero_is_short_not_a_violation(copy):
    at = tuple(np.argwhere(MaskSet.load(copy / MASKS_FILE).mask(UP))[5])
    change(copy, UP, at, 0.0)
    report = validate(copy)
    assert report.holds
    assert sum(t.short for t in report.required) == 1
    (copy / MASKS_FILE).unlink()
    blind = validate(copy, NMPattern(2, 4))
    assert not blind.holds
    assert "--at-most" in blind.verdict
    assert validate(copy, NMPattern(2, 4), at_most=True).holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail(copy, value):
    at = tuple(np.argwhere(MaskSet.load(copy / MASKS_FILE).mask(UP))[0])
    change(copy, UP, at, value)
    report = validate(copy)
    assert not report.holds
    assert report.failed[0].not_finite == 1


def test_all_requires_layers_that_are_not_listed(copy):
    masks = MaskSet.load(copy / MASKS_FILE)
    fewer = MaskSet(
        pattern=masks.pattern,
        packed={n: masks.packed[n] for n in masks if n != UP},
        shapes={n: masks.shapes[n] for n in masks if n != UP},
    )
    fewer.save(copy / MASKS_FILE)
    change(copy, UP, ..., 1.0)
    assert validate(copy).holds
    report = validate(copy, require="all")
    assert [t.name for t in report.failed] == [UP]


def test_masks_of_missing_weights_and_other_shapes_are_contradictions(copy):
    masks = MaskSet.load(copy / MASKS_FILE)
    packed = {**masks.packed, "gone.weight": masks.packed[UP]}
    shapes = {**masks.shapes, "gone.weight": masks.shapes[UP], UP: masks.shapes[UP][::-1]}
    MaskSet(pattern=masks.pattern, packed=packed, shapes=shapes).save(copy / MASKS_FILE)
    report = validate(copy)
    assert not report.holds
    assert len(report.problems) == 2
    assert any("gone.weight" in p for p in report.problems)


def test_shards_are_all_read(copy):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: tensors[n] for n in part}, copy / file)
    (copy / "model.safetensors").unlink()
    weight_map = {n: f for f, part in halves.items() for n in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert validate(copy).holds
    change(copy, UP, (0, slice(0, 4)), 1.0, file=weight_map[UP])
    assert [t.name for t in validate(copy).failed] == [UP]


def test_a_shard_outside_the_index_is_checked_and_named(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"model.layers.2.mlp.up_proj.weight": np.ones((4, 8), np.float32)}, copy / "extra.safetensors")
    report = validate(copy, require="all")
    assert [t.name for t in report.failed] == ["model.layers.2.mlp.up_proj.weight"]
    assert report.notes[0].startswith("extra.safetensors is not in model.safetensors.index.json")


def test_a_truncated_shard_is_an_error(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model\.safetensors is not a complete"):
        validate(copy)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        validate(tmp_path)
