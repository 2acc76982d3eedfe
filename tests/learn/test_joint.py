"""Masks and kept weights learned together (`--weights`): strict masks, a teacher that stays, resume to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stopper import Stopper
from test_learn import run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError, Interrupted
from maskpro_deploy.learn import LearnConfig, LearnResult
from maskpro_deploy.learn.distributions.planes import unpack
from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.teacher import ask_without_masks
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm
from maskpro_deploy.validation import validate

PATTERN = NMPattern(2, 4)
CONFIG = LearnConfig(
    pattern=PATTERN, steps=12, window=32, batch_tokens=128, calibration_tokens=128, heldout_tokens=512, evaluations=3,
    dtype="float32", transform="none", learning_rate=0.1, weights="train", weight_rate=2e-3, objective="ce+kl",
)  # fmt: skip
SHORT = replace(CONFIG, steps=4, prior="magnitude")
UPDATED = {"prior": "sparsegpt", "prior_update": True}
LORA = {"weights": "lora", "rank": 4, "weight_rate": 1e-2}
WAYS = pytest.mark.parametrize(
    "settings", [{}, UPDATED, LORA, {**LORA, **UPDATED}], ids=["train", "train-updated", "lora", "lora-updated"]
)


def make_trainer(dense: Checkpoint, config: LearnConfig = SHORT) -> Trainer:
    """A prepared run on random tokens."""
    windows = np.random.default_rng(0).integers(0, 320, (24, 32)).astype(np.int32)
    dtype = getattr(torch, config.dtype)
    trainer = Trainer(LearningModel(load_causal_lm(dense.folder, dtype)), windows[4:], windows[:4], config)
    trainer.prepare()
    return trainer


@pytest.fixture(scope="module", params=["train", "lora"])
def learned(
    request: pytest.FixtureRequest, dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LearnResult]:
    out = tmp_path_factory.mktemp("joint") / "sparse"
    settings: dict[str, Any] = LORA if request.param == "lora" else {}
    return out, run(dense, out, text, heldout, replace(CONFIG, steps=40, **settings))


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainer at every measured point, whose masks are looked at there."""
    seen: list[Trainer] = []
    measure = Trainer.measure_movement

    def look(self: Trainer) -> dict[str, float]:
        for site in self.masked:
            kept = unpack(site.kept, site.weight.numel()).view(-1, PATTERN.m)
            assert (kept.sum(1) == PATTERN.n).all()
            assert torch.equal(site.kept, site.argmax())
            dropped = ~kept.view(site.weight.shape)
            assert not site.masked_weight()[dropped].view(torch.int32).any()  # +0.0, to the bit
        seen.append(self)
        return measure(self)

    monkeypatch.setattr(Trainer, "measure_movement", look)
    return seen


@WAYS
def test_the_mask_is_strict_at_every_measured_point(
    settings: dict[str, Any], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, points: list[Trainer]
) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, weight_decay=0.1, **settings))
    assert len(points) == len(result.curve) == 4
    assert result.curve[-1].flips > 0
    assert validate(tmp_path / "out", PATTERN).holds


def test_kept_weights_move_and_only_masked_layers_change(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    out, result = learned
    weights = load_file(out / "model.safetensors")
    for name, weight in weights.items():
        if name not in result.masks:
            assert np.array_equal(weight, dense.tensor(name))
            continue
        kept = result.masks.mask(name)
        assert not weight[~kept].view(np.uint32).any()
        assert (weight[kept] != 0).all()
        assert (weight[kept] != dense.tensor(name)[kept]).any()
    assert validate(out, PATTERN).holds


def test_the_record_says_what_is_true(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    out, result = learned
    record = json.loads((out / "learn.json").read_text())
    masks = Checkpoint.open(out).masks
    assert masks is not None
    assert record["weights_changed"] is True
    assert record["dense_sha256"] == masks.dense_sha256 == dense.dense_sha256(result.masks)
    assert record["settings"]["weights"] in ("train", "lora")
    assert record["curve"][0]["moved"] == 0 < record["curve"][-1]["moved"] < 1


def test_it_comes_closer_to_the_dense_model_than_masks_alone(
    learned: tuple[Path, LearnResult], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    _, joint = learned
    alone = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=40, weights="frozen", weight_rate=None))
    assert joint.curve[0].heldout_loss == alone.curve[0].heldout_loss  # they start from the same masks and weights
    assert min(p.heldout_loss for p in joint.curve) < min(p.heldout_loss for p in alone.curve)


@WAYS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teacher_answers_the_same_before_and_after(dtype: str, settings: dict[str, Any], dense: Checkpoint) -> None:
    windows = np.random.default_rng(1).integers(0, 320, (2, 32)).astype(np.int32)
    untouched = LearningModel(load_causal_lm(dense.folder, getattr(torch, dtype)))
    expected = untouched.compute_hidden(untouched.tokens(windows), differentiable=False)
    trainer = make_trainer(dense, replace(SHORT, dtype=dtype, **{"weight_rate": 0.01, **settings}))
    ask = ask_without_masks(trainer.model, trainer.masked)
    before = ask(windows).hidden
    start = [site.weight.clone() for site in trainer.sites]
    trainer.run()
    assert all(not torch.equal(site.weight, weight) for site, weight in zip(trainer.sites, start, strict=True))
    assert torch.equal(before, expected)
    assert torch.equal(ask(windows).hidden, expected)


def test_the_prior_of_sparsegpt_starts_with_its_update(dense: Checkpoint) -> None:
    trainer = make_trainer(dense, replace(SHORT, prior="sparsegpt", prior_update=True))
    assert all(torch.equal(site.dense, torch.from_numpy(dense.tensor(site.name))) for site in trainer.sites)
    assert all(not torch.equal(site.dense, site.weight) for site in trainer.sites)
    assert trainer.moved() > 0


@WAYS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_comes_to_the_same_bits(
    dtype: str, settings: dict[str, Any], dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=6, dtype=dtype, weight_decay=0.1, **settings)
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted, match="after step 3"):
        run(dense, tmp_path / "parts", text, heldout, config, progress=Stopper(3))
    resumed = run(dense, tmp_path / "parts", text, heldout, config, resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert {name: x.tobytes() for name, x in one.items()} == {name: x.tobytes() for name, x in other.items()}
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert [(p.heldout_loss, p.moved) for p in resumed.curve] == [(p.heldout_loss, p.moved) for p in whole.curve]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_that_comes_back_has_the_value_that_it_left_with(dtype: str, dense: Checkpoint) -> None:
    trainer = make_trainer(dense, replace(SHORT, dtype=dtype, learning_rate=1e-9, weight_rate=0.01, weight_decay=0.1, steps=10))
    site, windows = trainer.sites[0], trainer.text[:4]
    group, original = (x.view(-1, PATTERN.m)[0] for x in (site.weight, site.dense))  # views: they show what there is

    def step(number: int, keep: tuple[int, int]) -> None:
        """A step under the current mask, after which the first group keeps two of its weights."""
        site.logits[:, 0] = -8.0
        site.logits[list(keep), 0] = 8.0
        trainer.estimator.step(windows, number, 0.5)
        assert unpack(site.kept, site.weight.numel())[: PATTERN.m].nonzero().flatten().tolist() == list(keep)

    step(0, (0, 1))
    step(1, (0, 1))
    step(2, (0, 2))  # 1 leaves after it has moved
    left = group.clone()
    assert left[1] != original[1]
    step(3, (0, 2))
    step(4, (0, 2))
    assert group[1] == left[1]  # neither gradient, nor momentum, nor decay moves it
    assert group[3] == left[3]
    assert group[2] != left[2]
    assert site.masked_weight().view(-1, PATTERN.m)[0, 1] == 0
    step(5, (0, 1))
    assert site.masked_weight().view(-1, PATTERN.m)[0, 1] == left[1]
    step(6, (0, 1))
    assert group[1] != left[1]


@pytest.mark.parametrize("settings", [{}, UPDATED], ids=["dense", "updated"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_rank_deltas_are_all_that_is_added(dtype: str, settings: dict[str, Any], dense: Checkpoint) -> None:
    trainer = make_trainer(dense, replace(SHORT, dtype=dtype, **LORA, **settings))
    start = {site.name: site.weight.float().clone() for site in trainer.masked}
    trainer.run()
    saved = trainer.estimator.tensors()
    for site in trainer.masked:
        b, a = saved[f"lora_B/{site.name}"], saved[f"lora_A/{site.name}"]
        assert len(a) == 4
        assert b.any()
        expected = torch.addmm(start[site.name], b, a, alpha=32.0 / 4).to(site.weight.dtype)
        assert torch.equal(site.weight, expected)  # of every weight, whether its mask keeps it or not
        assert torch.equal(site.masked_weight(), expected * unpack(site.kept, expected.numel()).view(expected.shape))


def test_the_gradient_of_a_delta_is_that_of_the_weights_kept(dense: Checkpoint) -> None:
    """At a rate of the masks that moves none, the first step of the factor B has the sign of -s G Aᵀ, by autograd."""
    trainer = make_trainer(dense, replace(SHORT, learning_rate=1e-9, objective="ce", **LORA))
    site, windows = trainer.masked[0], trainer.text[:4]
    before = trainer.estimator.tensors()[f"lora_A/{site.name}"].clone()
    weight = (site.masked_weight().clone()).requires_grad_()
    plain = load_causal_lm(dense.folder, torch.float32)
    for other in trainer.masked:
        plain.get_parameter(other.name).data.copy_(other.masked_weight())
    layer = plain.get_submodule(site.name.removesuffix(".weight"))
    del layer.weight
    layer.weight = weight
    tokens = torch.from_numpy(windows.astype(np.int64))
    plain(tokens, labels=tokens).loss.backward()
    assert weight.grad is not None
    kept = unpack(site.kept, weight.numel()).view(weight.shape)
    slope = (weight.grad * kept) @ before.t()
    trainer.estimator.step(windows, 0, 0.5)
    moved = trainer.estimator.tensors()[f"lora_B/{site.name}"]
    clear = slope.abs() > 1e-3 * slope.abs().max()
    assert clear.float().mean() > 0.5
    assert torch.equal(moved[clear].sign(), -slope[clear].sign())


def test_the_loss_is_that_against_the_dense_weights(dense: Checkpoint) -> None:
    """The divergence is taken from the dense model, though the weights have moved: a fresh dense model gives the same."""
    trainer = make_trainer(dense, replace(SHORT, objective="kl", weight_rate=0.01))
    trainer.run()
    set_mode(trainer.masked, Mode.ARGMAX)
    windows = trainer.heldout
    fresh = LearningModel(load_causal_lm(dense.folder, torch.float32))
    with torch.no_grad():
        own = StepLoss(trainer.model, ask_without_masks(trainer.model, trainer.masked), 1.0)(windows, differentiable=False)
        theirs = StepLoss(trainer.model, ask_without_masks(fresh, []), 1.0)(windows, differentiable=False)
    assert float(own) == float(theirs) > 0


def test_weights_that_diverge_name_their_rate_and_write_nothing(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=r"--weight-rate|step"):
        run(dense, tmp_path / "out", text, heldout, replace(CONFIG, weight_rate=1e30))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "maskpro"}, r"--weights train goes with .*pathwise.*, not with maskpro"),
        ({"estimator": "maskpro", "reward": "loss"}, r"--weights train goes with .*, not with maskpro"),
        ({"estimator": "maskpro-paper"}, r"--weights train goes with .*, not with maskpro-paper"),
        ({"estimator": "maskllm"}, r"--weights train goes with .*, not with maskllm"),
        ({"objective": "block"}, r"--weights train goes with .*, not with pathwise with --objective block"),
        ({"temperature": 0.5}, r"--weights train needs --temperature 0"),
        ({"weights": "frozen", "weight_rate": 0.001}, r"--weight-rate belongs to --weights train or lora"),
        ({"weights": "frozen", "weight_decay": 0.1}, r"--weight-decay belongs to --weights train or lora"),
        ({"weights": "lora", "estimator": "maskpro"}, r"--weights lora goes with .*pathwise.*, not with maskpro"),
        ({"weights": "lora", "rank": 0}, r"--rank"),
        ({"weights": "lora", "alpha": 0.0}, r"--alpha"),
        ({"rank": 8}, r"--rank and --alpha belong to --weights lora, not to train"),
        ({"weights": "some"}, r"--weights some"),
        ({"weight_rate": -1.0}, r"--weight-rate"),
    ],
)
def test_it_is_refused_where_it_makes_no_sense(settings: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"pattern": PATTERN, "steps": 1, "weights": "train", **settings}
    with pytest.raises(ConfigError, match=message):
        LearnConfig(**given)
