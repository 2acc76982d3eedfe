r"""MaskLLM's parameterisation (Fang et al., arXiv 2409.17481), as the baseline to compare with.

One logit for each of the S = C(M, N) masks of a group. A forward pass multiplies the weight with a soft mask,

    y = softmax((κ g + Gumbel noise) / τ),   soft mask = Σ_s y_s m_s,

with τ falling from 4 to 0.05 and κ rising from 100 to 500 over the run, and the backward pass differentiates through all of it.
Logits start from N(0, 0.01²) and favour the prior: g_s += 3 · 0.01 · (⟨m_s, m_0⟩ - 1), the published prior strength. Adam
(0.9, 0.95) moves them; their regulariser on the norm of what is kept is left out. Memory is S/M times that of one logit a weight,
thrice: logits and two moments in float32, 18 bytes a weight for 2:4. That is the point of the comparison.

Shapes: `O` outputs, `C` inputs, `S` masks, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.errors import PatternError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.base import to_planes
from maskpro_deploy.learn.distributions.planes import pack, unpack
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site

MAX_MASKS = 70  # 4:8: 105 bytes of state a weight
_STANDARD, _PRIOR = 0.01, 3.0
_TAU, _KAPPA = (4.0, 0.05), (100.0, 500.0)  # at the start and at the end
_BETA1, _BETA2, _EPSILON = 0.9, 0.95, 1e-12


class MaskLLMEstimator(Estimator):
    """See the module."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        if config.pattern.num_masks > MAX_MASKS:
            raise PatternError(
                f"--estimator maskllm has one logit a mask, and {config.pattern} has {config.pattern.num_masks} masks a group.\n"
                f"Use another estimator: they have one logit a weight."
            )
        super().__init__(config, model, sites, loss)
        self._masks = torch.from_numpy(config.pattern.all_masks()).float().to(model.head.device)  # (S, M)
        self._step, self._tau, self._kappa, self._rate = 0, _TAU[0], _KAPPA[0], 0.0
        self._updates = 0
        self._gates: dict[str, Tensor] = {}  # (S, G)
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        for site in sites:
            generator = torch.Generator(device=site.logits.device).manual_seed(site.key(config.seed))
            shape = (len(self._masks), site.logits.shape[1])
            gates = torch.randn(shape, generator=generator, device=site.logits.device).mul_(_STANDARD)
            first = unpack(site.kept, site.weight.numel()).view(-1, config.pattern.m).t().float()  # (M, G)
            gates.add_((self._masks @ first).sub_(1), alpha=_PRIOR * _STANDARD)
            self._gates[site.name] = gates
            self._moments[site.name] = torch.zeros_like(gates), torch.zeros_like(gates)
            site.kept = self._argmax(site)

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        self._step, self._rate = step, self._config.rate * left
        self._tau = _TAU[0] * left + _TAU[1] * (1 - left)
        self._kappa = _KAPPA[0] * left + _KAPPA[1] * (1 - left)
        self._updates += 1
        self._metrics = {"tau": self._tau, "kappa": self._kappa}
        set_mode(self._sites, Mode.SAMPLE)
        return self._learn_backward(self._loss(windows, differentiable=True), windows, step)

    def _probabilities(self, site: Site) -> Tensor:
        """The y of every group; the same key gives the same noise.  # (S, G)"""
        gates = self._gates[site.name]
        generator = torch.Generator(device=gates.device).manual_seed(site.key(self._config.seed, self._step))
        uniform = torch.rand(gates.shape, generator=generator, device=gates.device).clamp_(2**-25, 1 - 2**-25)
        gumbel = uniform.log_().neg_().log_().neg_()
        return torch.softmax(gumbel.add_(gates, alpha=self._kappa).div_(self._tau), dim=0)

    def draw_mask(self, site: Site) -> Tensor:
        factors = self._masks.t() @ self._probabilities(site)  # (M, G)
        return factors.t().reshape(site.weight.shape).to(site.weight.dtype)

    def take_gradient(self, site: Site, grad_weight: Tensor) -> None:
        y = self._probabilities(site)
        along = self._masks @ to_planes(grad_weight * site.weight, self._config.pattern.m)  # (S, G)
        grad = (along - (y * along).sum(0)).mul_(y).mul_(self._kappa / self._tau)
        first, second = self._moments[site.name]
        first.lerp_(grad, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        scale = (second / (1 - _BETA2**self._updates)).sqrt_().add_(_EPSILON)
        self._gates[site.name].addcdiv_(first, scale, value=-self._rate / (1 - _BETA1**self._updates))
        site.kept = self._argmax(site)

    def _argmax(self, site: Site) -> Tensor:
        best = self._gates[site.name].max(dim=0).indices  # (G,)
        return pack(self._masks[best].t().contiguous() > 0)

    def learned(self) -> Mapping[str, Tensor]:
        return self._gates

    def tensors(self) -> dict[str, Tensor]:
        gates = {f"gates/{name}": gates for name, gates in self._gates.items()}
        first = {f"first/{name}": moments[0] for name, moments in self._moments.items()}
        return gates | first | {f"second/{name}": moments[1] for name, moments in self._moments.items()}

    def numbers(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._updates = int(numbers["updates"])
        for site in self._sites:
            self._gates[site.name].copy_(tensors[f"gates/{site.name}"])
            for kind, moment in zip(("first", "second"), self._moments[site.name], strict=True):
                moment.copy_(tensors[f"{kind}/{site.name}"])
            site.kept = self._argmax(site)
