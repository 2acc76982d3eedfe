"""The plan: counted shapes, and a peak that a real run confirms within the stated error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from decoder_families import write_family
from test_learn import CONFIG

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import FormatError, PatternError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.planning.plan import ERROR, plan
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

LARGE = LearnConfig(
    pattern=NMPattern(2, 4), steps=1, window=256, batch_tokens=2048, calibration_tokens=256, heldout_tokens=256, dtype="float32"
)
RUN = """
import sys
from pathlib import Path
import numpy as np, torch
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.memory import tuned_process
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.peak_memory import peak_rss
from maskpro_deploy.torch_lm import load_causal_lm
import transformers.models.llama.modeling_llama
config = LearnConfig(pattern=NMPattern(2, 4), steps=1, window=256, batch_tokens=2048, calibration_tokens=256, heldout_tokens=256)
windows = np.random.default_rng(0).integers(0, 2000, (8, 256)).astype(np.int32)
before = peak_rss()
with tuned_process():
    trainer = Trainer(LearningModel(load_causal_lm(Path(sys.argv[1]), torch.float32)), windows, windows[:1], config)
    trainer.prepare()
    trainer.run()
print(peak_rss() - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose activations are far larger than the rest."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2000, num_hidden_layers=4, tie_word_embeddings=True, **shape))
    path = tmp_path_factory.mktemp("plan") / "model"
    model.save_pretrained(path)
    return path


def test_a_real_run_confirms_the_peak(folder: Path) -> None:
    predicted = plan(Checkpoint.open(folder), LARGE, "cpu", torch.float32, timed=False).memory
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True, check=True, timeout=300)
    measured, expected = int(done.stdout), predicted.peak - predicted.program
    assert abs(expected - measured) <= ERROR * measured, (expected, measured, predicted)


def test_counts_are_those_of_the_files(dense: Checkpoint) -> None:
    found = plan(dense, CONFIG, "cpu", torch.float32, timed=False)
    names = [n for n in dense.names if "_proj." in n]
    assert found.layers == len(names) == 14
    assert found.prunable == sum(dense.shapes[n][0] * dense.shapes[n][1] for n in names)
    assert found.parameters == sum(torch.Size(s).numel() for s in dense.shapes.values())  # tied weights count once
    assert found.memory.weights == 4 * found.parameters
    assert found.maskllm_bytes_per_weight == 24
    assert found.step_s is None


def test_more_tokens_take_more_memory_and_fewer_layers_less(dense: Checkpoint) -> None:
    small = plan(dense, CONFIG, "cpu", torch.float32, timed=False).memory
    twice = plan(dense, replace(CONFIG, batch_tokens=256), "cpu", torch.float32, timed=False).memory
    fewer = plan(dense, replace(CONFIG, include="mlp"), "cpu", torch.float32, timed=False).memory
    assert twice.activations == pytest.approx(2 * small.activations, rel=0.02)
    assert fewer.state < small.state
    assert plan(dense, replace(CONFIG, prior="sparsegpt"), "cpu", torch.float32, timed=False).memory.prior > 4 * 64**2


def test_an_estimator_without_a_backward_pass_keeps_no_activations_and_one_by_blocks_those_of_a_block(dense: Checkpoint) -> None:
    whole, layer, loss, block = (
        plan(dense, replace(CONFIG, learning_rate=None, **chosen), "cpu", torch.float32, timed=False).memory
        for chosen in ({}, {"estimator": "maskpro"}, {"estimator": "maskpro", "reward": "loss"}, {"objective": "block"})
    )
    assert loss.activations < layer.activations < whole.activations
    assert block.activations < whole.activations
    assert loss.state < layer.state


def test_time_is_measured_here(dense: Checkpoint) -> None:
    found = plan(dense, CONFIG, "cpu", torch.float32)
    assert found.products_s is not None
    assert found.masks_s is not None
    assert found.products_s > 0
    assert found.masks_s > 0
    assert found.step_s == found.products_s + found.masks_s


def test_what_does_not_fit_is_one_plain_error(dense: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PatternError, match="2:3 does not fit layer"):
        plan(dense, replace(CONFIG, pattern=NMPattern(2, 3)), "cpu", torch.float32, timed=False)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    (tmp_path / "model.safetensors").write_bytes((dense.folder / "model.safetensors").read_bytes())
    with pytest.raises(FormatError, match="could not be opened"):
        plan(Checkpoint.open(tmp_path), CONFIG, "cpu", torch.float32, timed=False)


def test_the_command_prints_a_table_or_one_object(dense: Checkpoint) -> None:
    words = ["plan", "--model", str(dense.folder), "--window", "32", "--batch-tokens", "128", "--no-time", "--dtype", "float32"]
    text = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    assert "peak:" in text
    assert "MaskLLM" in text
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).stdout)
    assert found["peak_bytes"] > found["memory"]["program"]


@pytest.mark.parametrize("family", ["falcon", "mpt", "gpt2", "lfm2", "minimax", "granitemoe"])
def test_every_family_is_planned_with_the_layers_that_learning_masks(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_family(family, tmp_path / "m"))
    planned = plan(checkpoint, CONFIG, "cpu", torch.float32, timed=False)
    model = LearningModel(load_causal_lm(checkpoint.folder, torch.float32))
    layers = prunable_layers(model.model, CONFIG.pattern, None, None, find_tensors(model, checkpoint))
    assert (planned.layers, planned.prunable) == (len(layers), sum(layer.weight.numel() for layer in layers.values()))
    assert planned.memory.activations > 0
