"""What the items that train share: random models, masks and tokens, a loop that ends after some time, and its step times."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench.products.timing import CUDA
from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.items import Settings
from maskpro_deploy.gpu_check.models import PATTERN, LlamaShape

if TYPE_CHECKING:
    from maskpro_deploy.learn.loop import TrainingLoop
    from maskpro_deploy.learn.model.model import LearningModel
    from maskpro_deploy.masks import MaskSet

WARM_UP_STEPS, LEAST_STEPS = 3, 5
MOST_STEPS = 100_000
_SEQUENCES = 8  # windows in a step
_TEXT_WINDOWS = 56


class _Enough(Exception):
    """Enough steps were timed."""


class Ticks:
    """Progress that notes when each step ended, and ends the loop after some time and a least number of steps."""

    def __init__(self, seconds: float) -> None:
        self.at: list[float] = []
        self._seconds = seconds

    def update(self, done: float, total: float, note: str = "") -> None:
        self.at.append(time.perf_counter())
        if len(self.at) > WARM_UP_STEPS + LEAST_STEPS and self.at[-1] - self.at[0] >= self._seconds:
            raise _Enough

    def close(self) -> None:
        pass

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds of the steps after the warm-up."""
        return [1e3 * (b - a) for a, b in itertools.pairwise(self.at)][WARM_UP_STEPS:]


def run_until_enough(loop: TrainingLoop) -> None:
    """Train until the loop's `Ticks` have seen enough; a KeyboardInterrupt where the user stopped it."""
    stopped = False
    with suppress(_Enough):
        stopped = not loop.run()
    if stopped:
        raise KeyboardInterrupt


def check_memory(torch: Any, settings: Settings, shape: LlamaShape, needed: int) -> None:
    """Refuse a GPU with too little free memory (MachineError), and let its peak count from now."""
    if settings.device != CUDA:
        return
    if (free := torch.cuda.mem_get_info()[0]) < needed:
        raise MachineError(f"learning on a {shape.name} model needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
    torch.cuda.reset_peak_memory_stats()


def choose_dtype(torch: Any, settings: Settings) -> Any:
    """The dtype of the weights: the faster one on a GPU, float32 in a rehearsal."""
    from maskpro_deploy.learn.model.model import faster_dtype

    return faster_dtype(CUDA) if settings.device == CUDA else torch.float32


def make_model(torch: Any, shape: LlamaShape, device: str, dtype: Any) -> LearningModel:
    """A random model, with the same weights every time."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from maskpro_deploy.learn.model.model import LearningModel

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config()), dtype=dtype)
    return LearningModel(model.to(device).eval())


def make_masks(model: LearningModel) -> MaskSet:
    """Masks of the largest weights of every group of all linear layers but the head."""
    from maskpro_deploy.learn.model.model import prunable_layers
    from maskpro_deploy.masks import MaskSet

    layers = prunable_layers(model.model, PATTERN, None, None)
    sizes = {name: layer.weight.abs().float().cpu().numpy() for name, layer in layers.items()}
    return MaskSet.from_arrays(PATTERN, {name: PATTERN.top(size) for name, size in sizes.items()}, "")


def make_settings(shape: LlamaShape, dtype: Any) -> dict[str, Any]:
    """Settings that runs of every kind have: 8 windows a step, for as long as `Ticks` allow."""
    window = min(256, shape.length // 4)
    tokens = dict.fromkeys(("batch_tokens", "calibration_tokens", "heldout_tokens"), _SEQUENCES * window)
    return {
        **tokens, "steps": MOST_STEPS, "window": window, "evaluations": 1, "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def make_text(shape: LlamaShape, window: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Random tokens to learn from, and some to measure on.  # (W, T) each"""
    rng = np.random.default_rng(0)
    text = rng.integers(0, shape.vocabulary, (_SEQUENCES + _TEXT_WINDOWS, window), dtype=np.int32)
    return text[_SEQUENCES:], text[:_SEQUENCES]
