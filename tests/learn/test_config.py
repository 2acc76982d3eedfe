"""Settings refuse what makes no sense, and say which flag it was."""

from __future__ import annotations

from typing import Any

import pytest

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.config import DEFAULT_BUDGET_S, LearnConfig
from maskpro_deploy.pattern import NMPattern

P = NMPattern(2, 4)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"budget_s": 1.0, "steps": 3}, "--budget, --steps and --tokens"),
        ({"steps": -1}, "--steps -1"),
        ({"budget_s": -1.0}, "--budget -1"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"temperature": -0.1}, "--temperature -0.1"),
        ({"window": 1}, "--window 1"),
        ({"batch_tokens": 10}, "--batch-tokens 10"),
        ({"prior": "guess"}, "--prior guess"),
        ({"prior_update": True}, "--prior-update belongs to --prior sparsegpt"),
        ({"other_weights": True}, "--other-weights belongs to --prior file:PATH; --prior wanda reads no masks"),
        (
            {"prior": "sparsegpt", "prior_update": True, "objective": "kl", "weights": "frozen"},
            "--objective kl compares with the dense model",
        ),
        ({"prior": "none", "refine": True}, "--refine needs a mask"),
        ({"prior_inputs": "own"}, "--prior-inputs own"),
        ({"objective": "mse"}, "--objective mse"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"include": "("}, "--include '('"),
    ],
)
def test_bad_settings_are_refused_with_their_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag.replace("(", r"\(")):
        LearnConfig(pattern=P, **settings)


def test_without_a_limit_the_default_budget_holds() -> None:
    assert LearnConfig(pattern=P).budget_s == DEFAULT_BUDGET_S
    assert LearnConfig(pattern=P, steps=5).budget_s is None


def test_the_objective_follows_the_estimator_unless_it_is_given() -> None:
    assert LearnConfig(pattern=P).minimised == LearnConfig(pattern=P).on("cpu").objective == "ce+kl"
    assert LearnConfig(pattern=P, estimator="maskllm").minimised == "ce"
    updated = {"prior": "sparsegpt", "prior_update": True}
    assert LearnConfig(pattern=P, weights="frozen", **updated).minimised == "ce"  # the dense model is no teacher then
    assert LearnConfig(pattern=P, **updated).minimised == "ce+kl"  # it is kept apart
    assert LearnConfig(pattern=P, objective="ce").minimised == "ce"


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, "lora"),
        ({"tokens": 1000}, "lora"),
        ({"prior": "sparsegpt", "prior_update": True}, "lora"),
        ({"steps": 0}, "frozen"),
        ({"tokens": 0}, "frozen"),
        ({"budget_s": 0.0}, "frozen"),
        ({"temperature": 0.5}, "frozen"),
        ({"objective": "block"}, "frozen"),
        ({"estimator": "maskpro"}, "frozen"),
        ({"estimator": "maskllm"}, "frozen"),
        ({"weights": "frozen"}, "frozen"),
        ({"weights": "train"}, "train"),
    ],
)
def test_weights_move_where_they_can_unless_it_is_said_otherwise(settings: dict[str, Any], weights: str) -> None:
    config = LearnConfig(pattern=P, **settings)
    assert config.weights_choice.name == config.on("cpu").weights == config.on("cpu").on("cpu").weights == weights
    assert config.trains_weights == (weights != "frozen")
    assert config.trained_rate == {"frozen": 0.0, "train": 5e-4, "lora": 2e-3}[weights]


def test_tokens_in_a_step_follow_the_device_unless_they_are_given() -> None:
    assert [LearnConfig(pattern=P).on(device).sequences for device in ("cpu", "cuda")] == [2, 8]
    assert LearnConfig(pattern=P, window=1024, calibration_tokens=2048).on("cpu").batch_tokens == 1024
    assert LearnConfig(pattern=P, batch_tokens=4096).on("cpu").batch_tokens == 4096
    decided = LearnConfig(pattern=P).on("cpu")
    assert decided.on("cuda") == decided


def test_the_fingerprint_changes_with_what_changes_the_result_and_not_with_the_limit() -> None:
    base = LearnConfig(pattern=P, steps=5)
    assert base.fingerprint() == LearnConfig(pattern=P, steps=9).fingerprint()
    assert base.fingerprint() != LearnConfig(pattern=P, steps=5, seed=1).fingerprint()
    assert base.fingerprint() != LearnConfig(pattern=NMPattern(1, 4), steps=5).fingerprint()
