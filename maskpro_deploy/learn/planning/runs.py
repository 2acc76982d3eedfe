"""What a plan has to know of a run: which layers are masked, what a step does, and a real trainer for a tiny model.

Shapes: `W` windows, `T` tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.dense_layers import split_layers
from maskpro_deploy.learn.loop import TrainingLoop
from maskpro_deploy.learn.model.model import LearningModel, Windows, prunable_layers
from maskpro_deploy.learn.recovery.config import WEIGHTS, RecoverConfig
from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer
from maskpro_deploy.learn.run_config import RunConfig
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern

# a run as short as there is; `budget_s` and `tokens` are the other limits
_SHORT: dict[str, Any] = {
    "window": 8, "batch_tokens": 8, "calibration_tokens": 8, "heldout_tokens": 8, "steps": 1, "budget_s": None, "tokens": None,
}  # fmt: skip


class PlannedRun(Protocol):
    """One kind of run, as far as a plan goes."""

    @property
    def config(self) -> RunConfig:
        """Its settings."""

    @property
    def pattern(self) -> NMPattern:
        """Of its masks."""

    @property
    def backward(self) -> bool:
        """Whether activations are kept for a backward pass."""

    @property
    def by_block(self) -> bool:
        """Whether they are kept for one block at a time."""

    @property
    def copies(self) -> int:
        """Of the batch that go through the model side by side."""

    @property
    def collects_gradients(self) -> bool:
        """Whether those of all layers are held until the end of a step, in float32."""

    @property
    def products(self) -> int:
        """Matrix products of every layer in a step, a forward pass being one; a teacher's included."""

    @property
    def trains_weights(self) -> bool:
        """Whether the weights under masks change, and go into the result."""

    @property
    def moves_vectors(self) -> bool:
        """Whether scales of norms and biases are trained, too."""

    @property
    def rank(self) -> int:
        """Of the low-rank deltas of layers that are trained; 0 for none."""

    def list_layers(self, model: LearningModel, tensors: Mapping[str, str]) -> dict[str, nn.Linear]:
        """The masked layers by weight name in the model; `tensors` is what weights are called in the checkpoint."""

    def count_teacher_weights(self, parameters: int, prunable: int) -> int:
        """Weights of the dense model that are held apart, of all in the model and of those under masks."""

    def open_tiny(self, model: LearningModel, teacher: LearningModel, windows: Windows, store: StateStore | None) -> TrainingLoop:
        """A trainer for a short run on a tiny model, and what it needs before the first step; `teacher` has the same weights.

        # windows (W, T)
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLearning:
    """A run of `learn`."""

    config: LearnConfig
    moves_vectors: bool = False

    @property
    def pattern(self) -> NMPattern:
        return self.config.pattern

    @property
    def backward(self) -> bool:
        return self.config.estimator_choice.backward

    @property
    def by_block(self) -> bool:
        return self.config.estimator_choice.by_block

    @property
    def copies(self) -> int:
        return self.config.estimator_choice.copies

    @property
    def collects_gradients(self) -> bool:
        return self.config.estimator_choice.collects_gradients

    @property
    def products(self) -> int:
        estimator = self.config.estimator_choice
        taught = self.config.objective_choice.teacher_share > 0
        return estimator.products + estimator.products_per_sample * self.config.samples + taught

    @property
    def trains_weights(self) -> bool:
        return self.config.trains_weights

    def list_layers(self, model: LearningModel, tensors: Mapping[str, str]) -> dict[str, nn.Linear]:
        layers, _ = split_layers(model.model, self.config, tensors)
        self.config.estimator_choice.load().check_model(model.model, layers)
        return layers

    @property
    def rank(self) -> int:
        return self.config.rank if self.config.weights_choice.by_deltas else 0

    def count_teacher_weights(self, parameters: int, prunable: int) -> int:
        return prunable if self.config.trains_weights else 0

    def open_tiny(self, model: LearningModel, teacher: LearningModel, windows: Windows, store: StateStore | None) -> TrainingLoop:
        settings = dataclasses.replace(
            self.config, **_SHORT, prior="magnitude", prior_update=False, prior_inputs="auto", refine=False, include=None,
            exclude=None, dense_layers=None, dense_share=None,
        )  # fmt: skip
        trainer = Trainer(model, windows, windows, settings, store)
        trainer.prepare()
        return trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRecovery:
    """A run of `recover`: on the layers that the checkpoint has masks for, or on those that `learning` would give one."""

    config: RecoverConfig
    learning: LearnConfig
    masks: MaskSet | None = None  # the checkpoint's own, under its names
    backward: bool = True
    copies: int = 1
    collects_gradients: bool = False
    trains_weights: bool = True

    @property
    def pattern(self) -> NMPattern:
        return self.learning.pattern if self.masks is None else self.masks.pattern

    @property
    def by_block(self) -> bool:
        return self.config.method_choice.by_block

    @property
    def products(self) -> int:
        return self.config.method_choice.products + self.config.needs_teacher

    @property
    def moves_vectors(self) -> bool:
        return self.config.train != WEIGHTS

    @property
    def rank(self) -> int:
        return self.config.rank if self.config.method == "lora" else 0

    def list_layers(self, model: LearningModel, tensors: Mapping[str, str]) -> dict[str, nn.Linear]:
        if self.masks is None:
            return split_layers(model.model, self.learning, tensors)[0]
        linear = {f"{name}.weight": m for name, m in model.model.named_modules() if isinstance(m, nn.Linear)}
        return {own: linear[own] for own, theirs in tensors.items() if own in linear and theirs in self.masks}

    def count_teacher_weights(self, parameters: int, prunable: int) -> int:
        return parameters if self.config.needs_teacher else 0

    def open_tiny(self, model: LearningModel, teacher: LearningModel, windows: Windows, store: StateStore | None) -> TrainingLoop:
        settings = dataclasses.replace(self.config, **_SHORT)
        layers = prunable_layers(model.model, self.pattern, None, None)
        sizes = {name: layer.weight.abs().float().cpu().numpy() for name, layer in layers.items()}
        masks = MaskSet.from_arrays(self.pattern, {name: self.pattern.top(size) for name, size in sizes.items()}, "")
        kind: type[RecoveryTrainer] = self.config.method_choice.load_trainer()
        trainer = kind(model, windows, windows, settings, masks, teacher if self.config.needs_teacher else None, store)
        trainer.prepare()
        return trainer


def make_windows(count: int = 2) -> Windows:
    """Some windows of a tiny model's length.  # (W, T)"""
    return np.zeros((count, _SHORT["window"]), dtype=np.int32)


def make_tiny(pattern: NMPattern, device: str, dtype: torch.dtype, scale: int) -> LearningModel:
    """One small random block, the same every time; `scale`: hidden size, in groups of M weights times two heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = 2 * pattern.m * scale
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 2, "num_key_value_heads": 2}
    tiny = LlamaConfig(vocab_size=32, num_hidden_layers=1, max_position_embeddings=64, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LearningModel(LlamaForCausalLM(tiny).to(device, dtype).eval())
