r"""MaskPro as published (arXiv 2506.12876): one sample a step, the loss residual against the initial mask, a moving average.

    r_t = f(m_t; ξ_t) - f(m_0; ξ_t),   δ ← 0.99 δ + 0.01 r_t,   θ ← θ - η (r_t - δ) ∂ log p(m_t)/∂θ

with Plackett-Luce masks, θ = 10 · m_0 at the start, and η = 50, constant. Its batches were 32 sequences of 128 tokens (`--window
128 --batch-tokens 4096`). It differs from the authors' program where that is wrong: the score is exact for all logits, every
chosen layer takes part, f(m_0) belongs to the batch at hand, and any N:M works. Kept as a reference: at these logits a group
leaves the initial mask with a probability of 1.4e-4 a step, so next to nothing is explored.

The residual lowers the variance for as long as no mask halves the loss of m_0 (`docs/theory.md`). With `--renew-initial` a step
whose sample does ends with the argmax mask as the new m_0, and with δ = 0: the average belonged to the old one.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.planes import centre
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.estimators.maskpro import move_by_scores
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

_STRENGTH = 10.0  # of the initial logits
_TRACKED = 0.99  # what a step leaves of the moving average
_HALVED = 0.5  # of the initial mask's loss: from here on the residual can have more variance than the loss itself


class MaskProPaperEstimator(Estimator):
    """See the module; the initial masks are the prior's until they are renewed. Ranks exchange losses alone."""

    shares_batch = False

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._tracker, self._renewed = 0.0, 0
        self._initial = {site.name: site.kept for site in sites}
        self._masks = self._initial  # what `draw_mask` gives
        for site in sites:
            for _, chunk in site.chunks():
                mask = site.planes(site.kept, chunk)
                site.logits[:, chunk] = centre(mask.float().mul_(_STRENGTH), site.family.pattern.n).half()

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Try the initial mask and one sample on the batch."""
        set_mode(self._sites, Mode.SAMPLE)
        keys = {site.name: site.key(self._config.seed, step) for site in self._sites}
        tried = (self._initial, {site.name: site.sample(1.0, keys[site.name]) for site in self._sites})
        losses = [0.0, 0.0]
        for turn in range(2)[self._ranks.share(2)]:
            self._masks = tried[turn]
            losses[turn] = self._try_masks(windows, step)
        losses, self._masks = self._ranks.sum_numbers(losses), tried[1]
        residual = losses[1] - losses[0]
        self._tracker = _TRACKED * self._tracker + (1 - _TRACKED) * residual
        rate = self._config.rate * (residual - self._tracker)
        for site in self._sites:
            move_by_scores(site, [self._masks[site.name]], [1.0], temperature=1.0, rate=rate, key=keys[site.name])
        self._metrics = {"residual": residual, "tracker": self._tracker, "renewed": float(self._renewed)}
        if self._config.renew_initial and losses[1] <= _HALVED * losses[0]:
            self._renew()
        return torch.tensor(losses[1], dtype=torch.float64)

    def _renew(self) -> None:
        """Take the argmax masks as the initial ones."""
        self._initial = {site.name: site.kept for site in self._sites}
        self._tracker, self._renewed = 0.0, self._renewed + 1

    def draw_mask(self, site: Site) -> Tensor:
        return self._masks[site.name]

    def tensors(self) -> dict[str, Tensor]:
        renewed = {f"initial/{name}": bits for name, bits in self._initial.items()} if self._renewed else {}
        return super().tensors() | renewed

    def numbers(self) -> dict[str, Any]:
        return {"tracker": self._tracker, "renewed": self._renewed}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().restore(tensors, numbers)
        self._tracker, self._renewed = float(numbers["tracker"]), int(numbers["renewed"])
        if self._renewed:
            self._initial = {s.name: tensors[f"initial/{s.name}"].to(s.kept.device) for s in self._sites}
