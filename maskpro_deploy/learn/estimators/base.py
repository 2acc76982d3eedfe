"""What learns, what the training loop needs to know about it, and the loss that a step minimises.

The loop gives a `Learner` batches. An `Estimator` is one that learns masks: it is the hook of all sites, moves their logits and
keeps `kept`, the argmax mask, up to date. `choices.ESTIMATORS` lists all of them; `docs/theory.md` says what each one estimates,
with which bias and variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from typing import Any, Generic

from torch import Tensor, nn

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.masked_linear import L, SiteHook
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.objective import Taught
from maskpro_deploy.learn.model.sites import Site
from maskpro_deploy.learn.model.teacher import Teacher
from maskpro_deploy.learn.ranks.group import ALONE, Ranks
from maskpro_deploy.learn.ranks.reducer import GradientReducer


class StepLoss:
    """The objective of a run: cross-entropy, with a share of 0 to 1 for the divergence from the dense model."""

    def __init__(self, model: LearningModel, teacher: Teacher, teacher_share: float) -> None:
        self._model, self._teacher, self._share = model, teacher, teacher_share
        self._asked: Windows | None = None
        self._answer: Taught | None = None

    def __call__(self, windows: Windows, *, differentiable: bool) -> Tensor:
        """The loss under the layers' current masks.  # (B, T) -> scalar, nats a token"""
        if self._share == 0:
            return self._model.loss(windows, differentiable=differentiable)
        if self._answer is None or self._asked is not windows:  # kept for as long as the same windows are asked about
            self._asked, self._answer = windows, self._teacher(windows)
        return self._model.loss(windows, differentiable=differentiable, teacher=self._answer, share=self._share)


class Learner(SiteHook[L], ABC, Generic[L]):
    """What learns on the masked layers of a model: the loop gives it batches."""

    shares_batch = True  # whether each rank gets a share of a batch, and the gradients of all are summed; else each gets it whole

    def __init__(self, model: LearningModel, layers: Sequence[L], loss: StepLoss) -> None:
        self._model, self._sites, self._loss = model, layers, loss
        self._metrics: dict[str, float] = {}
        self._ranks, self._reducer = ALONE, None
        for layer in layers:
            layer.hook = self

    _ranks: Ranks
    _reducer: GradientReducer[L] | None

    def join(self, ranks: Ranks) -> None:
        """Learn together with other processes, which hold the same model and the same state."""
        self._ranks = ranks
        if ranks.size > 1 and self.shares_batch:
            self._reducer = GradientReducer(self, self._sites, ranks)
            for layer in self._sites:
                layer.hook = self._reducer

    @property
    def moved_by(self) -> str | None:
        """By what logits are moved, see `kernels.contract`; None where there is one way only."""
        return None

    @property
    def weights_moved_by(self) -> str | None:
        """By what kept weights are moved, see `kernels.kept_weights`; None where they are frozen, or there is one way only."""
        return None

    @abstractmethod
    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Take one step.

        Args:
            windows: the batch (W, T).
            step: its number, from 0: what randomness is keyed by.
            left: share of the run that is left, 1 to 0: what schedules follow.

        Returns:
            The loss of what was tried: a scalar that a GPU may still be at work on, nats a token.

        Raises:
            CheckFailed: the loss is not a number, where it was looked at (see `check_early`); nothing has moved.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The whole state, for saving; keys are `kind/layer name`."""

    def numbers(self) -> dict[str, Any]:
        """The rest of the state: what JSON holds."""
        return {}

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state, as `tensors` and `numbers` gave it."""

    def metrics(self) -> dict[str, float]:
        """What the last step has to say about itself, for the log."""
        return self._metrics

    def _learn_backward(self, loss: Tensor, windows: Windows, step: int) -> Tensor:
        """Let the backward pass of a loss move what is learned; returns its value."""
        value = check_early(loss, step, self._model, windows)
        self._model.backward(loss / self._ranks.size)
        self._finish_gradients()
        return value

    def _finish_gradients(self) -> None:
        """Let the gradients that other ranks have not sent yet be taken, too."""
        if self._reducer is not None:
            self._reducer.finish()


class Estimator(Learner[Site]):
    """One way to learn the logits of all sites of a model."""

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        super().__init__(model, sites, loss)
        self._config = config

    @classmethod
    def check_model(cls, model: nn.Module, layers: Container[str]) -> None:
        """Refuse a model whose `layers` this estimator cannot learn on, before any work; a ConfigError says why."""

    def learned(self) -> Mapping[str, Tensor]:
        """What it learns in place of the sites' logits, by site; it has to stay finite, as they have to."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {f"logits/{s.name}": s.logits for s in self._sites}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        for site in self._sites:
            site.logits.copy_(tensors[f"logits/{site.name}"])
            site.kept = site.argmax()

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
