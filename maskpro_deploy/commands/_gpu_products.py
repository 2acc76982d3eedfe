"""Item: torch's 2:4 matrix product against the dense one, over the shapes of real models and the number of tokens.

Each product is timed by CUDA events, arms interleaved (A B B A). Before every timing a large buffer is overwritten: weights then
come from memory, as they do in a model, and not from the cache; and while that runs, Python has launched the product, so that the
time of launching is not measured (it is told by itself).

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.arms import SAMPLES_PER_BLOCK, block_order
from maskpro_deploy.bench.break_even import break_even
from maskpro_deploy.commands._gpu_items import CPU, CUDA, Record, Settings, finish, torch_on
from maskpro_deploy.commands._gpu_models import ONE_B, SEVEN_B, SMOL, LlamaShape
from maskpro_deploy.errors import CheckFailed, MachineError

# the ends and the middle first: where time runs out, the curve is coarse but whole
TOKENS = (1, 4096, 64, 512, 16, 1024, 256, 2048, 128, 32, 8)
DTYPES = ("float16", "bfloat16")
DENSE = "dense"
# torch's two ways to run 2:4: name -> tensor class in torch.sparse
BACKENDS = {"cusparselt": "SparseSemiStructuredTensorCUSPARSELT", "cutlass": "SparseSemiStructuredTensorCUTLASS"}
_BLOCKS = 12
_RESAMPLES = 1000
_FLUSH_BYTES = 512 << 20  # several times any GPU's cache
_TOLERANCE = 0.02  # largest difference of a product, as a part of its largest value


class Stopwatch(Protocol):
    """Times one call; the answer can be had once the device is done.

    Attributes:
        device: where the work runs.
    """

    device: str

    def cover(self, launch_ms: float) -> None:
        """See to it that a launch of this length is not measured, if it can be kept apart."""

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        """Run `work`; the result gives its milliseconds."""


class WallClock:
    """For work that is done when the call returns."""

    device = CPU

    def cover(self, launch_ms: float) -> None:
        """The launch is all there is."""

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        started = time.perf_counter()
        work()
        milliseconds = 1e3 * (time.perf_counter() - started)
        return lambda: milliseconds


class EventClock:
    """CUDA events around work on a cold cache.

    Args:
        torch: the module.
    """

    device = CUDA

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._buffer = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=CUDA)
        self._flushes = 1
        self._buffer.zero_()
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._buffer.zero_()
        torch.cuda.synchronize()
        self._flush_ms = 1e3 * (time.perf_counter() - started)

    def cover(self, launch_ms: float) -> None:
        """Overwrite the buffer as often as it takes to hide a launch of this length twice over."""
        self._flushes = max(1, math.ceil(2 * launch_ms / self._flush_ms))

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self._flushes):
            self._buffer.zero_()
        begin.record()
        work()
        end.record()

        def milliseconds() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end))

        return milliseconds


def race(arms: Mapping[str, Callable[[], object]], watch: Stopwatch, blocks: int) -> dict[str, list[list[float]]]:
    """Time arms in interleaved blocks.  # name -> (blocks, SAMPLES_PER_BLOCK) milliseconds"""
    samples: dict[str, list[list[float]]] = {name: [] for name in arms}
    for block in range(blocks):
        pending = [(name, watch.time(arms[name])) for name in block_order(list(arms), block)]
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for name, milliseconds in pending:
            taken[name].append(milliseconds())
        for name, values in taken.items():
            samples[name].append(values[:SAMPLES_PER_BLOCK])
    return samples


def judge(samples: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """Medians of all arms, and each sparse one against the dense one with its 95 % interval."""
    medians = {name: statistics.median([v for block in values for v in block]) for name, values in samples.items()}
    ratios: dict[str, Any] = {}
    for name in samples:
        if name == DENSE:
            continue
        ratio = stats.compare(samples[name], samples[DENSE], resamples=_RESAMPLES)
        if ratio is not None:
            ratios[name] = {"speedup": ratio.speedup, "low": ratio.low, "high": ratio.high, "verdict": ratio.verdict}
    return {"median_ms": medians, "against_dense": ratios}


def linear_shapes(models: Sequence[LlamaShape]) -> dict[tuple[int, int], list[str]]:
    """(N, K) -> the models that have such a layer."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for model in models:
        for shape in dict.fromkeys(model.projections.values()):
            shapes.setdefault(shape, []).append(model.name)
    return shapes


def products(settings: Settings, record: Record) -> str:
    """Time the products.

    Raises:
        MachineError: no GPU, or torch has no working 2:4 product here.
        CheckFailed: a sparse product is wrong.
    """
    if settings.rehearse:
        raise MachineError("torch has 2:4 products on CUDA only")
    torch = torch_on(settings.device)
    backends, refused = working_backends(torch)
    record.put(backends=list(backends), refused=refused)
    if not backends:
        raise MachineError("; ".join(f"torch's {name}: {why}" for name, why in refused.items()))
    watch = EventClock(torch)
    shapes = linear_shapes((SMOL, ONE_B, SEVEN_B))
    cells: list[dict[str, Any]] = []
    planned = len(TOKENS) * len(DTYPES) * len(shapes)
    for cell in measured_cells(torch, list(shapes), TOKENS, backends, watch):
        cells.append({**cell, "models": shapes[cell["n"], cell["k"]]})
        record.put(cells=cells, planned=planned, break_even=break_evens(cells))
        if record.left_s < 0:
            break
    faster = sum(any(r["verdict"] == stats.FASTER for r in c["against_dense"].values()) for c in cells)
    if wrong := [c for c in cells if c["wrong"]]:
        raise CheckFailed(f"{len(wrong)} of {len(cells)} sparse products are wrong, first {wrong[0]['wrong']}")
    cut = "" if len(cells) == planned else f" ({planned} planned; the time was up)"
    return f"{', '.join(backends)}: faster than dense in {faster} of {len(cells)} products{cut}"


def measured_cells(
    torch: Any, shapes: Sequence[tuple[int, int]], tokens: Sequence[int], backends: Mapping[str, Any], watch: Stopwatch
) -> Iterator[dict[str, Any]]:
    """All products, (N, K) by M and dtype, in the order of `tokens`; each as soon as it is measured."""
    for m in tokens:
        for dtype in DTYPES:
            for n, k in shapes:
                with torch.no_grad():
                    figures = measure(torch, getattr(torch, dtype), (m, n, k), backends, watch)
                yield {"dtype": dtype, "m": m, "n": n, "k": k, **figures}


def of_model(products: Mapping[tuple[int, int], int], tokens: Sequence[int], budget_s: float) -> dict[str, Any]:
    """The products of one model on this machine's GPU, dense beside 2:4, or the reason why they were not measured.

    Args:
        products: (K, N) -> how many the model has.
        tokens: values of M.
        budget_s: stop after so long.

    Returns:
        "measured"; with "reason" if not, else "device", "cells", "break_even" and "whole_model": milliseconds of all products.
    """
    if find_spec("torch") is None:
        return {"measured": False, "reason": "torch is not installed"}
    import torch

    if not torch.cuda.is_available():
        return {"measured": False, "reason": "torch sees no CUDA device"}
    backends, refused = working_backends(torch)
    if not backends:
        return {"measured": False, "reason": "; ".join(f"torch's {name}: {why}" for name, why in refused.items())}
    cells: list[dict[str, Any]] = []
    until = time.monotonic() + budget_s
    for cell in measured_cells(torch, [(n, k) for k, n in products], tokens, backends, EventClock(torch)):
        cells.append({**cell, "count": products[cell["k"], cell["n"]]})
        if time.monotonic() > until:
            break
    return {
        "measured": True,
        "device": torch.cuda.get_device_name(),
        "refused": refused,
        "cells": cells,
        "planned": len(products) * len(tokens) * len(DTYPES),
        "break_even": break_evens(cells),
        "whole_model": whole_model(cells, len(products)),
    }


def whole_model(cells: Sequence[Mapping[str, Any]], shapes: int) -> list[dict[str, Any]]:
    """Milliseconds of all products of a model, where every shape was measured: for each dtype, M and arm."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dtype"], cell["m"]), []).append(cell)
    found = []
    for (dtype, m), group in groups.items():
        arms = set.intersection(*(set(cell["median_ms"]) for cell in group))
        if len(group) == shapes:
            totals = {arm: sum(cell["count"] * cell["median_ms"][arm] for cell in group) for arm in sorted(arms)}
            found.append({"dtype": dtype, "m": m, "ms": totals})
    return found


def break_evens(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every dtype, shape and backend: the M from which on 2:4 is faster."""
    verdicts: dict[tuple[str, int, int, str], dict[int, str]] = {}
    for cell in cells:
        for backend, ratio in cell["against_dense"].items():
            verdicts.setdefault((cell["dtype"], cell["n"], cell["k"], backend), {})[cell["m"]] = ratio["verdict"]
    return [
        {"dtype": dtype, "n": n, "k": k, "backend": backend, "from_m": break_even(by_m), "measured_m": sorted(by_m)}
        for (dtype, n, k, backend), by_m in verdicts.items()
    ]


def working_backends(torch: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensor classes that multiply here, and why the others do not."""
    working, refused = {}, {}
    for name, class_name in BACKENDS.items():
        try:
            kind = getattr(torch.sparse, class_name)
            sparse = kind.from_dense(_two_of_four(torch, (64, 64), torch.float16, CUDA))
            torch.nn.functional.linear(torch.ones(64, 64, dtype=torch.float16, device=CUDA), sparse)
            torch.cuda.synchronize()
            working[name] = kind
        except Exception as e:  # torch raises many kinds; the first line says enough
            refused[name] = (str(e).strip().splitlines() or [type(e).__name__])[0]
    return working, refused


def _two_of_four(torch: Any, shape: tuple[int, int], dtype: Any, device: str) -> Any:
    """A random weight with the largest two of every four kept.  # (N, K)"""
    groups = torch.randn(shape[0] * shape[1] // 4, 4, device=device)
    kept = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2, dim=1).indices, 1.0)
    return (groups * kept).view(shape).to(dtype)


def measure(torch: Any, dtype: Any, sizes: tuple[int, int, int], backends: Mapping[str, Any], watch: Stopwatch) -> dict[str, Any]:
    """One product, (M, N, K), on all arms: checked, warmed up, timed.

    Args:
        torch: the module.
        dtype: of weight and input.
        sizes: M, N and K.
        backends: name -> tensor class with `from_dense`.
        watch: times it.
    """
    m, n, k = sizes
    linear = torch.nn.functional.linear
    dense = _two_of_four(torch, (n, k), dtype, watch.device)
    x = torch.randn(m, k, device=watch.device, dtype=dtype)

    def arm(weight: Any) -> Callable[[], object]:
        return lambda: linear(x, weight)

    arms = {DENSE: arm(dense)}
    failed: dict[str, str] = {}
    wrong = ""
    expected = linear(x, dense).float()
    scale = float(expected.abs().max())
    for name, kind in backends.items():
        try:
            weight = kind.from_dense(dense)
            difference = float((linear(x, weight).float() - expected).abs().max()) / scale
        except RuntimeError as e:  # a shape or type that this way does not take
            failed[name] = (str(e).strip().splitlines() or [type(e).__name__])[0]
            continue
        if not difference < _TOLERANCE:
            wrong = wrong or f"{name} {m} x {k} x {n}: off by {difference:.3f} of the largest value"
        arms[name] = arm(weight)
    launch_ms = {name: _launch_ms(torch, work, watch.device) for name, work in arms.items()}
    watch.cover(max(launch_ms.values()))
    race(arms, watch, 2)  # warm-up
    return {**judge(race(arms, watch, _BLOCKS)), "launch_ms": launch_ms, "refused": failed, "wrong": wrong}


def _launch_ms(torch: Any, work: Callable[[], object], device: str) -> float:
    """The shortest time that Python needs to launch a product."""
    best = math.inf
    for _ in range(5):
        finish(torch, device)
        started = time.perf_counter()
        work()
        best = min(best, 1e3 * (time.perf_counter() - started))
    finish(torch, device)
    return best
