"""ProxSparse: the copy is trained and pushed to 2:4, the masks follow it, and the weights stay what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import Planted, learn_planted
from test_estimators import BASE, trainer_for
from test_learn import run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.distributions.planes import pack, top
from maskpro_deploy.learn.estimators.proxsparse import ProxSparseEstimator, anchor_gradient, schedule
from maskpro_deploy.learn.kernels.prox import regulariser
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

CONFIG = replace(BASE, estimator="proxsparse", prior="magnitude", learning_rate=None)


def copies(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert isinstance(trainer.estimator, ProxSparseEstimator)
    return {name: copy.detach().clone() for name, copy in trainer.estimator.learned().items()}


def test_settings_are_the_published_ones() -> None:
    assert (CONFIG.rate, CONFIG.prox_strength, CONFIG.prox_anchor) == (1e-4, 0.25, 0.0)
    assert replace(CONFIG, prior="auto").prior == "magnitude"
    assert [round(schedule(left), 3) for left in (1.0, 0.95, 0.9, 0.45, 0.0)] == [0.0, 0.5, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pattern": NMPattern(4, 8)}, "--estimator proxsparse learns 2:4 masks, not 4:8"),
        ({"prior": "wanda"}, "--estimator proxsparse starts from --prior magnitude, not from wanda"),
        ({"prox_strength": 0.0}, "--prox-strength 0"),
        ({"prox_anchor": -1.0}, "--prox-anchor -1"),
        ({"estimator": "susi", "prox_strength": 1.0}, "--prox-strength belongs to --estimator proxsparse, not to susi"),
    ],
)
def test_what_it_does_not_do_is_refused_by_one_line(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        replace(CONFIG, **settings)
    assert "\n" not in str(refused.value)


def test_it_starts_from_the_weights_and_the_mask_of_magnitudes(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, CONFIG)
    found = copies(trainer)
    assert all(torch.equal(found[site.name], site.weight) for site in trainer.sites)
    assert trainer.flips() == 0


def test_groups_go_towards_two_weights_and_the_masks_follow_the_copy(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, replace(CONFIG, steps=8, prox_strength=1.0))
    before = {site.name: site.weight.clone() for site in trainer.sites}
    assert trainer.run()
    for name, copy in copies(trainer).items():
        planes, start = to_planes(copy, 4), to_planes(before[name], 4)
        assert float(regulariser(planes).mean()) < 0.5 * float(regulariser(start).mean())
        (site,) = (s for s in trainer.sites if s.name == name)
        assert torch.equal(site.kept, pack(top(planes.abs(), 2)))
        assert torch.equal(site.weight, before[name])  # which the masks are for
    assert trainer.collect_changed_weights() == {}
    assert trainer.flips() > 0


def test_the_result_has_the_original_weights(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, CONFIG)
    sparse = Checkpoint.open(tmp_path / "out")
    for name in result.masks:
        np.testing.assert_array_equal(sparse.tensor(name), dense.tensor(name) * result.masks.mask(name))


def test_it_finds_a_planted_mask(dense: Checkpoint) -> None:
    config = replace(CONFIG, learning_rate=0.05, prox_strength=0.02)
    problem, model = Planted(config), LearningModel(load_causal_lm(dense.folder, torch.float32))
    learn_planted(problem, config, model, 0)
    assert problem.found() < 0.7
    learn_planted(problem, config, model, 200)
    assert problem.found() > 0.95


def test_the_anchor_is_the_derivative_of_the_second_regulariser_and_holds_the_copy(dense: Checkpoint) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(4, 8, generator=generator)
    weight = torch.randn(4, 8, generator=generator).requires_grad_()
    ratio = weight / (original + 0.1 * torch.where(original < 0, -1.0, 1.0))
    (ratio * (weight - original)).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(anchor_gradient(weight.detach(), original), weight.grad)

    moved = []
    for anchor in (0.0, 100.0):
        trainer = trainer_for(dense, replace(CONFIG, steps=6, learning_rate=0.01, prox_strength=1e-6, prox_anchor=anchor))
        trainer.run()
        found = copies(trainer)
        moved.append(sum(float((found[s.name] - s.weight).square().sum()) for s in trainer.sites))
    assert moved[1] < 0.9 * moved[0]


def test_a_copy_that_is_no_number_is_never_saved(dense: Checkpoint) -> None:
    trainer = trainer_for(dense, CONFIG)
    with torch.no_grad():
        next(iter(trainer.estimator.learned().values()))[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(CheckFailed, match="are not finite"):
        trainer.check_finite()
