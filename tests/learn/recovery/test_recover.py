"""Recovery on a tiny model: masks stay to the bit, quality rises, resume gives the same bits, plain errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_cases import start_tiny
from safetensors.numpy import load_file, save_file
from stopper import Stopper

import maskpro_deploy
from maskpro_deploy.checkpoint import Checkpoint, apply_mask
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, Interrupted
from maskpro_deploy.learn import LearnConfig, RecoverConfig, learn_checkpoint, recover_checkpoint
from maskpro_deploy.learn.loop import TrainingLoop
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

PATTERN = NMPattern(2, 4)
SMALL: dict[str, Any] = {"window": 32, "batch_tokens": 128, "heldout_tokens": 512, "evaluations": 3, "dtype": "float32"}
CONFIG = RecoverConfig(steps=12, learning_rate=2e-3, objective="kl", calibration_tokens=128, **SMALL)
MASKS = LearnConfig(pattern=PATTERN, steps=0, prior="magnitude", transform="none", calibration_tokens=128, **SMALL)


@pytest.fixture(scope="module")
def dense_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model in a folder of its own, which tests may hide."""
    folder = tmp_path_factory.mktemp("dense") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def sparse(dense_folder: Path, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "one-shot"
    learn_checkpoint(dense_folder, out, text, heldout, MASKS, device="cpu")
    return out


@pytest.fixture(scope="module")
def recovered(sparse: Path, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recovered") / "out"
    recover_checkpoint(sparse, out, text, heldout, CONFIG, device="cpu")
    return out


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same_bits(a: Path, b: Path) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(one[n].tobytes() == other[n].tobytes() for n in one)


def test_masks_stay_and_what_they_drop_is_plus_zero(sparse: Path, recovered: Path) -> None:
    before, after = Checkpoint.open(sparse), Checkpoint.open(recovered)
    assert before.masks is not None
    assert after.masks is not None
    assert after.masks.sha256() == before.masks.sha256()
    for name in after.masks:
        weight, kept = after.tensor(name), after.masks.stored_mask(name)
        assert (weight[kept] != 0).all()
        assert not weight[~kept].view(np.uint32).any()
        assert (weight != before.tensor(name)).any()
    assert validate(recovered, PATTERN).holds


def test_only_what_is_trained_changes(sparse: Path, recovered: Path) -> None:
    masks = Checkpoint.open(sparse).masks
    before, after = tensors(sparse), tensors(recovered)
    assert masks is not None
    assert {name for name in before if not np.array_equal(before[name], after[name])} == set(masks)


def test_the_divergence_from_the_dense_model_falls(recovered: Path) -> None:
    (run,) = json.loads((recovered / "learn.json").read_text())["recovered"]
    losses = [point["sample_loss"] for point in run["curve"][1:]]
    assert losses[-1] < losses[0]
    assert run["heldout_perplexity"]["recovered"] <= run["heldout_perplexity"]["before"]


def test_the_record_says_what_is_true(sparse: Path, recovered: Path, dense_folder: Path) -> None:
    before, after = (json.loads((f / "learn.json").read_text()) for f in (sparse, recovered))
    dense, masks = Checkpoint.open(dense_folder), Checkpoint.open(recovered).masks
    assert masks is not None
    assert before["weights_changed"] is False
    assert after["weights_changed"] is True
    assert after["dense_sha256"] == before["dense_sha256"] == dense.dense_sha256(masks) == masks.dense_sha256
    assert after["dense"] == str(dense_folder.resolve())
    assert after["curve"] == before["curve"]  # how the masks came about is still there


def test_masks_and_weights_begin_with_other_windows(sparse: Path) -> None:
    """What masks were learned on says little about what they cost: the weights see it last."""
    trainer, _, _ = start_tiny(sparse)
    forward = TrainingLoop.order(trainer, 0)
    assert np.array_equal(trainer.order(0), forward[::-1])
    assert not set(trainer.choose_calibration(3)) & set(forward[:-3])


def test_a_recovered_model_can_be_recovered_again(recovered: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    recover_checkpoint(recovered, tmp_path / "again", text, heldout, replace(CONFIG, steps=2), device="cpu")
    runs = json.loads((tmp_path / "again" / "learn.json").read_text())["recovered"]
    assert [run["steps"] for run in runs] == [12, 2]
    assert validate(tmp_path / "again", PATTERN).holds


@pytest.mark.parametrize(("dtype", "train"), [("bfloat16", "weights"), ("float32", "all"), ("float32", "norms")])
def test_resume_comes_to_the_same_bits(dtype: str, train: str, sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=6, dtype=dtype, train=train, weight_decay=0.1)
    recover_checkpoint(sparse, tmp_path / "whole", text, heldout, config, device="cpu")
    with pytest.raises(Interrupted, match="after step 3"):
        recover_checkpoint(sparse, tmp_path / "parts", text, heldout, config, device="cpu", progress=Stopper(3))
    recover_checkpoint(sparse, tmp_path / "parts", text, heldout, config, device="cpu", resume=True)
    assert same_bits(tmp_path / "whole", tmp_path / "parts")
    assert validate(tmp_path / "whole", PATTERN).holds


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_without_steps_every_weight_keeps_its_bits(dtype: str, sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    recover_checkpoint(sparse, tmp_path / "out", text, heldout, replace(CONFIG, steps=0, dtype=dtype, train="all"), device="cpu")
    assert same_bits(sparse, tmp_path / "out")


def test_norms_alone_leave_every_matrix_as_it_is(sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    recover_checkpoint(sparse, tmp_path / "out", text, heldout, replace(CONFIG, train="norms"), device="cpu")
    before, after = tensors(sparse), tensors(tmp_path / "out")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all("norm" in name for name in changed)


def test_weights_of_another_tool_are_recovered(
    sparse: Path, dense_folder: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    """A folder without a mask file, whose kept weights another tool changed, as SparseGPT does."""
    foreign = tmp_path / "foreign"
    shutil.copytree(sparse, foreign)
    (foreign / MASKS_FILE).unlink()
    (foreign / "learn.json").unlink()
    changed = {n: np.where(x == 0, x, x * np.float32(1.01)) if x.ndim == 2 else x for n, x in tensors(foreign).items()}
    save_file(changed, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="do not say what they were made for"):
        recover_checkpoint(foreign, tmp_path / "out", text, heldout, CONFIG, device="cpu")
    recover_checkpoint(foreign, tmp_path / "out", text, heldout, CONFIG, teacher=str(dense_folder), device="cpu")
    masks = Checkpoint.open(tmp_path / "out").masks
    assert masks is not None
    assert masks.dense_sha256 == Checkpoint.open(dense_folder).dense_sha256(masks)
    assert validate(tmp_path / "out", PATTERN).holds


def test_the_library_call_does_what_the_command_does(
    sparse: Path, recovered: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    for name, given in (("text", text), ("heldout", heldout)):
        (tmp_path / f"{name}.txt").write_text("\n%%\n".join(given.documents), encoding="utf-8")
    settings: dict[str, Any] = {"steps": 2, "learning_rate": 1e-3, "objective": "ce", **SMALL, "calibration_tokens": 128}
    data = {"data": str(tmp_path / "text.txt"), "heldout": str(tmp_path / "heldout.txt")}
    result = maskpro_deploy.recover(sparse, data["data"], tmp_path / "out", heldout=data["heldout"], device="cpu", **settings)
    assert result.tokens == 2 * 128
    assert "dense" not in result.summary()["heldout_perplexity"]  # cross-entropy asks no teacher


def test_a_rate_at_which_it_diverges_names_the_step_and_writes_nothing(
    sparse: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match="step"):
        recover_checkpoint(sparse, tmp_path / "out", text, heldout, replace(CONFIG, learning_rate=1e30), device="cpu")
    assert not (tmp_path / "out").exists()


def test_the_dense_model_is_found_or_asked_for(
    sparse: Path, dense_folder: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    moved = dense_folder.with_name("elsewhere")
    dense_folder.rename(moved)
    try:
        with pytest.raises(InputError, match="--teacher"):
            recover_checkpoint(sparse, tmp_path / "out", text, heldout, replace(CONFIG, steps=1), device="cpu")
        recover_checkpoint(sparse, tmp_path / "a", text, heldout, replace(CONFIG, steps=1), teacher=str(moved), device="cpu")
        shutil.copytree(sparse, tmp_path / "near" / "sparse")
        shutil.copytree(moved, tmp_path / "near" / dense_folder.name)  # next to the sparse one, under the name that it gives
        recover_checkpoint(tmp_path / "near" / "sparse", tmp_path / "b", text, heldout, replace(CONFIG, steps=1), device="cpu")
    finally:
        moved.rename(dense_folder)
    assert same_bits(tmp_path / "a", tmp_path / "b")


def test_another_teacher_is_refused(
    sparse: Path, dense_folder: Path, other_tokenizer: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(dense_folder, other)
    weights = tensors(other)
    name = next(n for n in weights if n.endswith("q_proj.weight"))
    save_file({**weights, name: weights[name] * 2}, other / "model.safetensors", metadata={"format": "pt"})
    run = {"text": text, "heldout": heldout, "config": replace(CONFIG, steps=1), "device": "cpu"}
    with pytest.raises(InputError, match="other weights"):
        recover_checkpoint(sparse, tmp_path / "out", teacher=str(other), **run)  # type: ignore[arg-type]
    loose = {**run, "config": replace(CONFIG, steps=1, other_weights=True)}
    recover_checkpoint(sparse, tmp_path / "loose", teacher=str(other), **loose)  # type: ignore[arg-type]
    save_file({**weights, name: weights[name][:-4]}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="another model"):
        recover_checkpoint(sparse, tmp_path / "out", teacher=str(other), **run)  # type: ignore[arg-type]
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other_tokenizer / file, other / file)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="another tokenizer"):
        recover_checkpoint(sparse, tmp_path / "out", teacher=str(other), **run)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_refused(dense_folder: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its weights holds an N:M pattern"):
        recover_checkpoint(dense_folder, tmp_path / "out", text, heldout, CONFIG, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "--method guess"),
        ({"train": "some"}, "--train some"),
        ({"objective": "block"}, "--objective block"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"rank": 8}, "--rank belongs to --method lora"),
        ({"budget_s": 1.0, "steps": 3}, "--budget, --steps and --tokens"),
    ],
)
def test_bad_settings_are_refused_with_their_flag(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecoverConfig(**settings)


def test_pruned_weights_feel_nothing(sparse: Path) -> None:
    """What a mask drops is +0.0 in memory, too, so weight decay and momentum have nothing to move."""
    masks = Checkpoint.open(sparse).masks
    assert masks is not None
    name = next(iter(masks))
    assert (
        not torch.from_numpy(apply_mask(Checkpoint.open(sparse).tensor(name), masks.stored_mask(name)))
        .signbit()[torch.from_numpy(~masks.stored_mask(name))]
        .any()
    )
