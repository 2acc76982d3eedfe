"""Wanda: |W_ij| · ‖x_j‖₂ with x_j the layer's inputs on calibration text (Sun et al., arXiv 2306.11695, eq. 1)."""

from __future__ import annotations

from torch import Tensor

from maskpro_deploy.learn.priors.base import LayerView, Verdict


def wanda(layer: LayerView) -> Verdict:
    """|W| times the norms of the inputs."""
    return Verdict(importance=importance_by_inputs(layer))


def importance_by_inputs(layer: LayerView) -> Tensor:
    """|W| times the norms of the inputs; |W| alone for a layer that saw none.  # (O, C)"""
    size = layer.weight.abs()
    return size if layer.norms is None else size * layer.norms
