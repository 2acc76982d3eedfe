r"""MaskPro as published (arXiv 2506.12876): one sample a step, the loss residual against the initial mask, a moving average.

    r_t = f(m_t; ξ_t) - f(m_0; ξ_t),   δ ← 0.99 δ + 0.01 r_t,   θ ← θ - η (r_t - δ) ∂ log p(m_t)/∂θ

with Plackett-Luce masks, θ = 10 · m_0 at the start, and η = 50, constant. Its batches were 32 sequences of 128 tokens (`--window
128 --batch-tokens 4096`). It differs from the authors' program where that is wrong: the score is exact for all logits, every
chosen layer takes part, f(m_0) belongs to the batch at hand, and any N:M works. Kept as a reference: at these logits a group
leaves the initial mask with a probability of 1.4e-4 a step, so next to nothing is explored.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.packed import pack, unpack
from maskpro_deploy.learn.distributions.top_n import centred
from maskpro_deploy.learn.estimators.base import Windows, check_loss
from maskpro_deploy.learn.estimators.pathwise import draw
from maskpro_deploy.learn.estimators.step_loss import StepLoss
from maskpro_deploy.learn.kernels.half_logits import noise, store
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Mode, Site

_STRENGTH = 10.0  # of the initial logits
_TRACKED = 0.99  # what a step leaves of the moving average


class MaskProPaperEstimator:
    """See the module.

    Args:
        config: the settings.
        model: the model whose layers the sites are.
        sites: all of them.
        loss: the objective.
    """

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        self._config, self._model, self._sites, self._loss = config, model, sites, loss
        self._tracker = 0.0
        self._metrics: dict[str, float] = {}
        self._initial = {site.name: site.kept for site in sites}
        for site in sites:
            for _, chunk in site.chunks():
                mask = self._planes(site, site.kept, chunk)
                site.logits[:, chunk] = centred(mask.float().mul_(_STRENGTH), site.family.pattern.n).half()

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Try one sample and the initial mask on the batch."""
        losses = {}
        for name, chosen in (("initial", self._first), ("sample", lambda site: self._draw(site, step))):
            for site in self._sites:
                site.mode, site.draw = Mode.SAMPLE, chosen
            losses[name] = check_loss(float(self._loss(windows, differentiable=False)), step, self._model, windows)
        residual = losses["sample"] - losses["initial"]
        self._tracker = _TRACKED * self._tracker + (1 - _TRACKED) * residual
        for site in self._sites:
            self._move(site, step, residual - self._tracker)
        self._metrics = {"residual": residual, "tracker": self._tracker}
        return torch.tensor(losses["sample"], dtype=torch.float64)

    def _first(self, site: Site) -> Tensor:
        return self._initial[site.name]

    def _draw(self, site: Site, step: int) -> Tensor:
        return draw(site, 1.0, site.key(self._config.seed, step))

    def _planes(self, site: Site, bits: Tensor, chunk: slice) -> Tensor:
        m = site.family.pattern.m
        return unpack(bits[site.bits_of(chunk)], (chunk.stop - chunk.start) * m).view(-1, m).t().contiguous()

    def _move(self, site: Site, step: int, advantage: float) -> None:
        drawn, kept = self._draw(site, step), torch.empty_like(site.kept)
        for number, chunk in site.chunks():
            logits = site.logits[:, chunk].float()
            score = site.family.score(logits, self._planes(site, drawn, chunk))
            moved = logits.sub_(score, alpha=self._config.rate * advantage)
            dither = noise((moved.shape[0], moved.shape[1]), site.key(self._config.seed, step) + number * 7919, moved.device)
            kept[site.bits_of(chunk)] = pack(store(site.logits[:, chunk], moved, site.family.pattern.n, dither))
        site.kept = kept

    def tensors(self) -> dict[str, Tensor]:
        """The logits; the initial masks are the prior's, which a resumed run computes again."""
        return {f"logits/{s.name}": s.logits for s in self._sites}

    def numbers(self) -> dict[str, Any]:
        """The moving average."""
        return {"tracker": self._tracker}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._tracker = float(numbers["tracker"])
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()

    def metrics(self) -> dict[str, float]:
        """Residual and moving average."""
        return self._metrics
