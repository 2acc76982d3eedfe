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

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.planes import pack
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.kernels.optimizer import noise, store
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

_SPREAD_DECAY = 0.9  # of the running mean square of the advantages
_GROUPS = 4096  # of a site that the share is measured on
_LOWEST, _HIGHEST = 1e-3, 1e3
_HALVINGS = 16


class MaskProEstimator(Estimator):
    """See the module. Ranks try masks in turn and exchange losses alone: every one draws all samples again."""

    shares_batch = False

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(config, model, sites, loss)
        self._spread = 0.0
        self._step, self._sample, self._temperature = 0, 0, 0.0  # what `draw_mask` draws

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Try some masks on the batch and move the logits by what they gave."""
        active = self._active(step)
        self._step, self._temperature = step, temperature_for(active, self._config.flip_rate * left) if left > 0 else 0.0
        argmax_loss, *losses = self._try_all(active, windows, step)
        if not losses:
            return torch.tensor(argmax_loss, dtype=torch.float64)
        gram = self._move(active, advantages(losses, argmax_loss), self._config.rate * left)
        excess = sum(losses) / len(losses) - argmax_loss
        self._metrics = {"temperature": self._temperature, "signal_to_noise": signal_to_noise(gram), "sample_excess": excess}
        return torch.tensor(losses, dtype=torch.float64).mean()

    def _try_all(self, active: Sequence[Site], windows: Windows, step: int) -> list[float]:
        """The loss under the argmax masks, and under every sample; ranks take turns."""
        samples = self._config.samples if self._temperature > 0 else 0
        losses = [0.0] * (samples + 1)
        for turn in range(samples + 1)[self._ranks.share(samples + 1)]:
            set_mode(self._sites, Mode.ARGMAX)
            if turn:
                self._sample = turn - 1
                set_mode(active, Mode.SAMPLE)
            losses[turn] = self._try_masks(windows, step)
        return self._ranks.sum_numbers(losses)

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


def flip_share(sites: Sequence[Site], temperature: float) -> float:
    """Expected share of groups that leave the argmax mask in a sample from p_{θ/τ}; measured on some groups of every site."""
    shares = []
    for site in sites:
        groups = site.logits.shape[1]
        some = site.logits[:, :: max(1, groups // _GROUPS)].float().div_(temperature)
        shares.append((1 - site.family.stay(some)).mean() * groups)
    total = sum(site.logits.shape[1] for site in sites)
    return float(torch.stack(shares).sum()) / total


def temperature_for(sites: Sequence[Site], share: float) -> float:
    """The temperature at which the given share of groups leaves the argmax mask, by bisection of its logarithm."""
    low, high = _LOWEST, _HIGHEST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if flip_share(sites, middle) < share:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def advantages(losses: Sequence[float], argmax_loss: float) -> list[float]:
    """What each sample's loss says once a baseline is taken off.

    Samples 2i and 2i + 1 are an antithetic pair and depend on each other, so neither may be the other's baseline: that would
    bias the gradient. With several pairs the baseline is the mean loss of all other pairs (leave one out); with one pair it is
    the loss of the argmax mask on the same batch. Both are independent of the pair, so the gradient stays unbiased.
    """
    pairs = len(losses) // 2
    if pairs == 1:
        return [loss - argmax_loss for loss in losses]
    total = sum(losses)
    return [loss - (total - sum(losses[i // 2 * 2 : i // 2 * 2 + 2])) / (2 * pairs - 2) for i, loss in enumerate(losses)]


def move_by_scores(
    site: Site, samples: Sequence[Tensor], weights: Sequence[float], *, temperature: float, rate: float, key: int
) -> Tensor:
    """Move a site's logits against the weighted sum of its samples' scores, θ ← θ - η Σ_k a_k ∂ log p(m_k)/∂θ.

    Samples are bits of masks, `key` is that of the roundings. Returns the inner products of the samples' gradients.  # (K, K)
    """
    n, m = site.family.pattern.n, site.family.pattern.m
    kept = torch.empty_like(site.kept)
    gram = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for number, chunk in site.chunks():
        logits = site.logits[:, chunk].float()
        scores = (site.family.score(logits / temperature, site.planes(bits, chunk)) for bits in samples)
        grads = torch.stack([score.mul_(a).flatten() for score, a in zip(scores, weights, strict=True)])  # (K, M * g)
        gram += (grads @ grads.t()).double().cpu()
        moved = logits.sub_(grads.sum(0).view(logits.shape), alpha=rate)
        dither = noise((m, logits.shape[1]), key, logits.device, number)
        kept[site.bits_of(chunk)] = pack(store(site.logits[:, chunk], moved, n, dither))
    site.kept = kept
    return gram


def signal_to_noise(gram: Tensor) -> float:
    """Squared length of the mean gradient over the variance of one pair's gradient around it.

    For independent estimates g_p of one gradient, E⟨g_p, g_q⟩ is the squared length of their mean and E‖g_p‖² that plus the
    variance. Not a number for one pair, whose noise cannot be told from its signal. `gram` has ⟨g_k, g_l⟩ of the samples'
    gradients, antithetic pairs side by side.  # (K, K)
    """
    pairs = gram.shape[0] // 2
    if pairs < 2:
        return float("nan")
    of_pairs = gram.view(pairs, 2, pairs, 2).sum((1, 3)) / 4
    own = float(of_pairs.diagonal().mean())
    shared = float((of_pairs.sum() - of_pairs.diagonal().sum()) / (pairs * (pairs - 1)))
    noise = own - shared
    return max(0.0, shared) / noise if noise > 0 else float("inf")
