"""`learn --transposable` from end to end: masks that hold along both axes with every way to treat weights, resume, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_families import write_family
from safetensors.numpy import load_file
from stopper import Stopper
from test_learn import run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, InputError, Interrupted
from maskpro_deploy.learn import LearnConfig, LearnResult, RecoverConfig, learn_masks, recover_checkpoint
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

TWO_FOUR = NMPattern(2, 4)
CONFIG = LearnConfig(
    pattern=TWO_FOUR, transposable=True, weights="frozen", steps=12, window=32, batch_tokens=128, calibration_tokens=128,
    heldout_tokens=512, evaluations=3, dtype="float32", learning_rate=0.1,
)  # fmt: skip
WAYS = pytest.mark.parametrize(
    "settings",
    [
        {}, {"weights": "train"}, {"weights": "lora", "rank": 4}, {"temperature": 0.5}, {"objective": "block"},
        {"prior": "sparsegpt", "prior_update": True, "weights": "lora"}, {"dtype": "bfloat16", "weights": "train"},
        {"pattern": NMPattern(1, 4)},
    ],
    ids=lambda s: "-".join(map(str, s.values())) or "frozen",
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LearnResult]:
    out = tmp_path_factory.mktemp("transposable") / "sparse"
    return out, run(dense, out, text, heldout, replace(CONFIG, steps=60))


@WAYS
def test_weights_and_their_transposes_hold_whatever_moves(
    settings: dict[str, Any], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **settings)
    measure = Trainer.measure_movement

    def look(self: Trainer) -> dict[str, float]:
        for site in self.masked:
            kept = unpack(site.kept, site.weight.numel()).view(site.weight.shape)
            assert config.pattern.holds_both_ways(kept.numpy())
            assert site.kept.equal(site.argmax())
            assert torch.equal(site.masked_weight() != 0, kept & (site.weight != 0))
        return measure(self)

    monkeypatch.setattr(Trainer, "measure_movement", look)
    result = run(dense, tmp_path / "out", text, heldout, config)
    assert result.masks.transposable
    assert result.moved_by == "torch"
    assert max(p.flips for p in result.curve) > 0
    proof = validate(tmp_path / "out")
    assert (proof.holds, proof.transposable, len(proof.required)) == (True, True, 14)
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        if name in result.masks:
            assert config.pattern.holds_both_ways(weight != 0)


def test_it_learns(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    out, result = learned
    assert min(p.heldout_loss for p in result.curve) < result.curve[0].heldout_loss - 0.05
    assert result.curve[0].flips == 0
    record = json.loads((out / "learn.json").read_text())
    assert record["settings"]["transposable"] is True
    for name, weight in load_file(out / "model.safetensors").items():
        expected = np.where(result.masks.mask(name), dense.tensor(name), 0) if name in result.masks else dense.tensor(name)
        assert np.array_equal(weight, expected)


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "train"}, {"weights": "lora", "rank": 4}, {"temperature": 0.5}], ids=lambda s: str(s or "frozen")
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    settings: dict[str, Any], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = replace(CONFIG, **settings)
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted, match="--resume"):
        run(dense, tmp_path / "part", text, heldout, config, progress=Stopper(at=5))
    with pytest.raises(InputError):
        run(dense, tmp_path / "part", text, heldout, replace(config, transposable=False), resume=True)
    resumed = run(dense, tmp_path / "part", text, heldout, config, resume=True)
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert resumed.prior_masks.sha256() == whole.prior_masks.sha256()
    assert [p.heldout_loss for p in resumed.curve] == [p.heldout_loss for p in whole.curve]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pattern", [NMPattern(4, 8), TWO_FOUR], ids=str)
def test_without_a_step_the_mask_is_the_prior_itself(
    pattern: NMPattern, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = LearnConfig(
        pattern=pattern, transposable=True, steps=0, window=32, calibration_tokens=128, heldout_tokens=512, dtype="float32"
    )
    result = run(dense, tmp_path / "out", text, heldout, config)
    assert result.masks.sha256() == result.prior_masks.sha256()
    assert validate(tmp_path / "out", pattern, transposable=True).holds


def test_it_starts_from_the_masks_of_a_file_only_if_these_are_transposable(
    learned: tuple[Path, LearnResult], tiny_sparse: Path, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    out, result = learned
    again = run(dense, tmp_path / "again", text, heldout, replace(CONFIG, prior=f"file:{out}", steps=0))
    assert again.masks.sha256() == result.masks.sha256()
    with pytest.raises(InputError, match="masks that are not transposable, such as that of model"):
        run(dense, tmp_path / "no", text, heldout, replace(CONFIG, prior=f"file:{tiny_sparse}"))


def test_weights_that_are_stored_in_out_hold_as_well(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("gpt2", tmp_path / "m"))
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=2, prior="magnitude"))
    assert result.masks.transposed == set(result.masks)
    proof = validate(tmp_path / "out")
    assert (proof.holds, proof.transposable) == (True, True)
    assert {t.axis for t in proof.tensors if t.required} == {0}


def test_weights_that_are_trained_under_such_masks_keep_the_claim(
    learned: tuple[Path, LearnResult], text: Text, heldout: Text, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"window": 32, "batch_tokens": 128, "heldout_tokens": 512, "dtype": "float32"}
    recover_checkpoint(learned[0], tmp_path / "out", text, heldout, RecoverConfig(steps=2, **settings), device="cpu")
    proof = validate(tmp_path / "out")
    assert (proof.holds, proof.transposable) == (True, True)


def test_learn_masks_says_so_too(dense: Checkpoint, text: Text, heldout: Text) -> None:
    masks = learn_masks(dense.folder, text, replace(CONFIG, steps=1), heldout=heldout)
    assert isinstance(masks, MaskSet)
    assert masks.transposable
    assert not list(masks.find_broken())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "maskpro"}, "--transposable is learned with --estimator pathwise, not with maskpro"),
        ({"estimator": "maskpro-paper"}, "--transposable is learned with --estimator pathwise"),
        ({"estimator": "maskllm"}, "--transposable is learned with --estimator pathwise"),
        ({"refine": True}, "--refine exchanges weights within a row"),
        ({"pattern": NMPattern(4, 8)}, "--transposable is learned for M up to 4: a block of 4:8 has too many masks"),
    ],
)
def test_what_cannot_be_learned_so_is_refused_in_plain_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LearnConfig(**{"pattern": TWO_FOUR, "transposable": True, **settings})
    assert not LearnConfig(pattern=TWO_FOUR).transposable
