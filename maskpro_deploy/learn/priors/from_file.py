"""A mask that exists: of a mask file or a sparse checkpoint of the same dense weights; among its weights Wanda's order."""

from __future__ import annotations

from maskpro_deploy.learn.priors.base import LayerView, Verdict
from maskpro_deploy.learn.priors.wanda import importance_by_inputs


def from_file(layer: LayerView) -> Verdict:
    """The mask that was given."""
    return Verdict(importance=importance_by_inputs(layer), mask=layer.given)
