"""What a step minimises: the loss of the masked model on some windows, by the chosen objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Mode, Site

_KL_SHARE = {"ce": 0.0, "kl": 1.0, "ce+kl": 0.5, "block": 0.0}  # block by block there is no loss of the whole model


class StepLoss:
    """The objective of a run.

    Args:
        model: the model with its sites.
        sites: every masked layer; for a divergence they are switched off while the dense model is asked.
        objective: "ce", "kl" or "ce+kl".
    """

    def __init__(self, model: LearningModel, sites: Sequence[Site], objective: str) -> None:
        self._model, self._sites, self._share = model, sites, _KL_SHARE[objective]
        self._asked: npt.NDArray[np.int32] | None = None
        self._answer: Tensor | None = None

    def __call__(self, windows: npt.NDArray[np.int32], *, differentiable: bool) -> Tensor:
        """The loss under the sites' current masks.  # (B, T) -> scalar, nats a token"""
        if self._share == 0:
            return self._model.loss(windows, differentiable=differentiable)
        return self._model.loss(windows, differentiable=differentiable, teacher=self._teacher(windows), share=self._share)

    def _teacher(self, windows: npt.NDArray[np.int32]) -> Tensor:
        """Last hidden states of the dense model; kept for as long as the same windows are asked about.  # (B, T, D)"""
        if self._answer is None or self._asked is not windows:
            modes = [site.mode for site in self._sites]
            for site in self._sites:
                site.mode = Mode.DENSE
            try:
                with torch.no_grad():
                    self._answer = self._model.hidden(self._model.tokens(windows), differentiable=False)
            finally:
                for site, mode in zip(self._sites, modes, strict=True):
                    site.mode = mode
            self._asked = windows
        return self._answer
