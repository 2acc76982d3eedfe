"""What a method of recovery is to the training loop: a learner whose values can be kept, and put into a checkpoint.

Shapes: `O` outputs, `C` inputs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from maskpro_deploy.learn.estimators.base import Learner, StepLoss
from maskpro_deploy.learn.model.masked_linear import MaskedLinear
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.recovery.config import RecoverConfig


class Method(Learner[MaskedLinear]):
    """One way to train weights under masks; each layer's `kept` stays, and what it drops is +0.0 in `weight`."""

    def __init__(self, config: RecoverConfig, model: LearningModel, layers: Sequence[MaskedLinear], loss: StepLoss) -> None:
        super().__init__(model, layers, loss)
        self._config = config

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """A copy of everything that is trained, as it is now; keys are `kind/name in the model`."""

    @abstractmethod
    def weights_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors under some values, by name in the model; masked layers' (O, C), zeros where they are dropped."""

    def measure_movement(self, start: Mapping[str, Tensor]) -> float:
        """Length of what was added to the kept weights since the values `start`, relative to theirs then."""
        values = self.values()
        return relative_distance((values[key], x) for key, x in start.items())

    def save_more(self, values: Mapping[str, Tensor], folder: Path, base: str) -> None:
        """Write what goes into the folder of a result next to its weights; `base` is the name of the checkpoint before."""


def relative_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Length of the difference between tensors and what they were, relative to the length of the latter."""
    moved = whole = 0.0
    for now, before in pairs:
        moved += float((now.float() - before.float()).double().square().sum())
        whole += float(before.double().square().sum())
    return math.sqrt(moved / max(1e-30, whole))
