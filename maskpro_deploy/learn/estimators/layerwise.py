r"""MaskPro with a reward of its own for every output of every layer: forward passes only, and no sample's luck.

The reward of row o of a layer is the distance of its outputs from the dense layer's, on a batch of tokens:

    f_o(m) = ½ ‖X̂ (w_o ∘ m_o) - X w_o‖²

with X the layer's inputs in the dense model and X̂ those behind masked layers, so a layer also makes up for what the layers before
it lost. One forward pass of the batch through both models gives all of them: as many numbers as the model has outputs, where the
model's loss is one. Given the masks of the other groups (here the argmax masks), f_o is quadratic in a group's own mask, and its
policy gradient Σ_m p(m) (m - μ) f_o(m) needs no sample: with E = X̂ (w_o ∘ m*) - X w_o at the argmax mask m*, the part that
single weights contribute is exactly Cov(m) h,

    h_i = w_i (X̂ᵀE)_i + ½ w_i² ‖X̂_i‖² (1 - 2 m*_i).

The first term is the derivative at m*. The second one matters as much: in the first, a weight's own contribution to E says "keep
me" for every dropped weight and nothing for any kept one. The products of two weights of one group, w_i w_j X̂_i·X̂_j, are
left out: that is this estimator's bias, besides the objective, which is not the model's loss.

Shapes: `B` sequences, `T` tokens of them all, `O` outputs, `C` inputs.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.estimators.base import check_early
from maskpro_deploy.learn.estimators.pathwise import PathwiseEstimator
from maskpro_deploy.learn.model.experts import Experts
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import Windows
from maskpro_deploy.learn.model.sites import Site


class LayerwiseEstimator(PathwiseEstimator):
    """See the module; logits, optimiser and state are those of the pathwise estimator, the layers' rewards replace its loss."""

    @classmethod
    def check_model(cls, model: nn.Module, layers: Container[str]) -> None:
        for name, module in model.named_modules():
            if isinstance(module, Experts) and f"{name}.0.down_proj.weight" in layers:
                raise ConfigError(
                    f"--estimator maskpro compares dense and masked layers on the same tokens, and {name} sends them to other "
                    f"experts.\nUse --reward loss, --estimator pathwise, or --exclude experts."
                )

    @torch.no_grad()
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Send the batch through the dense and the masked model side by side; every layer learns as it is passed.

        The loss is that of the argmax masks before the step.
        """
        self._begin(step, left)
        set_mode(self._sites, Mode.HOOK)
        try:
            loss = self._model.paired_loss(windows)
            self._finish_gradients()
        finally:
            set_mode(self._sites, Mode.ARGMAX)
        return check_early(loss, step, self._model, windows)

    def compute_outputs(self, site: Site, x: Tensor) -> Tensor:
        """Outputs of the dense layer and of the masked one, whose logits then move.  # (2 B, ..., C) -> (2 B, ..., O)"""
        dense_x, masked_x = x.chunk(2)
        weight = site.masked_weight()
        dense = nn.functional.linear(dense_x, site.weight, site.bias)
        masked = nn.functional.linear(masked_x, weight, site.bias)
        error, inputs = (masked - dense).flatten(0, -2), masked_x.flatten(0, -2)  # (T, O), (T, C)
        site.hook.take_gradient(site, own_gradient(site.weight, weight, error, inputs))
        return torch.cat([dense, masked])


def own_gradient(weight: Tensor, masked: Tensor, error: Tensor, inputs: Tensor) -> Tensor:
    """The formula's h / w, in place of the masked weight's gradient.  # (O, C), (O, C), E (T, O), X̂ (T, C) -> (O, C) float32"""
    own = (weight.float() - 2 * masked.float()).mul_(0.5 * inputs.float().square().sum(0))
    return own.add_(error.t() @ inputs)
