"""Items: training kept weights on the GPU, together with their masks (`learn-joint`) and under masks that stay (`recover`).

Steps of `learn --weights train` and `lora` are timed against steps that move masks alone, one by one in turn, so that all see the
same machine. Then the laws that results rest on are checked on the device, on a small model in float32 and bfloat16: what a mask
drops is +0.0 after steps with weight decay, everything is finite, and a run that was stopped and resumed comes to the bits of one
that was not.
"""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from maskpro_deploy.bench.intervals import trimmed_mean
from maskpro_deploy.bench.products.timing import CUDA, synchronize
from maskpro_deploy.bench.stats import CONFIDENCE
from maskpro_deploy.gpu_check.items import Record, Settings, import_torch
from maskpro_deploy.gpu_check.laws import LAW_STEPS, check_laws
from maskpro_deploy.gpu_check.models import PATTERN, TINY, LlamaShape
from maskpro_deploy.gpu_check.training import (
    LEAST_STEPS,
    WARM_UP_STEPS,
    Ticks,
    check_memory,
    choose_dtype,
    make_masks,
    make_model,
    make_settings,
    make_text,
    run_until_enough,
)

if TYPE_CHECKING:
    from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer
    from maskpro_deploy.learn.state import StateStore
    from maskpro_deploy.learn.trainer import Trainer
    from maskpro_deploy.system.progress import Progress

_STEPS_SHARE = 0.6  # of the budget for steps that are timed; the rest is for the laws
_WEIGHT_DECAY = 0.1
_FROZEN, _WAYS = "frozen", ("train", "lora")  # values of `--weights`
# three models of 2 bytes a weight, and 20 bytes of state and copies a pruned weight, rounded up
_MODELS_BYTES, _STATE_BYTES, _SPARE_BYTES = 6, 20, 4 << 30


def time_joint(shape: LlamaShape, settings: Settings, record: Record) -> str:
    """Time steps that move masks and weights against steps that move masks alone, and check their laws.

    Raises:
        CheckFailed: a law does not hold.
        MachineError: there is no torch for this GPU, or too little memory.
    """
    torch = import_torch(settings.device)
    from maskpro_deploy.learn.model.memory import tuned_process

    with tuned_process(settings.device):
        shape = TINY if settings.rehearse else shape
        check_memory(torch, settings, shape, _needed_bytes(shape))
        ratio = _compare_steps(torch, shape, settings, record)
        record.put(peak_memory_of_both_bytes=torch.cuda.max_memory_allocated() if settings.device == CUDA else None)
        for way in _WAYS:
            check_laws(torch, settings, record, partial(_make_joint, torch, settings, way))
    return f"{shape.name}: {record.figures['train_step_ms']:.1f} ms a step, {ratio} of one that moves masks alone; laws hold"


def time_recovery(shape: LlamaShape, settings: Settings, record: Record) -> str:
    """Time steps of the recovery of a random sparse model, and check its laws.

    Raises:
        CheckFailed: a law does not hold.
        MachineError: there is no torch for this GPU, or too little memory.
    """
    torch = import_torch(settings.device)
    from maskpro_deploy.learn.model.memory import tuned_process

    with tuned_process(settings.device):
        shape = TINY if settings.rehearse else shape
        check_memory(torch, settings, shape, _needed_bytes(shape))
        whole, rate = _time_steps(torch, shape, settings, record)
        peak = torch.cuda.max_memory_allocated() if settings.device == CUDA else None
        record.put(peak_memory_bytes=peak)
        check_laws(torch, settings, record, partial(_make_recovery, torch, TINY, settings))
    memory = f", peak {peak / 1e9:.1f} GB" if peak is not None else ""
    return f"{shape.name}: {whole:.1f} ms a step, {rate:,.0f} tokens/s{memory}; laws hold"


def _needed_bytes(shape: LlamaShape) -> int:
    return shape.weights * _MODELS_BYTES + shape.pruned_weights * _STATE_BYTES + _SPARE_BYTES


# -- times ----------------------------------------------------------------------------------------------------------------


def _compare_steps(torch: Any, shape: LlamaShape, settings: Settings, record: Record) -> str:
    """Steps of all kinds in turn; returns the ratios to those of masks alone with their intervals, as text."""
    dtype = choose_dtype(torch, settings)
    arms = {way: _make_trainer(torch, shape, settings, dtype, weights=way) for way in (_FROZEN, *_WAYS)}
    for trainer in arms.values():
        trainer.prepare()
    config = arms[_WAYS[0]].config
    tokens = config.sequences * config.window
    record.put(model=shape.name, pruned_weights=shape.pruned_weights, batch_tokens=tokens, dtype=config.dtype)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    end = time.perf_counter() + _STEPS_SHARE * settings.budget_s
    step = 0
    batches = len(arms[_FROZEN].text) // config.sequences
    while step < WARM_UP_STEPS + LEAST_STEPS or time.perf_counter() < end:
        start = step % batches * config.sequences
        for name in list(arms)[:: 1 if step % 2 == 0 else -1]:
            windows = arms[name].text[start : start + config.sequences]  # of its own: a teacher answers new ones alone
            synchronize(torch, settings.device)
            started = time.perf_counter()
            arms[name].estimator.step(windows, step, 1.0)
            synchronize(torch, settings.device)
            taken[name].append(1e3 * (time.perf_counter() - started))
        step += 1
    timed = {name: times[WARM_UP_STEPS:] for name, times in taken.items()}
    for name, times in timed.items():
        rate = 1e3 * tokens / statistics.median(times)
        record.put(**{f"{name}_step_ms": statistics.median(times), f"{name}_step_ms_all": times, f"{name}_tokens_per_s": rate})
    record.put(logits_moved_by=arms[_FROZEN].estimator.moved_by)
    return " and ".join(f"{_compare(timed, way, record)} ({way})" for way in _WAYS)


def _compare(timed: dict[str, list[float]], way: str, record: Record) -> str:
    """The ratio of one kind of step to one of masks alone, with its interval."""
    logs = trimmed_mean(np.log(timed[way]) - np.log(timed[_FROZEN]))
    ratio, (low, high) = math.exp(float(logs.centre)), map(math.exp, logs.interval(CONFIDENCE))
    record.put(**{f"{way}_ratio": ratio, f"{way}_ratio_low": low, f"{way}_ratio_high": high})
    return f"{ratio:.2f}x ({low:.2f} to {high:.2f})"


def _time_steps(torch: Any, shape: LlamaShape, settings: Settings, record: Record) -> tuple[float, float]:
    """Milliseconds of a step of recovery, and tokens a second."""
    ticks = Ticks(_STEPS_SHARE * settings.budget_s)
    dtype = choose_dtype(torch, settings)
    started = time.perf_counter()
    trainer = _make_recovery(torch, shape, settings, str(dtype).removeprefix("torch."), None, ticks, steps=None)
    synchronize(torch, settings.device)
    config = trainer.config
    tokens = config.sequences * config.window
    record.put(model=shape.name, pruned_weights=shape.pruned_weights, batch_tokens=tokens, dtype=config.dtype)
    record.put(objective=config.minimised, prepare_s=time.perf_counter() - started, dense_loss=trainer.dense_loss)
    run_until_enough(trainer)
    whole = statistics.median(ticks.step_ms)
    record.put(steps=len(ticks.step_ms), step_ms=whole, step_ms_all=ticks.step_ms, tokens_per_s=1e3 * tokens / whole)
    return whole, 1e3 * tokens / whole


# -- runs -----------------------------------------------------------------------------------------------------------------


def _make_trainer(
    torch: Any, shape: LlamaShape, settings: Settings, dtype: Any, *, weights: str,
    store: StateStore | None = None, progress: Progress | None = None, **changed: Any,
) -> Trainer:  # fmt: skip
    """A run that learns masks, and perhaps weights, on a random model; not prepared."""
    from maskpro_deploy.learn.config import LearnConfig
    from maskpro_deploy.learn.trainer import Trainer
    from maskpro_deploy.system.progress import SILENT

    trained = {} if weights == _FROZEN else {"weight_decay": _WEIGHT_DECAY}
    own = {**make_settings(shape, dtype), **trained, **changed}
    config = LearnConfig(pattern=PATTERN, prior="magnitude", weights=weights, **own)
    text, heldout = make_text(shape, config.window)
    return Trainer(make_model(torch, shape, settings.device, dtype), text, heldout, config, store, progress or SILENT)


def _make_joint(torch: Any, settings: Settings, way: str, dtype: str, store: StateStore, progress: Progress) -> Trainer:
    """A short run on the small model, prepared; its rates are high, so that masks change within a few steps."""
    rates = {"learning_rate": 0.5, "weight_rate": 0.01}
    trainer = _make_trainer(
        torch, TINY, settings, getattr(torch, dtype), weights=way, store=store, progress=progress, steps=LAW_STEPS, **rates
    )  # fmt: skip
    trainer.prepare()
    return trainer


def _make_recovery(
    torch: Any, shape: LlamaShape, settings: Settings, dtype: str, store: StateStore | None, progress: Progress,
    steps: int | None = LAW_STEPS,
) -> RecoveryTrainer:  # fmt: skip
    """A run of recovery on a random model under magnitude masks, against the dense one; prepared."""
    from maskpro_deploy.learn.recovery.config import RecoverConfig
    from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer

    number = getattr(torch, dtype)
    limit = {} if steps is None else {"steps": steps}
    config = RecoverConfig(weight_decay=_WEIGHT_DECAY, **{**make_settings(shape, number), **limit})
    text, heldout = make_text(shape, config.window)
    model, teacher = (make_model(torch, shape, settings.device, number) for _ in range(2))
    trainer = RecoveryTrainer(model, text, heldout, config, make_masks(model), teacher, store, progress)
    trainer.prepare()
    return trainer
