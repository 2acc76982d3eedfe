"""A prior is computed once: an interrupted run has it in its state, and the next one finds what was costly about it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from stopper import Stopper
from test_learn import CONFIG, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import Interrupted
from maskpro_deploy.learn import trainer as trainer_module
from maskpro_deploy.learn.model import norm_cache
from maskpro_deploy.learn.model.model import LearningModel

KINDS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "weights that move": {"weights": "train"},
    "weights that the prior changed": {"prior": "sparsegpt", "prior_update": True},
    "both": {"prior": "sparsegpt", "prior_update": True, "weights": "train"},
    "maskllm": {"estimator": "maskllm", "learning_rate": None},
    "maskpro-paper": {"estimator": "maskpro-paper", "learning_rate": None},
    "4:8": {"pattern": type(CONFIG.pattern)(4, 8)},
}


class Calls:
    """How often priors were computed, and the dense model was measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.priors = self.passes = 0
        prior, hidden = trainer_module.compute_prior, LearningModel.compute_hidden

        def count(*args: Any, **kwargs: Any) -> Any:
            self.priors += 1
            return prior(*args, **kwargs)

        def passes(model: LearningModel, tokens: torch.Tensor, *, differentiable: bool) -> torch.Tensor:
            self.passes += 1
            return hidden(model, tokens, differentiable=differentiable)

        monkeypatch.setattr(trainer_module, "compute_prior", count)
        monkeypatch.setattr(LearningModel, "compute_hidden", passes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_does_not_compute_its_prior_again_and_comes_to_the_same_bits(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, calls: Calls, kind: str
) -> None:
    config = replace(CONFIG, steps=6, **KINDS[kind])
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "parts", text, heldout, config, progress=Stopper(3))
    assert calls.priors == 2
    resumed = run(dense, tmp_path / "parts", text, heldout, config, resume=True)
    assert calls.priors == 2
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert resumed.prior_masks.sha256() == whole.prior_masks.sha256()
    assert resumed.dense_loss == whole.dense_loss
    for one, other in zip(resumed.curve, whole.curve, strict=True):
        assert replace(one, seconds=0, memory=0) == replace(other, seconds=0, memory=0)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_state_is_there_as_soon_as_the_prior_is(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(dense, tmp_path / "whole", text, heldout)

    def fail(self: trainer_module.Trainer) -> None:
        raise RuntimeError("power loss")

    with monkeypatch.context() as broken:
        broken.setattr(trainer_module.Trainer, "_measure", fail)
        with pytest.raises(RuntimeError, match="power loss"):
            run(dense, tmp_path / "out", text, heldout)
    calls.priors = calls.passes = 0
    resumed = run(dense, tmp_path / "out", text, heldout, resume=True)
    assert calls.priors == 0
    assert calls.passes == 1 + 12 + 4 * 4  # the head's check, the steps, the measurements: the dense model is not measured again
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert [p.heldout_loss for p in resumed.curve] == [p.heldout_loss for p in whole.curve]


def test_the_masks_that_a_run_started_from_may_be_gone_when_it_is_resumed(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    run(dense, tmp_path / "first", text, heldout, replace(CONFIG, steps=0))
    config = replace(CONFIG, prior=f"file:{tmp_path / 'first'}")
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "parts", text, heldout, config, progress=Stopper(3))
    shutil.rmtree(tmp_path / "first")
    assert run(dense, tmp_path / "parts", text, heldout, config, resume=True).masks.sha256() == whole.masks.sha256()


def test_the_state_holds_the_prior_in_a_bit_a_weight(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "out", text, heldout, progress=Stopper(3))
    with safe_open(tmp_path / "out.learning" / "state.safetensors", "pt") as file:
        start = {name: file.get_tensor(name) for name in file.keys() if name.startswith("start/")}  # noqa: SIM118
    assert len(start) == 14
    assert sum(x.nbytes for x in start.values()) * 8 == sum(dense.tensor(n.removeprefix("start/")).size for n in start)


@pytest.mark.parametrize("prior", ["wanda", "ria"])
def test_the_second_run_on_a_model_and_a_text_finds_the_norms_and_comes_to_the_same_bits(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prior: str
) -> None:
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    config, computed = replace(CONFIG, prior=prior, steps=2), []
    real = norm_cache.whole_model_norms
    monkeypatch.setattr(norm_cache, "whole_model_norms", lambda *args: computed.append(1) or real(*args))
    first, second = (run(dense, tmp_path / name, text, heldout, config) for name in ("first", "second"))
    assert len(computed) == 1
    run(dense, tmp_path / "third", text, heldout, replace(config, calibration_tokens=256))
    assert len(computed) == 2
    assert first.masks.sha256() == second.masks.sha256()
    assert [p.heldout_loss for p in first.curve] == [p.heldout_loss for p in second.curve]
    shutil.rmtree(tmp_path / "cache")
    assert run(dense, tmp_path / "fourth", text, heldout, config).masks.sha256() == first.masks.sha256()
