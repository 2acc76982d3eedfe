r"""Parts of a policy gradient: how far samples stray, what a sample's loss says, the step, and how much of it is signal.

Shapes: `K` samples, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.packed import pack
from maskpro_deploy.learn.kernels.half_logits import noise, store
from maskpro_deploy.learn.model.sites import Site

_GROUPS = 4096  # of a site that the share is measured on
_LOWEST, _HIGHEST = 1e-3, 1e3
_HALVINGS = 16


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

    Args:
        site: whose logits.
        samples: bits of the masks that were tried.
        weights: a_k of each.
        temperature: that the samples were drawn at.
        rate: η.
        key: of the roundings.

    Returns:
        The inner products of the samples' gradients.  # (K, K)
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
    variance. Not a number for one pair, whose noise cannot be told from its signal.

    Args:
        gram: ⟨g_k, g_l⟩ of the samples' gradients, antithetic pairs side by side (K, K).
    """
    pairs = gram.shape[0] // 2
    if pairs < 2:
        return float("nan")
    of_pairs = gram.view(pairs, 2, pairs, 2).sum((1, 3)) / 4
    own = float(of_pairs.diagonal().mean())
    shared = float((of_pairs.sum() - of_pairs.diagonal().sum()) / (pairs * (pairs - 1)))
    noise = own - shared
    return max(0.0, shared) / noise if noise > 0 else float("inf")
