"""The laws of trained weights, checked on the device where they were trained, on a small model in float32 and bfloat16.

Masks are strict and what they drop is +0.0 after steps with weight decay, everything is finite, and a run that was stopped and
resumed comes to the same bits as one that was not.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.gpu_check.models import PATTERN

if TYPE_CHECKING:
    from maskpro_deploy.learn.loop import TrainingLoop
    from maskpro_deploy.learn.state import StateStore
    from maskpro_deploy.system.progress import Progress

LAW_STEPS = 6  # of such a run
_STOPPED_AFTER = 3
_DTYPES = ("float32", "bfloat16")

Make = Callable[[str, "StateStore", "Progress"], "TrainingLoop"]  # of a dtype's name: a prepared loop on the small model


class _Stop:
    """Progress that asks the run to stop after some steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self._left = after

    def update(self, done: float, total: float, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        pass


def check_laws(torch: Any, settings: Settings, record: Record, make: Make) -> None:
    """Run a small model whole, and in two parts, in each dtype; what held goes into the record.

    Raises:
        CheckFailed: a law does not hold; the message names the dtype and the tensor.
    """
    from maskpro_deploy.learn.state import StateStore
    from maskpro_deploy.system.progress import SILENT

    held = []
    for dtype in _DTYPES:
        folder = settings.scratch / f"laws-{dtype}"
        shutil.rmtree(folder, ignore_errors=True)  # of an item that was ended
        store = StateStore(folder)
        whole = make(dtype, store, SILENT)
        ended = whole.run()
        stopped = not make(dtype, store, _Stop(_STOPPED_AFTER)).run()
        resumed = make(dtype, store, SILENT)
        resumed.restore()
        if not (ended and stopped and resumed.run()):
            raise KeyboardInterrupt  # the user's own signal
        store.discard()
        _check_pruned(torch, resumed, dtype)
        _check_finite(torch, resumed, dtype)
        _check_same(torch, _collect(whole), _collect(resumed), dtype)
        held.append(dtype)
        record.put(laws_hold_in=held, law_steps=LAW_STEPS, stopped_after=_STOPPED_AFTER)


def _collect(loop: TrainingLoop) -> dict[str, Any]:
    """Everything that a run has learned and remembers."""
    return {**loop.learner.tensors(), **{f"best/{name}": x for name, x in loop.best_tensors().items()}}


def _check_pruned(torch: Any, loop: TrainingLoop, dtype: str) -> None:
    """Masks have to be strict, and what they drop +0.0."""
    from maskpro_deploy.learn.distributions.planes import unpack
    from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
    from maskpro_deploy.learn.model.sites import Site

    set_mode(loop.masked, Mode.ARGMAX)
    whole = {2: torch.int16, 4: torch.int32}
    for layer in loop.masked:
        kept = unpack(layer.kept, layer.weight.numel())
        if bool((kept.view(-1, PATTERN.m).sum(1) != PATTERN.n).any()):
            raise CheckFailed(f"{dtype}: {layer.name} is not under a strict {PATTERN} mask")
        # where masks stay, the weight itself is what is written; where they move, what is dropped keeps its last value
        for weight in [layer.masked_weight(), *([] if isinstance(layer, Site) else [layer.weight])]:
            if bool(weight.reshape(-1).view(whole[weight.element_size()])[~kept].any()):
                raise CheckFailed(f"{dtype}: a dropped weight of {layer.name} is not +0.0")


def _check_finite(torch: Any, loop: TrainingLoop, dtype: str) -> None:
    """No value that was learned may be infinite or no number."""
    for name, values in _collect(loop).items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise CheckFailed(f"{dtype}: {name} is not finite after {LAW_STEPS} steps")


def _check_same(torch: Any, whole: Mapping[str, Any], resumed: Mapping[str, Any], dtype: str) -> None:
    """Both have to be equal to the bit."""
    if whole.keys() != resumed.keys():
        raise CheckFailed(f"{dtype}: a resumed run has other tensors than one that was not stopped")
    for name, values in whole.items():
        if not torch.equal(_bytes_of(torch, values), _bytes_of(torch, resumed[name])):
            raise CheckFailed(f"{dtype}: {name} of a resumed run has other bits than that of one that was not stopped")


def _bytes_of(torch: Any, values: Any) -> Any:
    """A tensor as bytes on the CPU."""
    return values.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
