"""Blocks on disk: the model says the same, blocks are empty unless they are at work, and the peak is not the whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.paged_blocks import PagedModel, open_paged
from maskpro_deploy.torch_lm import load_causal_lm

TOKENS = np.random.default_rng(0).integers(0, 320, (2, 16)).astype(np.int32)
ROOT = Path(__file__).resolve().parents[3]
WIDE, DEEP = 192, 48  # of the model whose memory is measured: 50 MB in float32, 1 MB a block

# what a process peaks at while every block of a model and its teacher is refitted and trained, in MB
MEASURE = """
import sys
from pathlib import Path
import numpy as np, torch
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.learn import RecoverConfig
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.paged_blocks import open_paged
from maskpro_deploy.learn.recovery.block_trainer import BlockTrainer
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.on_demand import OnDemand
from maskpro_deploy.system.peak_memory import peak_rss
from maskpro_deploy.torch_lm import load_causal_lm

torch.set_num_threads(1)
PATTERN = NMPattern(2, 4)
SMALL = {"window": 32, "batch_tokens": 64, "calibration_tokens": 64, "heldout_tokens": 64, "evaluations": 1}
CONFIG = RecoverConfig(method="block", refit=True, steps=1, **SMALL)

def recover(folder, whole):
    checkpoint = Checkpoint.open(folder)
    open_model = (lambda c, dtype, place: LearningModel(load_causal_lm(c.folder, dtype))) if whole else open_paged
    models = [open_model(checkpoint, torch.float32, "cpu") for _ in range(2)]
    names = [n for n in checkpoint.names if "proj" in n]
    tops = OnDemand({n: lambda n=n: PATTERN.top(np.abs(checkpoint.tensor(n))) for n in names})  # never all of them at once
    masks = MaskSet.from_arrays(PATTERN, tops, "")
    windows = np.random.default_rng(0).integers(0, 320, (4, 32)).astype(np.int32)
    trainer = BlockTrainer(models[0], windows, windows, CONFIG, masks, models[1])
    trainer.prepare()
    assert trainer.run()
    assert all(w.abs().max() > 0 for w in trainer.collect_weights().values())

recover(Path(sys.argv[1]), False)
before = peak_rss()
recover(Path(sys.argv[2]), sys.argv[3] == "whole")
print((peak_rss() - before) / 1e6)
"""


def write_llama(folder: Path, blocks: int) -> Path:
    """A model of small blocks, about one a file."""
    shape = {"hidden_size": WIDE, "intermediate_size": WIDE, "num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, num_hidden_layers=blocks, max_position_embeddings=64, **shape))
    model.save_pretrained(folder, max_shard_size="1200KB")
    return folder


def test_it_says_the_same_and_is_empty_afterwards(tiny_checkpoint: Path) -> None:
    paged = open_paged(Checkpoint.open(tiny_checkpoint), torch.float32, "cpu")
    whole = LearningModel(load_causal_lm(tiny_checkpoint, torch.float32))
    assert isinstance(paged, PagedModel)
    assert paged.loss(TOKENS, differentiable=False).equal(whole.loss(TOKENS, differentiable=False))
    for name, parameter in paged.model.named_parameters():
        assert parameter.shape == whole.model.get_parameter(name).shape
        assert parameter.untyped_storage().nbytes() == (4 if ".layers." in name else parameter.nbytes)


def test_one_block_is_kept_until_the_next_one_is(tiny_checkpoint: Path) -> None:
    paged = open_paged(Checkpoint.open(tiny_checkpoint), torch.float32, "cpu")
    whole = load_causal_lm(tiny_checkpoint, torch.float32)
    for kept in ("model.layers.0", "model.layers.1", "model.layers.0"):
        paged.keep_block(kept)
        paged.loss(TOKENS, differentiable=False)
        for name, parameter in paged.model.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(name)) == (name.startswith(f"{kept}.") or ".layers." not in name)


@pytest.mark.parametrize("kept", [None, "model.layers.0", "model.layers.1"])
def test_weights_of_another_file_take_the_place_of_the_checkpoints(
    tiny_checkpoint: Path, tmp_path: Path, kept: str | None
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    paged = open_paged(Checkpoint.open(tiny_checkpoint), torch.float32, "cpu")
    whole = LearningModel(load_causal_lm(tiny_checkpoint, torch.float32))
    save_file({name: whole.model.get_parameter(name) * 2}, tmp_path / "block.safetensors")
    if kept is not None:
        paged.keep_block(kept)
    for model in (paged, whole):
        model.take_weights([name], tmp_path / "block.safetensors")
    assert paged.loss(TOKENS, differentiable=False).equal(whole.loss(TOKENS, differentiable=False))


def test_the_dtype_is_the_one_that_was_asked_for(tiny_checkpoint: Path) -> None:
    paged = open_paged(Checkpoint.open(tiny_checkpoint), torch.bfloat16, "cpu")
    whole = LearningModel(load_causal_lm(tiny_checkpoint, torch.bfloat16))
    assert paged.loss(TOKENS, differentiable=False).equal(whole.loss(TOKENS, differentiable=False))


def test_names_that_the_model_does_not_have_are_loaded_whole(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    renamed = {name.replace("model.layers", "layers"): torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.names}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not isinstance(open_paged(Checkpoint.open(tmp_path), torch.float32, "cpu"), PagedModel)
    assert "the whole model is loaded into memory" in caplog.text


def test_the_peak_is_that_of_few_blocks(tmp_path: Path) -> None:
    small, large = write_llama(tmp_path / "small", 2), write_llama(tmp_path / "large", DEEP)
    size = sum(file.stat().st_size for file in large.glob("*.safetensors")) / 1e6
    assert json.loads((large / "config.json").read_text())["num_hidden_layers"] == DEEP

    def peak(how: str) -> float:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", MEASURE, str(small), str(large), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        return float(done.stdout.splitlines()[-1])

    on_disk, whole = peak("paged"), peak("whole")
    assert whole > 1.6 * size  # two models
    assert on_disk < 0.3 * size, (on_disk, whole, size)
