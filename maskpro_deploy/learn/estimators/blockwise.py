"""Learning block by block: the masks of one transformer block at a time, against the outputs of the dense block.

Two streams of hidden states run up to the block, without gradients: through the dense model, and through the model with the masks
so far (learned in the blocks before). What is minimised is the block's error relative to what the dense block adds,

    ‖ block(x; W∘m) - block(y; W) ‖² / ‖ block(y; W) - y ‖²,      x from the masked stream, y from the dense one,

so each block also makes up for the errors of those before it. The gradient goes through that block alone, by the pathwise way
(`pathwise`): activations, masked weights and moments exist for one block at a time, and the output head is not needed. All blocks
get the same share of the limit, in order, each with a learning rate that decays to 0. Layers outside the blocks keep the prior's
masks.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.estimators.pathwise import PathwiseEstimator
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site


class BlockwiseEstimator(PathwiseEstimator):
    """See the module; the loss of the whole model is not used."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._stream = BlockStream(model, [])
        members = {block: [s for s in sites if s.name.startswith(f"{block}.")] for block in self._stream.blocks}
        self._members = {block: inside for block, inside in members.items() if inside}
        self._place = 0

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """One step of the block whose turn it is; the loss is its relative error."""
        turn = (1 - left) * len(self._members)
        place = min(int(turn), len(self._members) - 1)
        if place != self._place:  # the moments of a finished block are not needed again
            self._place, self._optimizer = place, LogitOptimizer()
        self._begin(step, min(1.0, max(0.0, 1 - (turn - place))))
        block = self._block
        value = self._learn_backward(self._error(windows, block), windows, step)
        set_mode(self._members[block], Mode.ARGMAX)
        return value

    @property
    def _block(self) -> str:
        """The block at work."""
        return list(self._members)[self._place]

    def needs_gradient(self, site: Site) -> bool:
        return site.name.startswith(f"{self._block}.")

    def _error(self, windows: Windows, block: str) -> Tensor:
        """The relative error of a block under its masks.  # (B, T) -> scalar"""
        with torch.no_grad():
            set_mode(self._sites, Mode.ARGMAX)
            start = self._stream.embed(self._model.tokens(windows))
            masked = self._run_to(block, start)
            set_mode(self._sites, Mode.DENSE)
            dense = self._run_to(block, start)
            target = self._stream.run(block, dense)
            scale = (target - dense).float().square().mean()
        set_mode(self._members[block], self._hard_mode)
        output = self._stream.run(block, masked.detach().requires_grad_())
        return (output - target).float().square().mean() / scale

    def _run_to(self, block: str, state: Tensor) -> Tensor:
        """The states that go into a block.  # (B, T, D) -> (B, T, D)"""
        for name in self._stream.blocks:
            if name == block:
                break
            state = self._stream.run(name, state)
        return state

    def numbers(self) -> dict[str, Any]:
        return {**super().numbers(), "block": self._place}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().restore(tensors, numbers)
        self._place = int(numbers["block"])

    def metrics(self) -> dict[str, float]:
        return {"block": float(self._place)}
