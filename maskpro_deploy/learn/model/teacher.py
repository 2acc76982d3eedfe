"""Who is asked what the dense model says: the same model with its masks off, or another one.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from maskpro_deploy.learn.model.masked_linear import MaskedLinear, Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.objective import Taught

Teacher = Callable[[Windows], Taught]


def ask_without_masks(model: LearningModel, layers: Sequence[MaskedLinear]) -> Teacher:
    """The model itself, its masked layers switched to their dense weights while it is asked."""

    def ask(windows: Windows) -> Taught:
        modes = [layer.mode for layer in layers]
        set_mode(layers, Mode.DENSE)
        try:
            with torch.no_grad():
                return Taught(model.compute_hidden(model.tokens(windows), differentiable=False), model.output_head)
        finally:
            for layer, mode in zip(layers, modes, strict=True):
                layer.mode = mode

    return ask


def ask_model(model: LearningModel) -> Teacher:
    """Another model, which stays as it is."""

    def ask(windows: Windows) -> Taught:
        with torch.no_grad():
            return Taught(model.compute_hidden(model.tokens(windows), differentiable=False), model.output_head)

    return ask
