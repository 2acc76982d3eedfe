"""MaskPro as published, and what `--renew-initial` adds to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import WINDOWS, Planted
from test_estimators import BASE

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.estimators.maskpro_paper import MaskProPaperEstimator
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.torch_lm import load_causal_lm

CONFIG = replace(BASE, estimator="maskpro-paper", learning_rate=1e-3)


@pytest.fixture
def model(dense: Checkpoint) -> LearningModel:
    return LearningModel(load_causal_lm(dense.folder, torch.float32))


def find_planted(problem: Planted, estimator: MaskProPaperEstimator) -> None:
    """Let the logits be those of the planted mask: samples have next to no loss then."""
    mask = unpack(problem.planted, problem.site.weight.numel()).view(-1, 4).t()
    logits = {"logits/planted": mask.float().mul(20).sub(10).half()}
    estimator.restore({**estimator.tensors(), **logits}, estimator.numbers())


def test_the_initial_mask_is_renewed_when_a_sample_halves_its_loss(model: LearningModel) -> None:
    config = replace(CONFIG, renew_initial=True)
    problem = Planted(config)
    estimator = MaskProPaperEstimator(config, model, [problem.site], problem)
    estimator.step(WINDOWS, 0, 1.0)
    assert estimator.metrics()["renewed"] == 0  # the sample is the initial mask, or next to it
    find_planted(problem, estimator)
    estimator.step(WINDOWS, 1, 1.0)
    assert estimator.metrics()["residual"] < -0.5
    assert estimator.numbers() == {"tracker": 0.0, "renewed": 1}
    assert torch.equal(estimator.tensors()["initial/planted"], problem.planted)
    estimator.step(WINDOWS, 2, 1.0)
    assert abs(estimator.metrics()["residual"]) < 0.1  # against the new one
    assert estimator.numbers()["renewed"] <= 2


def test_without_the_option_it_is_as_published(model: LearningModel) -> None:
    problem = Planted(CONFIG)
    estimator = MaskProPaperEstimator(CONFIG, model, [problem.site], problem)
    find_planted(problem, estimator)
    for step in range(2):
        estimator.step(WINDOWS, step, 1.0)
        assert estimator.metrics()["residual"] < -0.5
    assert estimator.numbers()["renewed"] == 0
    assert set(estimator.tensors()) == {"logits/planted"}


def test_a_renewed_mask_is_part_of_the_state(model: LearningModel) -> None:
    config = replace(CONFIG, renew_initial=True)
    problem, again = Planted(config), Planted(config)
    first = MaskProPaperEstimator(config, model, [problem.site], problem)
    find_planted(problem, first)
    first.step(WINDOWS, 0, 1.0)
    second = MaskProPaperEstimator(config, model, [again.site], again)
    second.restore({name: x.clone() for name, x in first.tensors().items()}, first.numbers())
    for step in (1, 2):
        losses = [estimator.step(WINDOWS, step, 1.0) for estimator in (first, second)]
        assert torch.equal(*losses)
    assert torch.equal(problem.site.logits, again.site.logits)
    assert first.numbers() == second.numbers()


def test_the_option_belongs_to_it() -> None:
    with pytest.raises(ConfigError, match="--renew-initial belongs to --estimator maskpro-paper, not to maskpro"):
        replace(BASE, estimator="maskpro", renew_initial=True)
