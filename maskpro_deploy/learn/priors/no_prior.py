"""No prior: a random mask, from logits that are all but equal."""

from __future__ import annotations

import hashlib

import torch

from maskpro_deploy.learn.priors.base import MARGIN, LayerView, Verdict


def no_prior(layer: LayerView) -> Verdict:
    """Random logits, the same for the same seed and name."""
    config, weight, m = layer.config, layer.weight, layer.pattern.m
    digest = hashlib.blake2b(f"{config.seed}:prior:{layer.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    logits = torch.rand(m, weight.numel() // m, generator=generator).mul_(MARGIN * config.prior_strength).to(weight.device)
    return Verdict(importance=logits.t().reshape(weight.shape), logits=logits)
