"""The items that train weights: rehearsed on the CPU, and their laws fail where something is wrong."""

from __future__ import annotations

import json
import math
import statistics

import pytest

pytest.importorskip("torch")

import torch

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.gpu_check import laws, weights
from maskpro_deploy.gpu_check.items import MEASURED, Record, Settings
from maskpro_deploy.gpu_check.models import TINY
from maskpro_deploy.gpu_check.processes import gpu_is_here, run_here
from maskpro_deploy.gpu_check.registry import ITEMS
from maskpro_deploy.learn.distributions.planes import unpack


@pytest.fixture
def settings(tmp_path):
    return Settings(budget_s=1.0, scratch=tmp_path, rehearse=True)


@pytest.fixture
def record(settings, tmp_path):
    return Record(tmp_path / "figures.json", settings.budget_s)


def test_joint_steps_are_compared_with_steps_of_masks_alone(settings, record, tmp_path):
    line = ITEMS["learn-joint"].run(settings, record)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert line.startswith("tiny: ")
    assert line.endswith("laws hold")
    for name in ("frozen", "train", "lora"):
        assert figures[f"{name}_step_ms"] == statistics.median(figures[f"{name}_step_ms_all"])
        assert len(figures[f"{name}_step_ms_all"]) == len(figures["frozen_step_ms_all"]) >= 5
    for name in ("train", "lora"):
        assert 0 < figures[f"{name}_ratio_low"] <= figures[f"{name}_ratio"] <= figures[f"{name}_ratio_high"] < math.inf
    assert figures["laws_hold_in"] == ["float32", "bfloat16"]
    assert figures["pruned_weights"] == TINY.pruned_weights
    assert not list(tmp_path.glob("laws-*"))


def test_steps_of_recovery_are_timed(settings, record, tmp_path):
    line = ITEMS["recover"].run(settings, record)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert line.startswith("tiny: ")
    assert figures["steps"] == len(figures["step_ms_all"]) > 0
    assert figures["tokens_per_s"] == pytest.approx(1e3 * figures["batch_tokens"] / figures["step_ms"])
    assert figures["laws_hold_in"] == ["float32", "bfloat16"]
    assert 6.0 < figures["dense_loss"] < 7.0  # random tokens: nothing is better than the uniform guess


def spoil_dropped(layer):
    layer.weight.view(-1)[~unpack(layer.kept, layer.weight.numel())] = -0.0


def spoil_kept(layer):
    layer.weight.view(-1)[unpack(layer.kept, layer.weight.numel())] = math.nan


def nudge(layer):
    flat, kept = layer.weight.view(-1), unpack(layer.kept, layer.weight.numel())
    flat[kept.nonzero()[0]] *= 1 + 2**-7  # the last bit of a bfloat16


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_dropped, r"float32: a dropped weight of .* is not \+0\.0"),
        (spoil_kept, "float32: .* is not finite after 6 steps"),
        (nudge, "float32: .* of a resumed run has other bits"),
    ],
)
def test_a_law_that_does_not_hold_is_named(spoil, message, settings, record):
    made = []

    def make(dtype, store, progress):
        loop = weights._make_recovery(torch, TINY, settings, dtype, store, progress)
        made.append(loop)
        if len(made) == 3:  # the one that is resumed
            run = loop.run

            def run_and_spoil():
                done = run()
                spoil(loop.masked[0])
                return done

            loop.run = run_and_spoil
        return loop

    with pytest.raises(CheckFailed, match=message):
        laws.check_laws(torch, settings, record, make)
    assert "laws_hold_in" not in record.figures


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_is_here(), reason="no GPU")
@pytest.mark.parametrize("name", ["learn-joint", "recover"])
def test_weights_are_trained_on_a_gpu(name, tmp_path):
    record = Record(None, 5.0)
    outcome = run_here(name, Settings(budget_s=5.0, scratch=tmp_path), record)
    assert outcome.status == MEASURED, outcome.trace
    assert record.figures["laws_hold_in"] == ["float32", "bfloat16"]
