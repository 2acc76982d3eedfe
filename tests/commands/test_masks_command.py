"""`masks info|diff|apply|infer|enforce` on real files, and one plain error for each wrong one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny_model import write_tiny

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import InputError, PatternError
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern


def run(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(cli, ["masks", *map(str, words), "--json"], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def failing(*words: object) -> None:
    CliRunner().invoke(cli, ["masks", *map(str, words)], catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def masks(tiny_sparse: Path) -> MaskSet:
    return MaskSet.load(tiny_sparse / "masks.safetensors")


def changed(masks: MaskSet, kind: str) -> MaskSet:
    """The same masks, but every group of one kind of layer has another one."""
    arrays = {n: ~masks.mask(n) if f".{kind}." in n else masks.mask(n) for n in masks}
    return MaskSet.from_arrays(masks.pattern, arrays, masks.dense_sha256)


def test_info_says_what_is_in_the_file(tiny_sparse: Path, masks: MaskSet) -> None:
    found = run("info", tiny_sparse)
    assert (found["sparsity"], found["layers"], found["weights"]) == ("2:4", 14, masks.num_weights)
    assert found["masks_sha256"] == masks.sha256()
    assert found["dense_sha256"] == masks.dense_sha256
    assert found["not_strict"] == []
    kinds = found["kinds"]
    assert isinstance(kinds, dict)
    assert kinds["up_proj"] == {"layers": 2, "weights": 2 * 64 * 32}


def test_info_says_whether_the_transposes_hold_too(tmp_path: Path) -> None:
    half = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), dtype=bool))
    for claim in (True, False):
        path = tmp_path / f"{claim}.safetensors"
        MaskSet.from_arrays(NMPattern(2, 4), {"a.weight": half}, transposable=claim).save(path)
        assert run("info", path)["transposable"] is claim
        shown = CliRunner().invoke(cli, ["masks", "info", str(path)]).stdout
        assert ("2:4 along both axes (transposable)" in shown) is claim


def test_a_file_is_no_different_from_a_file_of_itself(tiny_sparse: Path) -> None:
    assert run("diff", tiny_sparse, tiny_sparse / "masks.safetensors")["groups_changed"] == 0


def test_diff_counts_groups_by_kind_of_layer(tiny_sparse: Path, masks: MaskSet, tmp_path: Path) -> None:
    other = changed(masks, "q_proj")
    other.save(tmp_path / "other.safetensors")
    found = run("diff", tiny_sparse, tmp_path / "other.safetensors")
    by_kind = found["groups_changed_by_kind"]
    assert isinstance(by_kind, dict)
    assert by_kind["q_proj"] == 1.0
    assert sum(by_kind.values()) == 1.0
    assert found["groups_changed"] == pytest.approx(2 * 32 * 32 / masks.num_weights)
    assert found["same_dense_weights"] is True


def test_diff_names_layers_that_only_one_has(tiny_sparse: Path, masks: MaskSet, tmp_path: Path) -> None:
    names = [n for n in masks if "mlp" in n]
    masks.only(names).save(tmp_path / "mlp.safetensors")
    found = run("diff", tiny_sparse, tmp_path / "mlp.safetensors")
    assert found["layers"] == 6
    assert found["only_in_first"] == [n for n in masks if n not in names]


def test_diff_refuses_what_cannot_be_compared(tiny_sparse: Path, masks: MaskSet, tmp_path: Path) -> None:
    pattern = NMPattern(1, 4)
    name = next(iter(masks))
    MaskSet.from_arrays(pattern, {name: pattern.top(np.ones(masks.shapes[name]))}).save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=rf"holds 2:4 in {name}, .* holds 1:4"):
        failing("diff", tiny_sparse, tmp_path / "a.safetensors")
    MaskSet.from_arrays(masks.pattern, {"a.weight": masks.pattern.top(np.ones((2, 4)))}).save(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no layer in common"):
        failing("diff", tiny_sparse, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        failing("diff", tiny_sparse, tmp_path / "none.safetensors")


def test_apply_gives_the_checkpoint_that_the_masks_came_from(
    tiny_checkpoint: Path, tiny_sparse: Path, masks: MaskSet, tmp_path: Path
) -> None:
    run("apply", tiny_sparse, "--model", tiny_checkpoint, "--out", tmp_path / "again")
    again, first = load_file(tmp_path / "again" / "model.safetensors"), load_file(tiny_sparse / "model.safetensors")
    assert all(again[n].tobytes() == first[n].tobytes() for n in first)
    assert MaskSet.load(tmp_path / "again" / "masks.safetensors").sha256() == masks.sha256()
    assert json.loads((tmp_path / "again" / "learn.json").read_text())["method"] == "masks apply"


def test_apply_refuses_other_weights_and_leaves_nothing(tiny_checkpoint: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"the hashes differ\.\n.*--other-weights"):
        failing("apply", tiny_sparse, "--model", other, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="sparse checkpoint already"):
        failing("apply", tiny_sparse, "--model", tiny_sparse, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        failing("apply", tiny_sparse, "--model", tiny_checkpoint, "--out", other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_apply_to_other_weights_records_their_hash(tiny_sparse: Path, masks: MaskSet, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", seed=1)
    run("apply", tiny_sparse, "--model", other, "--out", tmp_path / "out", "--other-weights")
    written, dense = MaskSet.load(tmp_path / "out" / "masks.safetensors"), Checkpoint.open(other)
    assert written.sha256() == masks.sha256()
    assert written.dense_sha256 == dense.dense_sha256(masks) != masks.dense_sha256
    assert json.loads((tmp_path / "out" / "learn.json").read_text())["dense_sha256"] == written.dense_sha256


def test_apply_takes_a_pruned_folder_without_masks(
    tiny_checkpoint: Path, tiny_sparse: Path, masks: MaskSet, tmp_path: Path
) -> None:
    foreign = shutil.copytree(tiny_sparse, tmp_path / "foreign", ignore=shutil.ignore_patterns("masks.safetensors"))
    run("apply", foreign, "--model", tiny_checkpoint, "--out", tmp_path / "out")
    written = MaskSet.load(tmp_path / "out" / "masks.safetensors")
    assert (written.sha256(), written.dense_sha256) == (masks.sha256(), masks.dense_sha256)
    with pytest.raises(InputError, match=r"14 of 14 layers differ where they are not zero.*\n.*--other-weights"):
        failing("apply", foreign, "--model", write_tiny(tmp_path / "other", seed=1), "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_infer_and_enforce_print_what_they_did(tiny_checkpoint: Path, tiny_sparse: Path, masks: MaskSet, tmp_path: Path) -> None:
    file, out = tmp_path / "m.safetensors", tmp_path / "out"
    assert run("infer", tiny_sparse, "--out", file)["masks_sha256"] == masks.sha256()
    with pytest.raises(InputError, match="--force"):
        failing("infer", tiny_sparse, "--out", file)
    assert run("infer", tiny_sparse, "--out", file, "--sparsity", "4:8", "--force")["sparsity"] == "4:8"
    found = run("enforce", tiny_checkpoint, "--masks", tiny_sparse, "--out", out)
    assert found["weights_dropped"] == masks.num_weights // 2
    assert (out / "model.safetensors").read_bytes() == (tiny_sparse / "model.safetensors").read_bytes()
    done = CliRunner().invoke(cli, ["masks", "infer", str(tiny_sparse), "--out", str(tmp_path / "again")])
    assert "layers that hold 2:4: 14" in done.output
    done = CliRunner().invoke(cli, ["masks", "enforce", str(tiny_checkpoint), "--masks", str(file), "--out", str(tmp_path / "o")])
    assert "all 14 layers" in done.output


def test_apply_refuses_masks_of_another_shape_or_pattern(
    tiny_checkpoint: Path, tiny_sparse: Path, masks: MaskSet, tmp_path: Path
) -> None:
    name = next(iter(masks))
    MaskSet.from_arrays(masks.pattern, {name: masks.mask(name)[:4]}).save(tmp_path / "short.safetensors")
    with pytest.raises(InputError, match="do not belong to"):
        failing("apply", tmp_path / "short.safetensors", "--model", tiny_checkpoint, "--out", tmp_path / "out")
    whole = tiny_sparse / "masks.safetensors"
    from safetensors import safe_open

    with safe_open(whole, "np") as file:
        metadata = file.metadata()
    bits = load_file(whole)
    bits[name] = bits[name] | 0xFF
    save_file(bits, tmp_path / "full.safetensors", metadata=metadata)
    assert run("info", tmp_path / "full.safetensors")["not_strict"] == [name]
    with pytest.raises(PatternError, match="does not keep exactly 2 of every 4"):
        failing("apply", tmp_path / "full.safetensors", "--model", tiny_checkpoint, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_text_output_is_readable(tiny_sparse: Path) -> None:
    done = CliRunner().invoke(cli, ["masks", "info", str(tiny_sparse)])
    assert "pattern" in done.output
    assert "up_proj" in done.output
    done = CliRunner().invoke(cli, ["masks", "diff", str(tiny_sparse), str(tiny_sparse)])
    assert "0.00 %" in done.output
