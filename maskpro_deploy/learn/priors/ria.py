"""RIA, relative importance: (|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) · ‖x_j‖₂^½ (Zhang et al., ICLR 2024).

The published method permutes channels as well; this one does not.
"""

from __future__ import annotations

from maskpro_deploy.learn.priors.base import LayerView, Verdict

_TINY = 1e-30  # below every sum of weights that are not all zero
_POWER = 0.5  # of the input norms, as published


def ria(layer: LayerView) -> Verdict:
    """A weight's share of its column plus its share of its row, times the root of the input norms if there are any."""
    size = layer.weight.abs()
    share = size / size.sum(0, keepdim=True).clamp_min(_TINY) + size / size.sum(1, keepdim=True).clamp_min(_TINY)
    return Verdict(importance=share if layer.norms is None else share * layer.norms**_POWER)
