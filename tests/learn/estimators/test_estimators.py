"""Every way to learn, on a tiny model: it learns what it can, resumes to the same bits, and refuses what it cannot do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopper import Stopper
from test_learn import run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, Interrupted, PatternError
from maskpro_deploy.learn import LearnConfig
from maskpro_deploy.learn.choices import ESTIMATORS
from maskpro_deploy.learn.estimators.maskpro import flip_share, signal_to_noise, temperature_for
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

PATTERN = NMPattern(2, 4)
BASE = LearnConfig(
    pattern=PATTERN,
    weights="frozen",
    transform="none",
    steps=6,
    window=32,
    batch_tokens=128,
    calibration_tokens=128,
    heldout_tokens=512,
    evaluations=2,
    dtype="float32",
)
WHOLE = [e for e in ESTIMATORS if not e.by_block]  # test_blockwise.py has the other one
KINDS: dict[str, dict[str, Any]] = {
    **{
        e.reward or e.name: {"estimator": e.name, "prior": e.prior} | ({} if e.reward is None else {"reward": e.reward})
        for e in WHOLE
    },
    "loss, drawn": {"estimator": "maskpro", "reward": "loss", "distribution": "plackett-luce", "samples": 2, "parts": 3},
}


def trainer_for(dense: Checkpoint, config: LearnConfig) -> Trainer:
    model = LearningModel(load_causal_lm(dense.folder, torch.float32))
    windows = np.random.default_rng(0).integers(0, 320, (16, 32)).astype(np.int32)
    trainer = Trainer(model, windows, windows[:4], replace(config, prior="magnitude"))
    trainer.prepare()
    return trainer


def test_a_run_says_what_moves_its_weights_and_warns_when_that_changes(
    dense: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    assert trainer_for(dense, BASE).estimator.weights_moved_by is None  # they are frozen
    trainer = trainer_for(dense, replace(BASE, weights="train"))
    with torch.enable_grad():
        trainer.estimator.step(trainer.text[:4], 0, 0.5)
    tensors, numbers = trainer.estimator.tensors(), trainer.estimator.numbers()
    assert numbers["weights_moved_by"] == trainer.estimator.weights_moved_by in ("native", "torch")
    other = trainer_for(dense, replace(BASE, weights="train"))
    other.estimator.restore(tensors, numbers)
    assert not caplog.records
    assert all(torch.equal(x, tensors[name]) for name, x in other.estimator.tensors().items())
    other.estimator.restore(tensors, {**numbers, "weights_moved_by": "compiled"})
    assert "the weights were moved by compiled so far" in caplog.text


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pathwise"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, kind: str
) -> None:
    config = replace(BASE, learning_rate=None, **KINDS[kind])
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "parts", text, heldout, config, progress=Stopper(3))
    resumed = run(dense, tmp_path / "parts", text, heldout, config, resume=True)
    assert [p.heldout_loss for p in resumed.curve] == [p.heldout_loss for p in whole.curve]
    assert resumed.masks.sha256() == whole.masks.sha256()


# few steps on a tiny model: rates above the defaults
@pytest.mark.parametrize(
    ("kind", "rate", "gain"),
    [("layer", 0.1, 0.02), ("maskllm", 0.01, 0.05), ("loss", 0.1, 0.0), ("susi", 0.01, 0.0), ("proxsparse", 0.01, 0.0)],
)
def test_it_learns(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, kind: str, rate: float, gain: float) -> None:
    config = replace(BASE, learning_rate=rate, **KINDS[kind])
    result = run(dense, tmp_path / "out", text, heldout, replace(config, steps=60, evaluations=6))
    assert result.curve[-1].flips > 0
    assert min(p.heldout_loss for p in result.curve) < result.curve[0].heldout_loss - gain


@pytest.mark.parametrize("kind", [e.reward or e.name for e in WHOLE if not e.backward])
def test_forward_passes_are_all_it_takes(dense: Checkpoint, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("no backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    trainer = trainer_for(dense, replace(BASE, learning_rate=None, **KINDS[kind]))
    before = {s.name: s.logits.clone() for s in trainer.sites}
    for _ in range(2):
        trainer._step()
    if kind != "maskpro-paper":  # which in two steps need not have tried any other mask
        assert any(not torch.equal(before[s.name], s.logits) for s in trainer.sites)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_kept_bits_are_those_of_the_logits_after_every_step(dense: Checkpoint, kind: str) -> None:
    trainer = trainer_for(dense, replace(BASE, learning_rate=None, **KINDS[kind]))
    for _ in range(3):
        trainer._step()
        for site in trainer.sites:
            assert PATTERN.holds(site.mask())
            if not trainer.estimator.learned():  # logits of its own
                assert torch.equal(site.kept, site.argmax())


@pytest.mark.parametrize("pattern", [NMPattern(8, 16), NMPattern(3, 8), NMPattern(1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["pathwise", "layer", "loss"])
def test_patterns_of_any_size_are_learned(dense: Checkpoint, pattern: NMPattern, kind: str) -> None:
    trainer = trainer_for(dense, replace(BASE, learning_rate=None, **{**KINDS[kind], "pattern": pattern, "temperature": 0.5}))
    for _ in range(2):
        trainer._step()
    assert all(pattern.holds(site.mask()) for site in trainer.sites)


def test_a_part_of_the_layers_is_explored_in_turn(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, replace(BASE, **{**KINDS["loss"], "parts": 14}))
    for step in range(2):
        before = {s.name: s.logits.clone() for s in trainer.sites}
        trainer._step()
        moved = [i for i, s in enumerate(trainer.sites) if not torch.equal(before[s.name], s.logits)]
        assert moved == [step]


def test_the_published_form_starts_from_ten_times_the_mask(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, replace(BASE, **KINDS["maskpro-paper"]))
    for site in trainer.sites:
        assert torch.equal(site.logits.float().abs(), torch.full(site.logits.shape, 5.0))  # centred: +5 and -5
    assert flip_share(trainer.sites, 1.0) == pytest.approx(1.36e-4, rel=0.02)


def test_the_temperature_gives_the_share_that_was_asked_for(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, replace(BASE, **KINDS["loss"]))
    for share in (0.001, 0.02, 0.3):
        assert flip_share(trainer.sites, temperature_for(trainer.sites, share)) == pytest.approx(share, rel=0.02)


def test_the_ratio_of_signal_to_noise_is_found_in_synthetic_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(20_000, generator=generator) * 0.5
    grads = torch.stack([signal + torch.randn(20_000, generator=generator) for _ in range(8)]).double()
    # pairs halve the variance of 1; signal has a mean square of 0.25
    assert signal_to_noise(grads @ grads.t()) == pytest.approx(0.5, rel=0.1)
    assert math.isnan(signal_to_noise(grads[:2] @ grads[:2].t()))


def test_what_does_not_go_together_is_refused(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    for settings, flag in (
        ({"estimator": "guess"}, "--estimator guess is not known"),
        ({"reward": "none"}, "--reward none is not known"),
        ({"distribution": "normal"}, "--distribution normal is not known"),
        ({"distribution": "plackett-luce"}, "--distribution plackett-luce"),
        ({"samples": 3}, "--samples 3"),
        ({"flip_rate": 1.0}, "--flip-rate 1 is out of range"),
        ({"parts": 0}, "--parts 0"),
        ({"estimator": "maskllm", "objective": "block"}, "--objective block"),
    ):
        with pytest.raises(ConfigError, match=flag):
            replace(BASE, **settings)
    with pytest.raises(PatternError, match="maskllm has one logit a mask, and 8:16 has 12870"):
        trainer_for(dense, replace(BASE, estimator="maskllm", pattern=NMPattern(8, 16)))
