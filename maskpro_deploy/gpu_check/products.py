"""Item: torch's 2:4 matrix product against the dense one, over the shapes of real models and the number of tokens.

fp16, bf16 and int8; each kind of product that this machine refuses is told with its reason, and the others are measured.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.statistics.break_even import break_even
from maskpro_deploy.errors import CheckFailed, InputError, MachineError
from maskpro_deploy.gpu_check.arms import DTYPES, Product, Way, Ways, first_line, random_operands, working_ways
from maskpro_deploy.gpu_check.items import CUDA, Record, Settings, finish, torch_on
from maskpro_deploy.gpu_check.models import ONE_B, SEVEN_B, SMOL, LlamaShape
from maskpro_deploy.gpu_check.timing import DENSE, EventClock, Stopwatch, judge, launch_ms, race
from maskpro_deploy.system.progress import SILENT, Progress

# the ends and the middle first: where time runs out, the curve is coarse but whole
TOKENS = (1, 4096, 64, 512, 16, 1024, 256, 2048, 128, 32, 8)
_BLOCKS = 12
_TOLERANCE = 0.02  # largest difference of a product, as a part of its largest value

CellKey = tuple[str, int, int, int]  # dtype, M, N, K


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
        CheckFailed: a product is wrong, or one failed while it was measured.
    """
    if settings.rehearse:
        raise MachineError("torch has 2:4 products on CUDA only")
    torch = torch_on(settings.device)
    ways, refused = working_ways(torch, settings.device)
    record.put(arms={dtype: list(arms) for dtype, arms in ways.items()}, refused=refused)
    if (reason := nothing_sparse(ways, refused)) is not None:
        raise MachineError(reason)
    shapes = linear_shapes((SMOL, ONE_B, SEVEN_B))
    cells: list[dict[str, Any]] = []
    planned = cell_keys(ways, list(shapes), TOKENS)
    for cell in measured_cells(torch, planned, ways, EventClock(torch)):
        cells.append({**cell, "models": shapes[cell["n"], cell["k"]]})
        record.put(cells=cells, planned=len(planned), break_even=break_evens(cells))
        if record.left_s < 0:
            break
    if wrong := [c for c in cells if c["wrong"]]:
        raise CheckFailed(f"{len(wrong)} of {len(cells)} products are wrong, first {wrong[0]['wrong']}")
    if failed := [c for c in cells if c["failed"]]:
        raise CheckFailed(f"{len(failed)} of {len(cells)} products failed, first {failed[0]['failed']}")
    cut = "" if len(cells) == len(planned) else f" ({len(planned)} planned; the time was up)"
    return f"{faster_by_dtype(cells)}{cut}"


def nothing_sparse(ways: Ways, refused: Mapping[str, str]) -> str | None:
    """Why there is nothing to compare: no dtype has anything beside its dense product."""
    if any(set(arms) - {DENSE} for arms in ways.values()):
        return None
    return "; ".join(f"torch's {name}: {why}" for name, why in refused.items())


def faster_by_dtype(cells: Sequence[Mapping[str, Any]]) -> str:
    """In how many products 2:4 was faster than dense, for each dtype."""
    counts: dict[str, list[bool]] = {}
    for cell in cells:
        counts.setdefault(cell["dtype"], []).append(any(r["verdict"] == stats.FASTER for r in cell["against_dense"].values()))
    return "faster than dense: " + ", ".join(f"{dtype} {sum(found)} of {len(found)}" for dtype, found in counts.items())


def cell_keys(ways: Ways, shapes: Iterable[tuple[int, int]], tokens: Sequence[int]) -> list[CellKey]:
    """What there is to measure, in the order of `tokens`.

    Args:
        ways: of each dtype; those without any are left out.
        shapes: (N, K).
        tokens: values of M.
    """
    shapes = list(shapes)
    return [(dtype, m, n, k) for m in tokens for dtype in DTYPES if ways.get(dtype) for n, k in shapes]


def measured_cells(torch: Any, keys: Iterable[CellKey], ways: Ways, watch: Stopwatch) -> Iterator[dict[str, Any]]:
    """All products, each as soon as it is measured; ends early only where the device takes no more work."""
    for dtype, m, n, k in keys:
        figures: dict[str, Any] = {"median_ms": {}, "against_dense": {}, "refused": {}, "wrong": "", "failed": ""}
        alive = True
        try:
            with torch.no_grad():
                figures |= measure(torch, getattr(torch, dtype), (m, n, k), ways[dtype], watch)
        except Exception as e:  # no memory, or anything else that concerns this product alone
            figures["failed"] = f"{dtype} {m} x {k} x {n}: {first_line(e)}"
            alive = _works(torch, watch.device)
        yield {"dtype": dtype, "m": m, "n": n, "k": k, **figures}
        if not alive:
            return


def _works(torch: Any, device: str) -> bool:
    """Whether the device still computes: after some errors nothing does until the process ends."""
    try:
        torch.ones(1, device=device).add_(1)
        finish(torch, device)
    except Exception:  # as above
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProducts:
    """The products of one model, to be measured on a GPU.

    Attributes:
        products: (K, N) -> how many the model has.
        tokens: values of M.
        budget_s: stop after so long.
        earlier: cells that were measured before; they are kept, and not measured again.
        device: the GPU that they were measured on.
        save: given the findings so far after each cell.
        progress: told after each cell.
    """

    products: Mapping[tuple[int, int], int]
    tokens: Sequence[int]
    budget_s: float
    earlier: Sequence[Mapping[str, Any]] = ()
    device: str | None = None
    save: Callable[[dict[str, Any]], None] = lambda found: None
    progress: Progress = SILENT

    def measure(self, torch: Any, ways: Ways, watch: Stopwatch, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Measure them by the ways that work here.

        Returns:
            `facts`, "cells", "planned", "break_even" and "whole_model": milliseconds of all products.
        """
        cells = [dict(cell) for cell in self.earlier]
        done = {(c["dtype"], c["m"], c["n"], c["k"]) for c in cells}
        todo = [key for key in cell_keys(ways, [(n, k) for k, n in self.products], self.tokens) if key not in done]
        planned = len(cells) + len(todo)

        def found() -> dict[str, Any]:
            figures = {"break_even": break_evens(cells), "whole_model": whole_model(cells, len(self.products))}
            return {"measured": True, **facts, "cells": list(cells), "planned": planned, **figures}

        until = time.monotonic() + self.budget_s
        for cell in measured_cells(torch, todo, ways, watch):
            cells.append({**cell, "count": self.products[cell["k"], cell["n"]]})
            self.progress.update(len(cells), planned, f"{cell['dtype']}, M {cell['m']}")
            self.save(found())
            if time.monotonic() > until:
                break
        return found()


def of_model(model: ModelProducts) -> dict[str, Any]:
    """The products of one model on this machine's GPU, dense beside 2:4, or the reason why they were not measured.

    Returns:
        "measured"; with "reason" if not, else "device", "refused" and what `ModelProducts.measure` gives.

    Raises:
        InputError: the earlier cells were measured on another GPU.
    """
    if find_spec("torch") is None:
        return {"measured": False, "reason": "torch is not installed"}
    import torch

    if not torch.cuda.is_available():
        return {"measured": False, "reason": "torch sees no CUDA device"}
    device = torch.cuda.get_device_name()
    if model.earlier and model.device != device:
        raise InputError(f"the GPU is {device}, and was {model.device}: figures of two GPUs do not mix.\nChoose another --out.")
    ways, refused = working_ways(torch, CUDA)
    if (reason := nothing_sparse(ways, refused)) is not None:
        return {"measured": False, "reason": reason}
    try:
        watch = EventClock(torch)
    except RuntimeError as e:  # no memory, or a device that the trials above have brought to an end
        return {"measured": False, "reason": first_line(e)}
    return model.measure(torch, ways, watch, {"device": device, "refused": refused})


def whole_model(cells: Sequence[Mapping[str, Any]], shapes: int) -> list[dict[str, Any]]:
    """Milliseconds of all products of a model, where every shape was measured: for each dtype, M and arm."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dtype"], cell["m"]), []).append(cell)
    found = []
    for (dtype, m), group in groups.items():
        arms = set.intersection(*(set(cell["median_ms"]) for cell in group))
        if len(group) == shapes and arms:
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


def measure(torch: Any, dtype: Any, sizes: tuple[int, int, int], ways: Mapping[str, Way], watch: Stopwatch) -> dict[str, Any]:
    """One product, (M, N, K), on all arms: checked against the product in fp32, warmed up, timed.

    An arm that is refused or wrong is named, and not timed.

    Args:
        torch: the module.
        dtype: of weight and input.
        sizes: M, N and K.
        ways: arm -> how it multiplies; speed is told against `DENSE`, if that is one of them.
        watch: times it.

    Returns:
        "median_ms", "launch_ms" by arm, "against_dense"; "refused" and "wrong", "" if none is; "rows" where an arm pads its input
        (arm -> M with padding), and "output" (arm -> type of its result).
    """
    m, n, k = sizes
    weight, x = random_operands(torch, dtype, sizes, watch.device)
    expected = x.float() @ weight.float().t()  # (M, N); exact for 8 bits: the sums are below 2**24
    scale = float(expected.abs().max())
    made: dict[str, Product] = {}
    refused: dict[str, str] = {}
    wrong = ""
    for name, way in ways.items():
        try:
            product = way(weight, x)
            difference = float((product.run().float() - expected).abs().max()) / scale
        except Exception as e:  # a shape or type that this way does not take
            refused[name] = first_line(e)
            continue
        if difference < _TOLERANCE:
            made[name] = product
        else:
            wrong = wrong or f"{name} {m} x {k} x {n}: off by {difference:.3f} of the largest value"
    told = {
        "refused": refused,
        "wrong": wrong,
        "rows": {name: product.rows for name, product in made.items() if product.rows != m},
        "output": {name: product.output for name, product in made.items()},
    }
    if not made:
        return told
    arms = {name: product.run for name, product in made.items()}
    launches = {name: launch_ms(torch, work, watch.device) for name, work in arms.items()}
    watch.cover(max(launches.values()))
    race(arms, watch, 2)  # warm-up
    return {**judge(race(arms, watch, _BLOCKS)), "launch_ms": launches, **told}
