"""How the gradient of the logits is computed, what the training loop needs to know about it, and the loss that a step minimises.

The loop gives an estimator batches; the estimator is the hook of all sites, moves their logits and keeps `Site.kept`, the argmax
mask, up to date. `choices.ESTIMATORS` lists all of them; `docs/theory.md` says what each one estimates, with which bias and
variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.masked_linear import Mode, SiteHook, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site


class StepLoss:
    """The objective of a run: cross-entropy, with a share of 0 to 1 for the divergence from the dense model.

    For the divergence all sites are switched off while the dense model is asked.
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
                    self._answer = self._model.compute_hidden(self._model.tokens(windows), differentiable=False)
            finally:
                for site, mode in zip(self._sites, modes, strict=True):
                    site.mode = mode
            self._asked = windows
        return self._answer


class Estimator(SiteHook[Site], ABC):
    """One way to learn the logits of all sites of a model."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        self._config, self._model, self._sites, self._loss = config, model, sites, loss
        self._metrics: dict[str, float] = {}
        for site in sites:
            site.hook = self

    @classmethod
    def check_model(cls, model: nn.Module, layers: Container[str]) -> None:
        """Refuse a model whose `layers` this estimator cannot learn on, before any work; a ConfigError says why."""

    @property
    def moved_by(self) -> str | None:
        """By what logits are moved, see `kernels.contract.SiteStep`; None where there is one way only."""
        return None

    @abstractmethod
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Take one step.

        Args:
            windows: the batch (W, T).
            step: its number, from 0: what randomness is keyed by.
            left: share of the run that is left, 1 to 0: what schedules follow.

        Returns:
            The loss of the masks that were tried: a scalar that a GPU may still be at work on, nats a token.

        Raises:
            CheckFailed: the loss is not a number, where it was looked at (see `check_early`); no logit has moved.
        """

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, for saving; keys are `kind/site name`."""
        return {f"logits/{s.name}": s.logits for s in self._sites}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state: what JSON holds."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state, as `tensors` and `numbers` gave it."""
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()

    def metrics(self) -> dict[str, float]:
        """What the last step has to say about itself, for the log."""
        return self._metrics

    def _learn_backward(self, loss: Tensor, windows: Windows, step: int) -> Tensor:
        """Let the backward pass of a loss move the logits; returns its value."""
        value = check_early(loss, step, self._model, windows)
        self._model.backward(loss)
        return value

    def _try_masks(self, windows: Windows, step: int) -> float:
        """The loss under the sites' current masks, checked; nats a token."""
        return check_loss(float(self._loss(windows, differentiable=False)), step, self._model, windows)


def check_loss(value: float, step: int, model: LearningModel, windows: Windows) -> float:
    """The loss itself; one that is not a number ends the run."""
    if not math.isfinite(value):
        where = model.first_bad_module(windows) or "the output head"
        raise CheckFailed(
            f"the loss became {value} at step {step}, first in {where}: nothing after the last saved state was "
            f"kept.\nTry a smaller --learning-rate, or --dtype float32."
        )
    return value


def check_early(loss: Tensor, step: int, model: LearningModel, windows: Windows) -> Tensor:
    """The loss, without its graph; on a CPU checked before any logit moves.

    Asking a GPU for a number would make it run dry, so there the loop checks the loss some steps later.
    """
    if loss.device.type == "cpu":
        check_loss(float(loss.detach()), step, model, windows)
    return loss.detach()
