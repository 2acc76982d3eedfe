"""How a gradient of the logits is come by: what the training loop needs to know about it.

    pathwise                 one backward pass, ∂E[m]/∂θ = Cov(m)                  `pathwise`, the default
    maskpro, reward layer    forward passes only: a reward for every output        `layerwise`
    maskpro, reward loss     forward passes only: policy gradient of the loss      `maskpro`
    maskpro-paper            the same as it was published                          `maskpro_paper`
    maskllm                  C(M, N) candidates under a Gumbel softmax, a baseline `maskllm`

The loop gives an estimator batches; the estimator moves the logits of the sites and keeps `Site.kept`, the argmax mask, up to
date. `docs/theory.md` says what each one estimates, with which bias and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.base import Distribution
from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.distributions.plackett_luce import PlackettLuce
from maskpro_deploy.learn.estimators.step_loss import StepLoss
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import Site

Windows = npt.NDArray[np.int32]  # (W, T)


class Estimator(Protocol):
    """One way to learn the logits of the sites of a model."""

    def step(self, windows: Windows, step: int, left: float) -> Tensor:
        """Take one step.

        Args:
            windows: the batch (W, T).
            step: its number, from 0: what randomness is keyed by.
            left: share of the run that is left, 1 to 0: what schedules follow.

        Returns:
            The loss of the masks that were tried: a scalar that a GPU may still be at work on, nats a token.

        Raises:
            CheckFailed: the loss is no number, where it was looked at (see `early_check`); no logit has moved.
        """

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, for saving; keys are `kind/site name`."""

    def numbers(self) -> dict[str, Any]:
        """The rest of the state: what JSON holds."""

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state."""

    def metrics(self) -> dict[str, float]:
        """What this way of learning has to say about itself, for the log."""


def make_estimator(config: LearnConfig, model: LearningModel, sites: Sequence[Site], loss: StepLoss) -> Estimator:
    """The estimator that the settings name."""
    from maskpro_deploy.learn.estimators.blockwise import BlockwiseEstimator
    from maskpro_deploy.learn.estimators.layerwise import LayerwiseEstimator
    from maskpro_deploy.learn.estimators.maskllm import MaskLLMEstimator
    from maskpro_deploy.learn.estimators.maskpro import MaskProEstimator
    from maskpro_deploy.learn.estimators.maskpro_paper import MaskProPaperEstimator
    from maskpro_deploy.learn.estimators.pathwise import PathwiseEstimator

    if config.minimised == "block":
        return BlockwiseEstimator(config, model, sites)
    kinds: dict[str, Callable[[LearnConfig, LearningModel, Sequence[Site], StepLoss], Estimator]] = {
        "pathwise": PathwiseEstimator,
        "maskpro": LayerwiseEstimator if config.reward == "layer" else MaskProEstimator,
        "maskpro-paper": MaskProPaperEstimator,
        "maskllm": MaskLLMEstimator,
    }
    return kinds[config.estimator](config, model, sites, loss)


def make_family(config: LearnConfig, device: torch.device) -> Distribution:
    """The distribution that the settings name.

    Raises:
        PatternError: it does not cover the pattern.
    """
    if config.draws_without_replacement:
        return PlackettLuce(config.pattern)
    return conditional_bernoulli(config.pattern, device)


def check_loss(value: float, step: int, model: LearningModel, windows: Windows) -> float:
    """The loss itself.

    Raises:
        CheckFailed: it is no number.
    """
    if not math.isfinite(value):
        where = model.first_bad_module(windows) or "the output head"
        raise CheckFailed(
            f"the loss became {value} at step {step}, first in {where}: nothing after the last saved state was "
            f"kept.\nTry a smaller --learning-rate, or --dtype float32."
        )
    return value


def early_check(loss: Tensor, step: int, model: LearningModel, windows: Windows) -> Tensor:
    """The loss, without its graph; on a CPU checked before any logit moves.

    Asking a GPU for a number would make it run dry, so there the loop checks the loss some steps later.

    Raises:
        CheckFailed: it is no number.
    """
    if loss.device.type == "cpu":
        check_loss(float(loss.detach()), step, model, windows)
    return loss.detach()
