"""Channels that change places, from `learn` to every command that meets the result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_families import write_family
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stopper import Stopper

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, FormatError, InputError, Interrupted
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.learn import LearnConfig, LearnResult, learn_checkpoint
from maskpro_deploy.learn.model.paged_blocks import open_paged
from maskpro_deploy.learn.recovery.api import recover_checkpoint
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.runs.mask_repair import enforce_masks
from maskpro_deploy.runs.masks import apply_masks, compare_masks, describe_masks
from maskpro_deploy.torch_lm import TorchLM
from maskpro_deploy.validation import validate

PATTERN = NMPattern(2, 4)
CONFIG = LearnConfig(
    pattern=PATTERN, weights="frozen", steps=6, window=32, batch_tokens=64, calibration_tokens=128, heldout_tokens=256,
    evaluations=2, dtype="float32",
)  # fmt: skip
SHORT = {"window": 32, "batch_tokens": 64, "heldout_tokens": 256, "evaluations": 1, "dtype": "float32"}
TOKENS = np.arange(3, 35, dtype=np.int64)[None]


@pytest.fixture(scope="module")
def learned(dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LearnResult]:
    out = tmp_path_factory.mktemp("reordered") / "sparse"
    return out, learn_checkpoint(dense.folder, out, text, heldout, CONFIG, device="cpu")


def masks_of(folder: Path) -> MaskSet:
    return MaskSet.load(folder / MASKS_FILE)


def test_kept_weights_are_the_dense_ones_in_other_places(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    out, result = learned
    masks = masks_of(out)
    assert masks.transform.kinds() == {"mlp": 2, "heads": 2, "residual": 1}
    assert masks.sha256() == result.masks.sha256()
    for name, weight in load_file(out / "model.safetensors").items():
        moved = masks.transform.apply(name, dense.tensor(name))
        assert np.array_equal(weight, np.where(masks.mask(name), moved, 0) if name in masks else moved)
    assert masks.dense_sha256 == dense.dense_sha256(masks)  # of the dense model as it is


def test_the_record_says_what_changed_places(learned: tuple[Path, LearnResult]) -> None:
    out, result = learned
    record = json.loads((out / "learn.json").read_text())["transform"]
    assert {kind: facts["axes"] for kind, facts in record["reordered"].items()} == {"residual": 1, "mlp": 2, "heads": 2}
    assert record["logit_difference"] < 1e-4
    assert record["refused"] == {}
    assert "residual (1 axes" in dict(result.rows())["channels that changed places"]


def test_more_is_kept_than_without(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    losses = {}
    for transform in ("none", "auto"):
        config = replace(CONFIG, transform=transform, steps=0)
        result = learn_checkpoint(dense.folder, tmp_path / transform, text, heldout, config, device="cpu")
        losses[transform] = result.curve[0].heldout_loss
        assert bool(result.masks.transform) == (transform == "auto")
        assert result.dense_loss == pytest.approx(result.dense_loss)
    assert losses["auto"] < losses["none"]


def test_masks_alone_and_the_dense_model_make_the_same_checkpoint(
    learned: tuple[Path, LearnResult], dense: Checkpoint, tmp_path: Path
) -> None:
    out, _ = learned
    apply_masks(out / MASKS_FILE, str(dense.folder), tmp_path / "again")
    ours, again = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert ours.keys() == again.keys()
    assert all(np.array_equal(ours[name], again[name]) for name in ours)
    lm = TorchLM.open(dense.folder)
    lm.apply(masks_of(out))
    assert np.allclose(lm.logits(TOKENS), TorchLM.open(out).logits(TOKENS), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama, tied", "mixtral", "opt", "gemma3n_text"])
def test_other_families_keep_their_dense_weights_in_other_places(family: str, text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family(family, tmp_path / "dense"))
    config = replace(CONFIG, steps=1, evaluations=1)
    result = learn_checkpoint(dense.folder, tmp_path / "sparse", text, heldout, config, device="cpu")
    assert result.masks.transform
    apply_masks(tmp_path / "sparse" / MASKS_FILE, str(dense.folder), tmp_path / "again")
    ours, again = (load_file(tmp_path / name / "model.safetensors") for name in ("sparse", "again"))
    assert ours.keys() == again.keys()
    assert all(np.array_equal(ours[name], again[name]) for name in ours)
    moved = dense_in_new_places(dense, result, tmp_path / "moved")
    before, after = (TorchLM.open(folder).logits(TOKENS) for folder in (dense.folder, moved))
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def dense_in_new_places(dense: Checkpoint, result: LearnResult, out: Path) -> Path:
    """The dense checkpoint after the change of basis, and before its masks."""
    shutil.copytree(dense.folder, out)
    tensors = {name: result.masks.transform.apply(name, dense.tensor(name)) for name in dense.names}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1"}, "go together"),
        ({"transform": "[]"}, "damaged change of basis"),
        ({"transform": '{"model.norm.weight": [[0, "nothing"]]}'}, "do not fit together"),
    ],
)
def test_damaged_mask_files_are_refused(
    changes: dict[str, str], message: str, learned: tuple[Path, LearnResult], tmp_path: Path
) -> None:
    file = learned[0] / MASKS_FILE
    with safe_open(file, "np") as stored:
        metadata = stored.metadata() | changes
    save_file(load_file(file), tmp_path / MASKS_FILE, metadata=metadata)
    with pytest.raises(FormatError, match=message):
        MaskSet.load(tmp_path / MASKS_FILE)
    assert masks_of(learned[0]).transform  # and whole ones are read


def test_a_bundle_says_what_changed_places_and_is_proven(learned: tuple[Path, LearnResult], tmp_path: Path) -> None:
    export(learned[0], tmp_path / "bundle", ExportConfig())
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["source"]["transform"] == {"mlp": 2, "heads": 2, "residual": 1}
    assert validate(tmp_path / "bundle", PATTERN).holds
    assert validate(learned[0] / MASKS_FILE, PATTERN).holds


def test_enforced_masks_belong_to_the_weights_that_they_were_put_on(learned: tuple[Path, LearnResult], tmp_path: Path) -> None:
    out, _ = learned
    enforce_masks(str(out), None, tmp_path / "enforced")
    ours, enforced = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "enforced"))
    assert all(np.array_equal(ours[name], enforced[name]) for name in ours)
    assert not masks_of(tmp_path / "enforced").transform


def test_masks_of_other_orders_are_not_compared(learned: tuple[Path, LearnResult], tmp_path: Path) -> None:
    out, _ = learned
    assert describe_masks(out)["transform"] == {"mlp": 2, "heads": 2, "residual": 1}
    assert compare_masks(out, out)["groups_changed"] == 0
    other = replace(masks_of(out), transform=type(masks_of(out).transform)())
    other.save(tmp_path / MASKS_FILE)
    with pytest.raises(InputError, match="their groups have other members"):
        compare_masks(out, tmp_path)


def test_learning_goes_on_from_such_masks(
    learned: tuple[Path, LearnResult], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    out, first = learned
    config = replace(CONFIG, prior=f"file:{out}")
    second = learn_checkpoint(dense.folder, tmp_path / "second", text, heldout, config, device="cpu")
    assert second.masks.transform.sha256() == first.masks.transform.sha256()
    assert second.curve[0].heldout_loss == pytest.approx(min(p.heldout_loss for p in first.curve), abs=1e-5)
    with pytest.raises(ConfigError, match="--transform residual does not go with --prior"):
        replace(config, transform="residual")


@pytest.mark.parametrize("weights", ["frozen", "lora"])
def test_an_interrupted_run_ends_with_the_same_bits(
    weights: str, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = replace(CONFIG, weights=weights)
    whole = learn_checkpoint(dense.folder, tmp_path / "whole", text, heldout, config, device="cpu")
    with pytest.raises(Interrupted):
        learn_checkpoint(dense.folder, tmp_path / "out", text, heldout, config, device="cpu", progress=Stopper(3))
    resumed = learn_checkpoint(dense.folder, tmp_path / "out", text, heldout, config, device="cpu", resume=True)
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert resumed.summary()["transform"] == whole.summary()["transform"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["full", "lora", "block"])
def test_weights_recover_against_the_dense_model_as_it_is(
    method: str, learned: tuple[Path, LearnResult], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    out, first = learned
    config = RecoverConfig(method=method, steps=8, **SHORT)  # type: ignore[arg-type]
    result = recover_checkpoint(out, tmp_path / "recovered", text, heldout, config, teacher=str(dense.folder), device="cpu")
    assert result.curve[-1].moved > 0
    again = masks_of(tmp_path / "recovered")
    assert again.transform.sha256() == first.masks.transform.sha256()
    weights = load_file(tmp_path / "recovered" / "model.safetensors")
    assert all(np.array_equal(weights[name] != 0, again.mask(name) & (weights[name] != 0)) for name in again)


def test_a_dense_model_on_disk_is_brought_into_the_same_bases(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    transform = learned[1].masks.transform
    plain = open_paged(dense, torch.float32, "cpu")
    moved = open_paged(dense, torch.float32, "cpu", transform)
    tokens = torch.from_numpy(TOKENS)
    with torch.no_grad():
        ours, theirs = (model.compute_hidden(tokens, differentiable=False) for model in (moved, plain))
        assert torch.allclose(ours, theirs[..., torch.from_numpy(transform.bases["residual"][0]).long()], atol=1e-5)
        assert torch.allclose(moved.model(tokens).logits, plain.model(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("bad", ["rows", "residual,none", "auto,heads"])
def test_other_words_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="--transform"):
        replace(CONFIG, transform=bad)


def test_what_auto_stands_for() -> None:
    assert CONFIG.transforms == ("residual", "mlp", "heads")
    assert replace(CONFIG, transform="heads,residual").transforms == ("residual", "heads")
    assert replace(CONFIG, transform="none").transforms == ()
    for as_published in ({"estimator": "maskllm"}, {"prior": "none"}, {"transposable": True}):
        assert replace(CONFIG, **as_published).transforms == ()  # type: ignore[arg-type]


def test_bf16_weights_keep_their_digits(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    config = replace(CONFIG, dtype="bfloat16", weights="train", steps=2)
    out = tmp_path / "sparse"
    learn_checkpoint(dense.folder, out, text, heldout, config, device="cpu")
    masks, weights = masks_of(out), load_file(out / "model.safetensors")
    name = next(iter(masks))
    moved = masks.transform.apply(name, dense.tensor(name))
    kept = masks.mask(name)
    assert float(np.abs(weights[name] - moved)[kept].max()) < 0.01
    assert torch.tensor(weights[name]).ne(0).sum() == kept.sum()
