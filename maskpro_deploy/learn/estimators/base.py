"""How the gradient of the logits is computed: what the training loop needs to know about it.

The loop gives an estimator batches; the estimator is the hook of all sites, moves their logits and keeps `Site.kept`, the argmax
mask, up to date. `choices.ESTIMATORS` lists all of them; `docs/theory.md` says what each one estimates, with which bias and
variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.estimators.step_loss import StepLoss
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.sites import Site, SiteHook


class Estimator(SiteHook, ABC):
    """One way to learn the logits of the sites of a model.

    Args:
        config: the settings.
        model: the model whose layers the sites are.
        sites: all of them.
        loss: the objective.
    """

    def __init__(self, config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> None:
        self._config, self._model, self._sites, self._loss = config, model, sites, loss
        self._metrics: dict[str, float] = {}
        for site in sites:
            site.hook = self

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
        """Go on from a saved state."""
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
    """The loss itself.

    Raises:
        CheckFailed: it is not a number.
    """
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

    Raises:
        CheckFailed: it is not a number.
    """
    if loss.device.type == "cpu":
        check_loss(float(loss.detach()), step, model, windows)
    return loss.detach()
