"""Recovery block by block: the kept weights of one transformer block at a time, against the outputs of the dense block.

Two streams of hidden states over the calibration text go through the models: y through the dense one, x through the sparse one as
it is behind the blocks recovered so far. With `--refit` the kept weights of a block are refitted first, layer by layer (`refit`).
Adam moves them all together against the block's error, relative to the dense outputs token by token,

    mean over tokens of  ‖ block(x; W) - block(y; V) ‖² / ‖ block(y; V) ‖²,

attention and activations included, so each block also makes up for the errors of those before it. Then both streams move on. The
norms in front of the layers that follow see each token relative to its length, too; without that, the few tokens of huge
activations that many models have would be all that counts.

Weights, activations and moments are those of one block at a time, and no output head is needed. `block_trainer` says when which
block has its turn, and where the weights of the others are.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.kernels.kept_weights import WeightOptimizer, weight_schedule
from maskpro_deploy.learn.kernels.weight_step import move_weights
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.masked_linear import MaskedLinear
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.recovery.method import Method
from maskpro_deploy.learn.recovery.refit import refit_block

_TINY = 1e-30


class BlockRecovery(Method):
    """See the module. `place` is the number of the block at work, -1 before the first; its masked layers come with `begin`."""

    def __init__(self, config: RecoverConfig, model: LearningModel, layers: Sequence[MaskedLinear], loss: StepLoss) -> None:
        super().__init__(config, model, layers, loss)
        self.place, self._turns = -1, 0  # and the steps that the block at work has had
        self._passed = 0  # tokens that went through a block
        self._targets: list[Tensor] = []  # the dense block's outputs (B, T, D)
        self._start: dict[str, Tensor] = {}
        self._optimizer = WeightOptimizer(decay=config.weight_decay)
        self.moved = 0.0  # squared length of what was added to finished blocks

    def open(self, sparse: BlockStream, dense: BlockStream) -> None:
        """Take both streams, which are in front of the first block."""
        self._sparse, self._dense = sparse, dense
        self.blocks = list(sparse.blocks)

    @property
    def block(self) -> str:
        """The block at work, by module name."""
        return self.blocks[self.place]

    def begin(self, place: int, layers: Sequence[MaskedLinear], *, refit: bool = True) -> None:
        """Turn to a block, which both streams have reached; its layers have weights of their own, and `refit` allows a refit."""
        self.place, self._turns, self._sites = place, 0, layers
        self._optimizer = WeightOptimizer(decay=self._config.weight_decay)
        self._start = self.values()
        for layer in layers:
            layer.hook = self
        with torch.no_grad():
            self._targets = [self._dense.run(self.block, state) for state in self._dense.states]
            if refit and self._config.refit:
                refit_block(self.block, {layer.name: layer for layer in layers}, self._sparse, self._dense)
                self._passed += sum(math.prod(state.shape[:2]) for state in self._sparse.states)

    def finish(self) -> float:
        """Let both streams pass the block at work; returns its relative error."""
        self.moved += self.measure_move()
        self._sparse.move_on(self.block)
        self._dense.states = self._targets
        errors = [measure_error(x, y) for x, y in zip(self._sparse.states, self._targets, strict=True)]
        tokens = [math.prod(y.shape[:2]) for y in self._targets]
        return sum(float(e) * n for e, n in zip(errors, tokens, strict=True)) / sum(tokens)

    def pass_by(self, place: int) -> None:
        """Let both streams pass a block that was finished in an earlier run."""
        self.place = place
        self._sparse.move_on(self.block)
        self._dense.move_on(self.block)

    def next_batch(self) -> int:
        """Which batch of the streams the next step sees: every epoch of a block shuffles again."""
        count = len(self._targets)
        epoch, within = divmod(self._turns, count)
        return int(np.random.default_rng((self._config.seed, self.place, epoch)).permutation(count)[within])

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """One step of the block at work, on the states of `next_batch`; the loss is its relative error."""
        number = self.next_batch()
        done = (1 - left) * len(self.blocks) - self.place  # share of the block's turn
        self._optimizer.begin(self._config.rate * weight_schedule(min(1.0, max(0.0, 1 - done))))
        output = self._sparse.run(self.block, self._sparse.states[number].detach().requires_grad_())
        loss = measure_error(output, self._targets[number])
        self._turns += 1
        self._passed += math.prod(output.shape[:2])
        return self._learn_backward(loss, windows, step)

    def take_gradient(self, site: MaskedLinear, grad_weight: Tensor) -> None:
        move_weights(self._optimizer, site, grad_weight, site.kept, site.key(self._config.seed, self._optimizer.step))

    @property
    def tokens(self) -> int:
        """Tokens that went through a block, divided by the number of blocks: as if through the whole model."""
        return self._passed // len(self.blocks)

    def measure_move(self) -> float:
        """Squared length of what was added to the weights of the block at work."""
        return sum(float((x.float() - self._start[n].float()).square().sum()) for n, x in self.values().items())

    def values(self) -> dict[str, Tensor]:
        return {f"weight/{layer.name}": layer.weight.clone() for layer in self._sites}

    def weights_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("weight/"): value for name, value in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        start = {f"start/{name}": x for name, x in self._start.items()}
        return {f"now/{name}": x for name, x in self.values().items()} | start | self._optimizer.tensors()

    def numbers(self) -> dict[str, Any]:
        own = {"place": self.place, "turns": self._turns, "passed": self._passed, "moved": self.moved}
        return {**own, "weights_step": self._optimizer.step}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._turns, self._passed = int(numbers["turns"]), int(numbers["passed"])
        self.moved, self._optimizer.step = float(numbers["moved"]), int(numbers["weights_step"])
        for layer in self._sites:
            layer.weight.copy_(tensors[f"now/weight/{layer.name}"])
            self._start[f"weight/{layer.name}"] = tensors[f"start/weight/{layer.name}"].to(layer.weight.device)
            self._optimizer.restore(layer.name, tensors, layer.weight.device)

    def metrics(self) -> dict[str, float]:
        return {"block": float(self.place)}


def measure_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared distance relative to the targets, token by token, mean over all.  # (B, T, D) each -> scalar"""
    distance = (outputs - targets).float().square().sum(-1)
    return (distance / targets.float().square().sum(-1).clamp_min(_TINY)).mean()
