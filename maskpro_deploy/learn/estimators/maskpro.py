r"""MaskPro's policy gradient on the model's loss, made good: forward passes only.

    ∂E[f(m)]/∂θ = E[(f(m) - b) ∂ log p(m)/∂θ]        for any b that does not depend on m (arXiv 2506.12876)

Here f is the loss of one batch. Against the published form (`maskpro_paper`): several samples a batch, all on the same batch, so
that its difficulty cancels; antithetic pairs; baselines from the other pairs; a temperature that sends a given share of groups
away from the argmax mask, less and less of them; on request, exploration of one part of the layers at a time. Samples are never
stored: the keys of their random numbers draw them again when the gradient is formed.

What this cannot change: one number is learned a sample, about all groups that left the argmax mask in it. The measured ratio of
signal to noise is in the log.

Shapes: `K` samples, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.estimators.exploration import advantages, move_by_scores, signal_to_noise, temperature_for
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Mode, Site, set_mode

_SPREAD_DECAY = 0.9  # of the running mean square of the advantages


class MaskProEstimator(Estimator):
    """See the module."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._spread = 0.0
        self._step, self._sample, self._temperature = 0, 0, 0.0  # what `draw_mask` draws

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Try some masks on the batch and move the logits by what they gave."""
        active = self._active(step)
        set_mode(self._sites, Mode.ARGMAX)
        argmax_loss = self._try_masks(windows, step)
        self._step, self._temperature = step, temperature_for(active, self._config.flip_rate * left) if left > 0 else 0.0
        if self._temperature <= 0:
            return torch.tensor(argmax_loss, dtype=torch.float64)
        set_mode(active, Mode.SAMPLE)
        losses = []
        for sample in range(self._config.samples):
            self._sample = sample
            losses.append(self._try_masks(windows, step))
        gram = self._move(active, advantages(losses, argmax_loss), self._config.rate * left)
        excess = sum(losses) / len(losses) - argmax_loss
        self._metrics = {"temperature": self._temperature, "signal_to_noise": signal_to_noise(gram), "sample_excess": excess}
        return torch.tensor(losses, dtype=torch.float64).mean()

    def _active(self, step: int) -> Sequence[Site]:
        """The part of the sites that this step samples: parts are runs of neighbouring layers, taken in turn."""
        parts = min(self._config.parts, len(self._sites))
        part = step % parts
        return self._sites[part * len(self._sites) // parts : (part + 1) * len(self._sites) // parts]

    def draw_mask(self, site: Site) -> Tensor:
        return self._draw(site, self._sample)

    def _draw(self, site: Site, sample: int) -> Tensor:
        """A sample of this step; 2i and 2i + 1 are an antithetic pair."""
        return site.sample(self._temperature, site.key(self._config.seed, self._step, sample // 2), mirrored=bool(sample % 2))

    def _move(self, active: Sequence[Site], gains: Sequence[float], rate: float) -> Tensor:
        """Move the logits by the samples' advantages, relative to their usual size; inner products as of `move_by_scores`."""
        count = len(gains)
        square = sum(a * a for a in gains) / count
        self._spread = square if self._spread == 0 else _SPREAD_DECAY * self._spread + (1 - _SPREAD_DECAY) * square
        weights = [a / max(self._spread**0.5, 1e-12) / count**0.5 for a in gains]
        gram = torch.zeros(count, count, dtype=torch.float64)
        for site in active:
            samples = [self._draw(site, sample) for sample in range(count)]
            key = site.key(self._config.seed, self._step)
            gram += move_by_scores(site, samples, weights, temperature=self._temperature, rate=rate, key=key)
        return gram

    def numbers(self) -> dict[str, Any]:
        return {"advantage_spread": self._spread}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().restore(tensors, numbers)
        self._spread = float(numbers["advantage_spread"])
