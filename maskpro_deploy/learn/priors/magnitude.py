"""Magnitude: the importance of a weight is |W|."""

from __future__ import annotations

from maskpro_deploy.learn.priors.base import LayerView, Verdict


def magnitude(layer: LayerView) -> Verdict:
    """|W|."""
    return Verdict(importance=layer.weight.abs())
