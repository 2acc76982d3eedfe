"""Item: learning on the GPU. How long a step takes, and how much of it is sampling masks and moving logits.

The learner's own `Trainer` runs on a random model; its steps are timed from outside, then the parts of a step one by one. Each
part has two times: until Python had launched it, and until the device was done. Where they are close, the GPU waits for Python.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.bench.products.timing import CUDA, synchronize
from maskpro_deploy.gpu_check.items import Record, Settings, import_torch
from maskpro_deploy.gpu_check.models import PATTERN, TINY, LlamaShape
from maskpro_deploy.gpu_check.training import (
    Ticks,
    check_memory,
    choose_dtype,
    make_model,
    make_settings,
    make_text,
    run_until_enough,
)

if TYPE_CHECKING:
    from maskpro_deploy.learn.trainer import Trainer

_STEPS_SHARE = 0.5  # of the budget for whole steps; the rest is for their parts
_WATCHED_STEPS = 3
# bytes a pruned weight: logits (2), two moments (1 and 2), three masks of one bit, rounded up; then the weight
_PRUNED_BYTES, _WEIGHT_BYTES, _SPARE_BYTES = 6, 2, 4 << 30


def time_learning(shape: LlamaShape, settings: Settings, record: Record) -> str:
    """Time learning steps of a random model of `shape`."""
    torch = import_torch(settings.device)
    from maskpro_deploy.learn.model.memory import tuned_process

    with tuned_process(settings.device):
        return _time_steps(torch, TINY if settings.rehearse else shape, settings, record)


def _time_steps(torch: Any, shape: LlamaShape, settings: Settings, record: Record) -> str:
    """The item itself, with the process as the learner has it."""
    on_gpu = settings.device == CUDA
    needed = shape.pruned_weights * _PRUNED_BYTES + (shape.weights + shape.pruned_weights) * _WEIGHT_BYTES + _SPARE_BYTES
    check_memory(torch, settings, shape, needed)
    ticks = Ticks(_STEPS_SHARE * settings.budget_s)
    trainer = _make_trainer(torch, shape, settings, ticks)
    started = time.perf_counter()
    trainer.prepare()
    synchronize(torch, settings.device)
    record.put(
        model=shape.name,
        pruned_weights=shape.pruned_weights,
        batch_tokens=trainer.config.batch_tokens,
        window=trainer.config.window,
        dtype=trainer.config.dtype,
        prepare_s=time.perf_counter() - started,
        dense_loss=trainer.dense_loss,
    )
    run_until_enough(trainer)
    whole = statistics.median(ticks.step_ms)
    rate = 1e3 * trainer.config.sequences * trainer.config.window / whole
    record.put(steps=len(ticks.step_ms), step_ms=whole, step_ms_all=ticks.step_ms, tokens_per_s=rate)
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    record.put(peak_memory_bytes=peak, logits_moved_by=trainer.estimator.moved_by)
    parts = _time_parts(torch, trainer, settings.device, record)
    share = (parts["sampling"] + parts["update"]) / whole
    record.put(sampling_and_update_share=share)
    if on_gpu:
        waits = _find_waits(torch, trainer)
        record.put(host_waits=waits, host_waits_per_step=len(waits) / _WATCHED_STEPS)
    memory = f", peak {peak / 1e9:.1f} GB" if peak is not None else ""
    return f"{shape.name}: {whole:.1f} ms a step, {rate:,.0f} tokens/s, {100 * share:.0f} % sampling and update{memory}"


def _make_trainer(torch: Any, shape: LlamaShape, settings: Settings, ticks: Ticks) -> Trainer:
    """The learner's loop on a random model and random tokens."""
    from maskpro_deploy.learn.config import LearnConfig
    from maskpro_deploy.learn.trainer import Trainer as Loop

    dtype = choose_dtype(torch, settings)
    config = LearnConfig(pattern=PATTERN, weights="frozen", **make_settings(shape, dtype))
    text, heldout = make_text(shape, config.window)
    return Loop(make_model(torch, shape, settings.device, dtype), text, heldout, config, progress=ticks)


def _time_parts(torch: Any, trainer: Trainer, device: str, record: Record) -> dict[str, float]:
    """Median milliseconds of the parts of a step, for all layers together: sampling, update, and a step without either."""
    from maskpro_deploy.learn.model.masked_linear import Mode, SiteHook, set_mode

    sites = trainer.sites
    grads = {s.weight.shape: torch.randn(s.weight.shape, device=device, dtype=s.weight.dtype) * 1e-4 for s in sites}

    def sampling() -> None:
        set_mode(sites, Mode.ARGMAX)
        for site in sites:
            site.masked_weight()

    def update() -> None:
        for site in sites:
            site.hook.take_gradient(site, grads[site.weight.shape])

    def dense() -> None:
        set_mode(sites, Mode.DENSE)
        trainer.model.backward(trainer.model.loss(trainer.text[:8], differentiable=True))

    medians = {}
    with torch.no_grad():
        for name, part in (("sampling", sampling), ("update", update)):
            medians[name] = _time_part(torch, name, part, device, record)
    for site in sites:
        site.hook = SiteHook()
    medians["dense"] = _time_part(torch, "dense_pass", dense, device, record)
    gc.collect()
    return medians


def _find_waits(torch: Any, trainer: Trainer) -> list[str]:
    """Where Python waited for the GPU during a few steps, as torch noticed it."""
    for site in trainer.sites:
        site.hook = trainer.estimator
    config = trainer.config
    windows = trainer.text[: config.sequences]
    trainer.estimator.step(windows, 0, 1.0)
    synchronize(torch, CUDA)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for step in range(_WATCHED_STEPS):
                trainer.estimator.step(windows, step, 1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


def _time_part(torch: Any, name: str, part: Callable[[], None], device: str, record: Record, rounds: int = 20) -> float:
    """Median milliseconds of `part`; what Python and the device took goes into the record."""
    launched, done = [], []
    for i in range(rounds + 2):
        synchronize(torch, device)
        started = time.perf_counter()
        part()
        returned = time.perf_counter()
        synchronize(torch, device)
        if i >= 2:  # the first two warm up
            launched.append(1e3 * (returned - started))
            done.append(1e3 * (time.perf_counter() - started))
        if record.left_s < 0 and len(done) >= 3:
            break
    record.put(**{f"{name}_ms": statistics.median(done), f"{name}_launch_ms": statistics.median(launched)})
    return statistics.median(done)
