"""Block by block: which masks move when, what the error is, and that it falls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stopper import Stopper
from test_learn import CONFIG, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import Interrupted
from maskpro_deploy.learn.estimators.blockwise import BlockwiseEstimator
from maskpro_deploy.learn.model.masked_linear import Mode
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.torch_lm import load_causal_lm

BLOCK = replace(CONFIG, objective="block")
WINDOWS = np.random.default_rng(0).integers(0, 320, (8, 32)).astype(np.int32)


def trainer_for(dense: Checkpoint) -> Trainer:
    model = LearningModel(load_causal_lm(dense.folder, torch.float32))
    trainer = Trainer(model, WINDOWS, WINDOWS, BLOCK)
    trainer.prepare()
    return trainer


def block_errors(trainer: Trainer) -> list[float]:
    """Relative error of every block by whole forward passes, independent of the estimator."""
    states: dict[Mode, list[torch.Tensor]] = {}
    layers = trainer.model.model.model.layers
    for mode in (Mode.DENSE, Mode.ARGMAX):
        for site in trainer.sites:
            site.mode = mode
        found: list[torch.Tensor] = states.setdefault(mode, [])
        handles = [layers[0].register_forward_pre_hook(lambda _, args, found=found: found.append(args[0].clone()))]
        handles += [y.register_forward_hook(lambda _, args, out, found=found: found.append(out.clone())) for y in layers]
        with torch.no_grad():
            trainer.model.compute_hidden(trainer.model.tokens(WINDOWS[:4]), differentiable=False)
        for handle in handles:
            handle.remove()
    dense, masked = states[Mode.DENSE], states[Mode.ARGMAX]
    return [
        float((masked[i] - dense[i]).square().mean() / (dense[i] - dense[i - 1]).square().mean()) for i in range(1, len(dense))
    ]


def test_the_loss_is_the_relative_error_of_the_block_whose_turn_it_is(dense: Checkpoint) -> None:
    trainer = trainer_for(dense)
    expected = block_errors(trainer)
    assert isinstance(trainer.estimator, BlockwiseEstimator)
    for place, error in enumerate(expected):
        block = f"model.layers.{place}"
        assert float(trainer.estimator._error(WINDOWS[:4], block).detach()) == pytest.approx(error, rel=1e-4)


def test_only_the_block_whose_turn_it_is_moves(dense: Checkpoint) -> None:
    trainer = trainer_for(dense)
    for left, moving in ((1.0, "model.layers.0."), (0.25, "model.layers.1.")):
        before = {s.name: s.logits.clone() for s in trainer.sites}
        trainer.estimator.step(WINDOWS[:4], 0, left)
        for site in trainer.sites:
            assert torch.equal(site.logits, before[site.name]) != site.name.startswith(moving), site.name
    assert {n.split("/")[1][:14] for n in trainer.estimator.tensors() if n.startswith("first/")} == {"model.layers.1"}


def test_learning_lowers_the_error_of_every_block(dense: Checkpoint) -> None:
    trainer = trainer_for(dense)
    before = block_errors(trainer)
    for step in range(40):
        trainer.estimator.step(WINDOWS[:4], step, 1 - step / 40)
    after = block_errors(trainer)
    assert all(b < 0.95 * a for a, b in zip(before, after, strict=True)), (before, after)


def test_an_interrupted_run_resumes_to_the_same_bits(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    whole = run(dense, tmp_path / "whole", text, heldout, BLOCK)
    for at in (3, 8):  # in the first block, in the second
        with pytest.raises(Interrupted):
            run(dense, tmp_path / f"{at}", text, heldout, BLOCK, progress=Stopper(at))
        assert run(dense, tmp_path / f"{at}", text, heldout, BLOCK, resume=True).masks.sha256() == whole.masks.sha256()
