"""What a step minimises: the loss of the masked model on some windows, by the chosen objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Mode, Site, set_mode


class StepLoss:
    """The objective of a run.

    Args:
        model: the model with its sites.
        sites: every masked layer; for a divergence they are switched off while the dense model is asked.
        teacher_share: of the divergence from the dense model, 0 to 1; the rest is cross-entropy.
    """

    def __init__(self, model: LearningModel, sites: Sequence[Site], teacher_share: float) -> None:
        self._model, self._sites, self._share = model, sites, teacher_share
        self._asked: Windows | None = None
        self._answer: Tensor | None = None

    def __call__(self, windows: Windows, *, differentiable: bool) -> Tensor:
        """The loss under the sites' current masks.  # (B, T) -> scalar, nats a token"""
        if self._share == 0:
            return self._model.loss(windows, differentiable=differentiable)
        return self._model.loss(windows, differentiable=differentiable, teacher=self._teacher(windows), share=self._share)

    def _teacher(self, windows: Windows) -> Tensor:
        """Last hidden states of the dense model; kept for as long as the same windows are asked about.  # (B, T, D)"""
        if self._answer is None or self._asked is not windows:
            modes = [site.mode for site in self._sites]
            set_mode(self._sites, Mode.DENSE)
            try:
                with torch.no_grad():
                    self._answer = self._model.hidden(self._model.tokens(windows), differentiable=False)
            finally:
                for site, mode in zip(self._sites, modes, strict=True):
                    site.mode = mode
            self._asked = windows
        return self._answer
