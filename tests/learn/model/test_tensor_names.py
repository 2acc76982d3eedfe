"""Weights are found under their checkpoint's names, whatever transformers renames and stacks; wrong ones are not taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_families import write_family
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

PATTERN = NMPattern(2, 4)


def open_family(name: str, folder: Path) -> tuple[LearningModel, Checkpoint]:
    write_family(name, folder)
    return LearningModel(load_causal_lm(folder, torch.float32)), Checkpoint.open(folder)


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "nemotron_h", "jamba", "deepseek_v2", "lfm2_moe", "minimax", "gpt2"])
def test_every_layer_is_found_and_is_its_tensor(family: str, tmp_path: Path) -> None:
    model, checkpoint = open_family(family, tmp_path / "m")
    names = find_tensors(model, checkpoint)
    layers = prunable_layers(model.model, PATTERN, None, None)
    assert set(layers) <= set(names)
    assert len({names[name] for name in layers}) == len(layers)
    for name, layer in layers.items():
        weight = layer.weight.t() if name in model.transposed else layer.weight
        np.testing.assert_array_equal(checkpoint.tensor(names[name]), weight.numpy())


def test_a_part_of_a_tensor_is_not_found(tmp_path: Path) -> None:
    model, checkpoint = open_family("granitemoe", tmp_path / "m")
    names = find_tensors(model, checkpoint)
    found = {name for name in prunable_layers(model.model, PATTERN, None, None) if name in names}
    assert {name.split(".")[3] for name in found} == {"self_attn"}


def test_a_renamed_tensor_with_other_values_is_not_taken(tmp_path: Path) -> None:
    model, checkpoint = open_family("mixtral", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    gate, up = (f"model.layers.0.block_sparse_moe.experts.1.{name}.weight" for name in ("w1", "w3"))
    weights[gate], weights[up] = weights[up], weights[gate]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    lost = find_tensors(model, checkpoint)
    assert {gate, up} == set(checkpoint.names) - set(lost.values())


def test_names_without_the_first_part_are_found(tmp_path: Path) -> None:
    write_family("gpt2", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    short = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    save_file(short, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    model = LearningModel(load_causal_lm(tmp_path / "m", torch.float32))
    names = find_tensors(model, Checkpoint.open(tmp_path / "m"))
    assert names["transformer.h.0.attn.c_attn.weight"] == "h.0.attn.c_attn.weight"
