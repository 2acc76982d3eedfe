"""Low-rank adapters in the format PEFT documents, and recovery runs of a tiny sparse model in memory.

Weights and factors are multiples of a power of two, and small: their products and sums are exact in float32 in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from tiny_model import magnitude_masks

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.recovery.lora import LoraRecovery
from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

Floats = npt.NDArray[np.float32]
PATTERN = NMPattern(2, 4)
SMALL: dict[str, Any] = {"window": 32, "batch_tokens": 128, "heldout_tokens": 512, "evaluations": 2, "dtype": "float32"}
WINDOWS = np.random.default_rng(0).integers(0, 320, (16, 32)).astype(np.int32)


def draw(seed: int, *shape: int) -> Floats:
    """Multiples of 1/8 between -1/2 and 1/2."""
    return (np.random.default_rng(seed).integers(-4, 5, shape) / 8).astype(np.float32)


def make_factors(weights: Mapping[str, tuple[int, ...]], rank: int = 4) -> dict[str, tuple[Floats, Floats]]:
    """A (R, C) and B (O, R) for modules whose weights have these shapes."""
    numbered = enumerate(weights.items())
    return {module: (draw(2 * i, rank, columns), draw(2 * i + 1, rows, rank)) for i, (module, (rows, columns)) in numbered}


def write_adapter(folder: Path, factors: Mapping[str, tuple[Floats, Floats]], *, name: str = "", **config: Any) -> Path:
    """An adapter folder as PEFT writes it; a setting of None is left out, `name` is that of the adapter in memory."""
    folder.mkdir(parents=True)
    dot = f".{name}" if name else ""
    tensors = {
        f"base_model.model.{module}.lora_{side}{dot}.weight": x
        for module, pair in factors.items()
        for side, x in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    usual = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "bias": "none", "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.05, "target_modules": sorted({m.rpartition(".")[2] for m in factors}), "use_dora": False,
        "use_rslora": False, "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "inference_mode": True, "megatron_core": "megatron.core", "qalora_group_size": 16,
    }  # fmt: skip
    content = {key: value for key, value in {**usual, **config}.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def write_sparse(tiny: Path, out: Path) -> Path:
    """The tiny checkpoint with weights that are multiples of 1/64, under masks by magnitude."""
    rounded = out.with_name(f"{out.name}-dense")
    rounded.mkdir(parents=True)
    for file in tiny.iterdir():
        (rounded / file.name).write_bytes(file.read_bytes())
    weights = {name: np.round(x * 64).astype(np.float32) / 64 for name, x in load_file(tiny / "model.safetensors").items()}
    save_file(weights, rounded / "model.safetensors", metadata={"format": "pt"})
    dense = Checkpoint.open(rounded)
    save_sparse(dense, magnitude_masks(dense, PATTERN), out, {})
    return out


def start(model: LearningModel, masks: MaskSet, **settings: Any) -> tuple[RecoveryTrainer, LoraRecovery]:
    """A run with `--method lora` that is ready for its first step; by default of no step, on cross-entropy."""
    config = RecoverConfig(**{"method": "lora", "steps": 0, "objective": "ce", **SMALL, **settings})
    trainer = RecoveryTrainer(model, WINDOWS, WINDOWS[:4], config, masks, None)
    trainer.prepare()
    assert isinstance(trainer.method, LoraRecovery)
    return trainer, trainer.method


def start_tiny(sparse: Path, **settings: Any) -> tuple[RecoveryTrainer, LoraRecovery, MaskSet]:
    """The same with a checkpoint's model and masks."""
    masks = Checkpoint.open(sparse).masks
    assert masks is not None
    dtype = getattr(torch, str(settings.get("dtype", "float32")))
    return *start(LearningModel(load_causal_lm(sparse, dtype)), masks, **settings), masks
