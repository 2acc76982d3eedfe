"""`masks infer` and `masks enforce`: a mask file from pruned weights, zeros put back, figures counted by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskpro_deploy.errors import CheckFailed, FormatError, InputError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.runs.mask_repair import enforce_masks, infer_mask_file, render_enforced, render_inferred
from maskpro_deploy.runs.masks import apply_masks, compare_masks
from maskpro_deploy.validation import validate

Q0, V1 = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"


def change(source: Path, out: Path, **weights: Any) -> Path:
    """A copy of a sparse folder without its masks, some weights replaced."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(MASKS_FILE, "learn.json"))
    file = out / "model.safetensors"
    save_file({**load_file(file), **weights}, file, metadata={"format": "pt"})
    return out


@pytest.fixture
def merged(tiny_sparse: Path, tmp_path: Path) -> Path:
    """The sparse tiny model with a low-rank delta merged into two of its layers."""
    weights, rng = load_file(tiny_sparse / "model.safetensors"), np.random.default_rng(0)

    def delta(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, 4)) @ rng.standard_normal((4, columns)) * 0.01).astype(np.float32)

    return change(tiny_sparse, tmp_path / "merged", **{name: weights[name] + delta(*weights[name].shape) for name in (Q0, V1)})


def test_the_masks_of_a_pruned_folder_come_back(tiny_sparse: Path, tmp_path: Path) -> None:
    own = MaskSet.load(tiny_sparse / MASKS_FILE)
    facts = infer_mask_file(str(change(tiny_sparse, tmp_path / "foreign")), tmp_path / "m.safetensors", None)
    written = MaskSet.load(tmp_path / "m.safetensors")
    assert (written.sha256(), written.dense_sha256) == (own.sha256(), "")
    assert (facts["sparsity"], facts["layers"], facts["short_groups"], facts["not_listed"]) == ("2:4", 14, 0, [])
    assert validate(tmp_path / "m.safetensors").holds


def test_inferred_masks_make_their_folder_a_sparse_checkpoint(tiny_sparse: Path, tmp_path: Path) -> None:
    kept = load_file(tiny_sparse / "model.safetensors")
    short = kept[Q0].copy()
    short[0, np.flatnonzero(short[0])[0]] = 0
    dense = np.ones_like(kept[V1])
    foreign = change(tiny_sparse, tmp_path / "foreign", **{Q0: short, V1: dense})
    assert not validate(foreign).holds
    facts = infer_mask_file(str(foreign), foreign / MASKS_FILE, None)
    assert (facts["short_groups_by_layer"], facts["not_listed"]) == ({Q0: 1}, [V1])
    report = validate(foreign)
    assert report.holds
    assert report.to_json()["short_groups"] == 1
    text = render_inferred(facts)
    assert f"not listed: 1 ({V1})" in text
    assert "fewer nonzeros: 1 of " in text


def test_nothing_is_inferred_from_a_dense_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="none of its 14 linear layers holds an N:M pattern; nothing was written"):
        infer_mask_file(str(tiny_checkpoint), tmp_path / "m.safetensors", None)
    with pytest.raises(CheckFailed, match="holds 1:4"):
        infer_mask_file(str(tiny_checkpoint), tmp_path / "m.safetensors", NMPattern(1, 4))
    with pytest.raises(InputError, match="is a folder"):
        infer_mask_file(str(tiny_checkpoint), tmp_path, None, force=True)
    assert not list(tmp_path.iterdir())


def test_enforced_masks_put_zeros_back_and_say_what_that_cost(merged: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    assert not validate(merged).holds
    facts = enforce_masks(str(merged), tiny_sparse, tmp_path / "out")
    masks, filled = MaskSet.load(tiny_sparse / MASKS_FILE), load_file(merged / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in filled.items():
        kept = masks.mask(name) if name in masks else True
        assert written[name].tobytes() == np.where(kept, weight, np.float32(0)).tobytes()
    lost = {name: filled[name][~masks.mask(name)].astype(np.float64) for name in masks}
    for name, values in lost.items():
        figures = facts["by_layer"][name]
        assert figures["weights_dropped"] == np.count_nonzero(values)
        assert figures["norm_dropped"] == pytest.approx(np.linalg.norm(values) / np.linalg.norm(filled[name]), rel=1e-6)
    assert facts["weights_dropped"] == sum(map(np.count_nonzero, lost.values()))
    assert {name for name, figures in facts["by_layer"].items() if figures["weights_dropped"]} == {Q0, V1}
    assert validate(tmp_path / "out").holds
    assert Q0 in render_enforced(facts)


def test_enforcing_is_applying_to_other_weights(merged: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    enforce_masks(str(merged), tiny_sparse / MASKS_FILE, tmp_path / "out")
    with pytest.raises(InputError, match=r"the hashes differ\.\n.*--other-weights"):
        apply_masks(tiny_sparse, str(merged), tmp_path / "again")
    apply_masks(tiny_sparse, str(merged), tmp_path / "again", other_weights=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    first, second = (MaskSet.load(tmp_path / name / MASKS_FILE) for name in ("out", "again"))
    assert (first.sha256(), first.dense_sha256) == (second.sha256(), second.dense_sha256)
    record = json.loads((tmp_path / "out" / "learn.json").read_text())
    made_for = MaskSet.load(tiny_sparse / MASKS_FILE).dense_sha256
    assert record["masks_made_for"] == made_for != record["dense_sha256"]
    # the weights that it was applied to are known now: the same masks go on them without the option
    apply_masks(tmp_path / "out", str(merged), tmp_path / "third")


def test_masks_of_the_folder_itself_are_the_default(merged: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no masks\.safetensors\.\n.*--masks"):
        enforce_masks(str(merged), None, tmp_path / "out")
    shutil.copy(tiny_sparse / MASKS_FILE, merged)
    assert enforce_masks(str(merged), None, tmp_path / "out")["layers"] == 14
    assert validate(tmp_path / "out").holds


def test_the_pruned_folder_of_another_tool_serves_as_masks(merged: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    foreign = change(tiny_sparse, tmp_path / "foreign")
    enforce_masks(str(merged), foreign, tmp_path / "out")
    assert MaskSet.load(tmp_path / "out" / MASKS_FILE).sha256() == MaskSet.load(tiny_sparse / MASKS_FILE).sha256()


def test_what_cannot_be_enforced_leaves_nothing(merged: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    masks = MaskSet.load(tiny_sparse / MASKS_FILE)
    before = sorted(path.name for path in tmp_path.iterdir())
    cases = {"shape": {Q0: masks.mask(Q0)[:4]}, "name": {"elsewhere.weight": masks.mask(Q0)}}
    for arrays in cases.values():
        MaskSet.from_arrays(masks.pattern, arrays).save(tmp_path / "m.safetensors")
        with pytest.raises(InputError, match="do not belong to"):
            enforce_masks(str(merged), tmp_path / "m.safetensors", tmp_path / "out")
    (tmp_path / "m.safetensors").unlink()
    with pytest.raises(InputError, match="would replace"):
        enforce_masks(str(merged), tiny_sparse, merged, force=True)
    weight = load_file(merged / "model.safetensors")[Q0]
    weight[0, 0] = np.nan
    broken = change(merged, tmp_path / "broken", **{Q0: weight})
    with pytest.raises(FormatError, match="NaN or infinite"):
        enforce_masks(str(broken), tiny_sparse, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "broken"])


def test_weights_that_are_stored_with_their_inputs_first_get_their_zeros_back(tmp_path: Path) -> None:
    name, rng = "h.0.mlp.c_fc.weight", np.random.default_rng(0)
    weight, mask = rng.standard_normal((16, 24)).astype(np.float32), NMPattern(2, 4).top(rng.random((24, 16)))
    for folder, values in (("pruned", np.where(mask.T, weight, np.float32(0))), ("merged", weight)):
        (tmp_path / folder).mkdir()
        save_file({name: values}, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    infer_mask_file(str(tmp_path / "pruned"), tmp_path / "m.safetensors", None)
    assert compare_masks(tmp_path / "m.safetensors", tmp_path / "m.safetensors")["groups_changed"] == 0
    facts = enforce_masks(str(tmp_path / "merged"), tmp_path / "m.safetensors", tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out/model.safetensors")[name], np.where(mask.T, weight, 0))
    assert facts["norm_dropped"] == pytest.approx(np.linalg.norm(weight[~mask.T]) / np.linalg.norm(weight), rel=1e-6)
    assert validate(tmp_path / "out").holds
