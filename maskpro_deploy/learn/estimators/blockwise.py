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
from maskpro_deploy.learn.estimators.base import Windows, early_check
from maskpro_deploy.learn.estimators.pathwise import draw
from maskpro_deploy.learn.kernels.fused import site_step, tell_if_changed
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Mode, Site


class BlockwiseEstimator:
    """See the module.

    Args:
        config: the settings.
        model: the model whose layers the sites are.
        sites: all of them; their distribution is a conditional Bernoulli one.

    Raises:
        InputError: the model is not built of one list of blocks.
    """

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site]) -> None:
        self._config, self._model, self._sites = config, model, sites
        self._stream = BlockStream(model, [])
        members = {block: [s for s in sites if s.name.startswith(f"{block}.")] for block in self._stream.blocks}
        self._members = {block: found for block, found in members.items() if found}
        self._place = 0
        self._optimizer = LogitOptimizer()
        self._site_step = site_step(sites[0].family, model.head.device)
        self._step, self._temperature = 0, 0.0
        for site in sites:
            site.draw, site.on_gradient = self._draw, self._move

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """One step of the block whose turn it is; the loss is its relative error."""
        turn = (1 - left) * len(self._members)
        place = min(int(turn), len(self._members) - 1)
        if place != self._place:  # the moments of a finished block are not needed again
            self._place, self._optimizer = place, LogitOptimizer()
        left_here = min(1.0, max(0.0, 1 - (turn - place)))
        self._optimizer.begin(self._config.rate * left_here)
        self._step, self._temperature = step, self._config.temperature * left_here
        block = list(self._members)[place]
        loss = self._error(windows, block)
        value = early_check(loss, step, self._model, windows)
        self._model.backward(loss)
        self._mode(Mode.ARGMAX, self._members[block])
        return value

    def _error(self, windows: Windows, block: str) -> Tensor:
        """The relative error of a block under its masks.  # (B, T) -> scalar"""
        with torch.no_grad():
            self._mode(Mode.ARGMAX, self._sites)
            start = self._stream.embedded(self._model.tokens(windows))
            masked = self._run_to(block, start)
            self._mode(Mode.DENSE, self._sites)
            dense = self._run_to(block, start)
            target = self._stream.run(block, dense)
            scale = (target - dense).float().square().mean()
        self._mode(Mode.SAMPLE if self._temperature > 0 else Mode.ARGMAX, self._members[block])
        output = self._stream.run(block, masked.detach().requires_grad_())
        return (output - target).float().square().mean() / scale

    def _run_to(self, block: str, state: Tensor) -> Tensor:
        """The states that go into a block.  # (B, T, D) -> (B, T, D)"""
        for name in self._stream.blocks:
            if name == block:
                break
            state = self._stream.run(name, state)
        return state

    def _mode(self, mode: Mode, sites: Sequence[Site]) -> None:
        for site in sites:
            site.mode = mode

    def _draw(self, site: Site) -> Tensor:
        return draw(site, self._temperature, site.key(self._config.seed, self._step))

    def _move(self, site: Site, grad_weight: Tensor) -> None:
        """Turn the gradient of a masked weight into a step of its logits.  # (O, C)"""
        self._site_step(self._optimizer, site, grad_weight, site.key(self._config.seed, self._step))

    def tensors(self) -> dict[str, Tensor]:
        """Logits, and the moments of the block at work."""
        return {f"logits/{s.name}": s.logits for s in self._sites} | self._optimizer.tensors()

    def numbers(self) -> dict[str, Any]:
        """The optimiser's step, which block is at work, and by what logits are moved."""
        return {"optimizer_step": self._optimizer.step, "block": self._place, "moved_by": self._site_step.moved_by}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        tell_if_changed(self._site_step, numbers)
        self._place, self._optimizer = int(numbers["block"]), LogitOptimizer()
        self._optimizer.step = int(numbers["optimizer_step"])
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()
            self._optimizer.restore(site.name, tensors, site.logits.device)

    def metrics(self) -> dict[str, float]:
        """Which block is at work."""
        return {"block": float(self._place)}
