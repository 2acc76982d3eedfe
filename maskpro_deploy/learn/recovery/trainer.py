"""The run that trains the weights under masks that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.distributions.planes import pack
from maskpro_deploy.learn.estimators.base import StepLoss
from maskpro_deploy.learn.loop import Point, TrainingLoop
from maskpro_deploy.learn.model.masked_linear import MaskedLinear
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.model.teacher import Teacher, ask_model
from maskpro_deploy.learn.monitor import Observer
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.recovery.method import Method
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.system.progress import SILENT, Progress


class RecoveryTrainer(TrainingLoop):
    """One run that recovers quality.

    Args:
        masks: of some linear layers, by weight name in the model.
        teacher: the dense model; None for an objective that needs none.
    """

    masked: list[MaskedLinear]

    def __init__(
        self, model: LearningModel, text: Windows, heldout: Windows, config: RecoverConfig, masks: MaskSet,
        teacher: LearningModel | None, store: StateStore | None = None, progress: Progress = SILENT,
        observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        super().__init__(model, text, heldout, config, store, progress, observers)
        self.config = config.on(model.head.device.type)
        self.masks, self.teacher = masks, teacher
        self.masked = []
        self._best: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """From the end of what `learn` goes by: the text that its masks have seen comes last."""
        return super().order(epoch)[::-1]

    def choose_calibration(self, count: int) -> npt.NDArray[np.int64]:
        """The start of the first epoch: these, too, are what masks have seen last."""
        return self.order(epoch=0)[:count]

    @property
    def method(self) -> Method:
        """The learner of this run."""
        assert isinstance(self.learner, Method)
        return self.learner

    def prepare(self) -> None:
        """Measure the dense model, unless a saved state has that, and put masked layers into the sparse one."""
        with self.timing("preparing_s"):
            self.model.check_head(self.text)
            self.model.check_backward(self.text)
        if self.teacher is not None:
            with self.timing("preparing_s"):
                self.teacher.check_head(self.text)
            if self.saved is None:
                with self.timing("measuring_s"):
                    self.dense_loss = self.heldout_loss(self.teacher)
        with self.timing("preparing_s"):
            for name in self.masks:
                self.masked.append(self.mask_layer(name, self.model.model.get_submodule(name.removesuffix(".weight"))))
            self.learner = self.config.method_choice.load()(self.config, self.model, self.masked, self._step_loss())
            self.learner.join(self.ranks)
            self._start = self.method.values()

    def mask_layer(self, name: str, linear: nn.Linear) -> MaskedLinear:
        """Put a masked layer with a weight of its own in the place of a linear one."""
        pattern = self.masks.pattern_of(name)
        layer = MaskedLinear(name, linear, pattern)
        mask = torch.from_numpy(self.masks.mask(name)).to(layer.weight.device)
        layer.kept = pack(mask.view(-1, pattern.m).t())
        layer.weight = layer.dense = layer.masked_weight()
        self.model.replace(name, layer)
        return layer

    def _step_loss(self) -> StepLoss:
        share = self.config.objective_choice.teacher_share
        teacher: Teacher = ask_model(self.model if self.teacher is None else self.teacher)
        return StepLoss(self.model, teacher, share)

    def check_finite(self) -> None:
        for name, values in self.method.values().items():
            if not torch.isfinite(values).all():
                raise CheckFailed(
                    f"{name.partition('/')[2]} is not finite after step {self.counters.step}: nothing after the last saved state "
                    f"was kept.\nTry a smaller --learning-rate, or --dtype float32."
                )

    def keep_best(self) -> None:
        self._best = self.method.values()

    def best_tensors(self) -> dict[str, Tensor]:
        return self._best

    def restore_best(self, tensors: Mapping[str, Tensor]) -> None:
        self._best = dict(tensors)

    def remembered_start(self) -> dict[str, Tensor]:
        return self._start

    def measure_movement(self) -> dict[str, float]:
        return {"moved": self.method.measure_movement(self._start)}

    def note_movement(self, point: Point) -> str:
        return f"moved {100 * point.moved:.2f} %"

    def collect_weights(self) -> Mapping[str, Tensor]:
        """The model's tensors at the point with the lowest held-out loss, by name in the model; never worse than at the start."""
        return self.method.weights_of(self._best)

    def save_more(self, folder: Path, base: str) -> None:
        """Write what the method has besides weights into the folder of the result, see `Method.save_more`."""
        self.method.save_more(self._best, folder, base)
