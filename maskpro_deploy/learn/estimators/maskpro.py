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
from maskpro_deploy.learn.distributions.packed import pack, unpack
from maskpro_deploy.learn.estimators.base import Windows, check_loss
from maskpro_deploy.learn.estimators.exploration import advantages, signal_to_noise, temperature_for
from maskpro_deploy.learn.estimators.pathwise import draw
from maskpro_deploy.learn.estimators.step_loss import StepLoss
from maskpro_deploy.learn.kernels.half_logits import noise, store
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Mode, Site

_SPREAD_DECAY = 0.9  # of the running mean square of the advantages


class MaskProEstimator:
    """See the module.

    Args:
        config: the settings.
        model: the model whose layers the sites are.
        sites: all of them.
        loss: the objective.
    """

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        self._config, self._model, self._sites, self._loss = config, model, sites, loss
        self._spread = 0.0
        self._metrics: dict[str, float] = {}

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Try some masks on the batch and move the logits by what they gave."""
        active = self._active(step)
        for site in self._sites:
            site.mode = Mode.ARGMAX
        argmax_loss = check_loss(float(self._loss(windows, differentiable=False)), step, self._model, windows)
        temperature = temperature_for(active, self._config.flip_rate * left) if left > 0 else 0.0
        if temperature <= 0:
            return torch.tensor(argmax_loss, dtype=torch.float64)
        losses = []
        for sample in range(self._config.samples):
            for site in active:
                site.mode = Mode.SAMPLE
                site.draw = lambda site, sample=sample: self._draw(site, temperature, step, sample)
            losses.append(check_loss(float(self._loss(windows, differentiable=False)), step, self._model, windows))
        told = advantages(losses, argmax_loss)
        square = sum(a * a for a in told) / len(told)
        self._spread = square if self._spread == 0 else _SPREAD_DECAY * self._spread + (1 - _SPREAD_DECAY) * square
        weights = [a / max(self._spread**0.5, 1e-12) / len(told) ** 0.5 for a in told]
        gram = torch.zeros(len(told), len(told), dtype=torch.float64)
        for site in active:
            gram += self._move(site, temperature, step, weights, self._config.rate * left)
        self._metrics = {
            "temperature": temperature,
            "signal_to_noise": signal_to_noise(gram),
            "sample_excess": sum(losses) / len(losses) - argmax_loss,
        }
        return torch.tensor(losses, dtype=torch.float64).mean()

    def _active(self, step: int) -> Sequence[Site]:
        """The part of the sites that this step samples: parts are runs of neighbouring layers, taken in turn."""
        parts = min(self._config.parts, len(self._sites))
        part = step % parts
        return self._sites[part * len(self._sites) // parts : (part + 1) * len(self._sites) // parts]

    def _draw(self, site: Site, temperature: float, step: int, sample: int) -> Tensor:
        return draw(site, temperature, site.key(self._config.seed, step, sample // 2), mirrored=bool(sample % 2))

    def _move(self, site: Site, temperature: float, step: int, weights: Sequence[float], rate: float) -> Tensor:
        """Move one site's logits; returns the inner products of the samples' gradients.  # (K, K)"""
        n, m = site.family.pattern.n, site.family.pattern.m
        drawn = [self._draw(site, temperature, step, sample) for sample in range(len(weights))]
        kept = torch.empty_like(site.kept)
        gram = torch.zeros(len(weights), len(weights), dtype=torch.float64)
        for number, chunk in site.chunks():
            logits = site.logits[:, chunk].float()
            groups = logits.shape[1]
            parts = []
            for bits, weight in zip(drawn, weights, strict=True):
                mask = unpack(bits[site.bits_of(chunk)], groups * m).view(groups, m).t().contiguous()
                parts.append(site.family.score(logits / temperature, mask).mul_(weight).flatten())
            grads = torch.stack(parts)  # (K, M * g)
            gram += (grads @ grads.t()).double().cpu()
            moved = logits.sub_(grads.sum(0).view(m, groups), alpha=rate)
            dither = noise((m, groups), site.key(self._config.seed, step) + number * 7919, logits.device)
            kept[site.bits_of(chunk)] = pack(store(site.logits[:, chunk], moved, n, dither))
        site.kept = kept
        return gram

    def tensors(self) -> dict[str, Tensor]:
        """The logits."""
        return {f"logits/{s.name}": s.logits for s in self._sites}

    def numbers(self) -> dict[str, Any]:
        """The running mean square of the advantages."""
        return {"advantage_spread": self._spread}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._spread = float(numbers["advantage_spread"])
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()

    def metrics(self) -> dict[str, float]:
        """Of the last step: temperature, ratio of signal to noise, and by how much samples are worse than the argmax mask."""
        return self._metrics
