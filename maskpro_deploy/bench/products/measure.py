"""Products on a GPU: one by every way that multiplies it, checked against the product in fp32 and timed; and all of a model.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.products.timing import (
    CUDA,
    DENSE,
    EventClock,
    Stopwatch,
    judge_samples,
    measure_launch_ms,
    race_arms,
    synchronize,
)
from maskpro_deploy.bench.products.ways import DTYPES, Product, Way, Ways, describe_error, draw_operands, find_working_ways
from maskpro_deploy.bench.stats import find_break_even
from maskpro_deploy.errors import InputError
from maskpro_deploy.system.progress import SILENT, Progress

_BLOCKS = 12
_TOLERANCE = 0.02  # largest difference of a product, as a part of its largest value

CellKey = tuple[str, int, int, int]  # dtype, M, N, K


def explain_nothing_sparse(ways: Ways, refused: Mapping[str, str]) -> str | None:
    """Why there is nothing to compare: no dtype has anything but its dense product."""
    if any(set(arms) - {DENSE} for arms in ways.values()):
        return None
    return "; ".join(f"torch's {name}: {why}" for name, why in refused.items())


def plan_cells(ways: Ways, shapes: Iterable[tuple[int, int]], tokens: Sequence[int]) -> list[CellKey]:
    """What there is to measure of shapes (N, K), in the order of `tokens` (values of M); a dtype without ways is left out."""
    shapes = list(shapes)
    return [(dtype, m, n, k) for m in tokens for dtype in DTYPES if ways.get(dtype) for n, k in shapes]


def measure_cells(torch: Any, keys: Iterable[CellKey], ways: Ways, watch: Stopwatch) -> Iterator[dict[str, Any]]:
    """All products, each as soon as it is measured; ends early only where the device takes no more work."""
    for dtype, m, n, k in keys:
        figures: dict[str, Any] = {"median_ms": {}, "against_dense": {}, "refused": {}, "wrong": "", "failed": ""}
        alive = True
        try:
            with torch.no_grad():
                figures |= measure_product(torch, getattr(torch, dtype), (m, n, k), ways[dtype], watch)
        except Exception as e:  # no memory, or anything else that concerns this product alone
            figures["failed"] = f"{dtype} {m} x {k} x {n}: {describe_error(e)}"
            alive = _still_works(torch, watch.device)
        yield {"dtype": dtype, "m": m, "n": n, "k": k, **figures}
        if not alive:
            return


def _still_works(torch: Any, device: str) -> bool:
    """Whether the device still computes: after some errors nothing does until the process ends."""
    try:
        torch.ones(1, device=device).add_(1)
        synchronize(torch, device)
    except Exception:  # as above
        return False
    return True


def find_break_evens(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every dtype, shape and backend: the M from which on 2:4 is faster."""
    verdicts: dict[tuple[str, int, int, str], dict[int, str]] = {}
    for cell in cells:
        for backend, ratio in cell["against_dense"].items():
            verdicts.setdefault((cell["dtype"], cell["n"], cell["k"], backend), {})[cell["m"]] = ratio["verdict"]
    return [
        {"dtype": dtype, "n": n, "k": k, "backend": backend, "from_m": find_break_even(by_m), "measured_m": sorted(by_m)}
        for (dtype, n, k, backend), by_m in verdicts.items()
    ]


def measure_product(
    torch: Any, dtype: Any, sizes: tuple[int, int, int], ways: Mapping[str, Way], watch: Stopwatch
) -> dict[str, Any]:
    """One product, (M, N, K), on all arms: checked against the product in fp32, warmed up, timed.

    An arm that is refused or wrong is named, and not timed. `DENSE`, if it is there, is what the others are compared with.

    Returns:
        "median_ms", "launch_ms" by arm, "against_dense"; "refused" and "wrong", "" if none is; "rows" where an arm pads its input
        (arm -> M with padding), and "output" (arm -> type of its result).
    """
    m, n, k = sizes
    weight, x = draw_operands(torch, dtype, sizes, watch.device)
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
            refused[name] = describe_error(e)
            continue
        if difference < _TOLERANCE:
            made[name] = product
        else:
            wrong = wrong or f"{name} {m} x {k} x {n}: off by {difference:.3f} of the largest value"
    notes = {
        "refused": refused,
        "wrong": wrong,
        "rows": {name: product.rows for name, product in made.items() if product.rows != m},
        "output": {name: product.output for name, product in made.items()},
    }
    if not made:
        return notes
    arms = {name: product.run for name, product in made.items()}
    launches = {name: measure_launch_ms(torch, work, watch.device) for name, work in arms.items()}
    watch.cover(max(launches.values()))
    race_arms(arms, watch, 2)  # warm-up
    return {**judge_samples(race_arms(arms, watch, _BLOCKS)), "launch_ms": launches, **notes}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProducts:
    """The products of one model, to be measured on a GPU."""

    products: Mapping[tuple[int, int], int]  # (K, N) -> how many the model has
    tokens: Sequence[int]  # values of M
    budget_s: float  # stop after so long
    earlier: Sequence[Mapping[str, Any]] = ()  # cells that were measured before; they are kept, and not measured again
    device: str | None = None  # the GPU that they were measured on
    save: Callable[[dict[str, Any]], None] = lambda findings: None  # given the findings so far after each cell
    progress: Progress = SILENT  # updated after each cell

    def measure(self, torch: Any, ways: Ways, watch: Stopwatch, facts: Mapping[str, Any]) -> dict[str, Any]:
        """`facts`, "cells", "planned", "break_even" and "whole_model" (milliseconds of all products), by these ways."""
        cells = [dict(cell) for cell in self.earlier]
        done = {(c["dtype"], c["m"], c["n"], c["k"]) for c in cells}
        todo = [key for key in plan_cells(ways, [(n, k) for k, n in self.products], self.tokens) if key not in done]
        planned = len(cells) + len(todo)

        def collect() -> dict[str, Any]:
            figures = {"break_even": find_break_evens(cells), "whole_model": sum_whole_model(cells, len(self.products))}
            return {"measured": True, **facts, "cells": list(cells), "planned": planned, **figures}

        until = time.monotonic() + self.budget_s
        for cell in measure_cells(torch, todo, ways, watch):
            cells.append({**cell, "count": self.products[cell["k"], cell["n"]]})
            self.progress.update(len(cells), planned, f"{cell['dtype']}, M {cell['m']}")
            self.save(collect())
            if time.monotonic() > until:
                break
        return collect()


def measure_model(torch: Any, model: ModelProducts) -> dict[str, Any]:
    """The products of one model on this machine's GPU, dense next to 2:4, or the reason why they were not measured.

    "measured"; with "reason" if not, else "device", "refused" and what `ModelProducts.measure` gives. An `InputError` where the
    earlier cells were measured on another GPU.
    """
    if not torch.cuda.is_available():
        return {"measured": False, "reason": "torch sees no CUDA device"}
    device = torch.cuda.get_device_name()
    if model.earlier and model.device != device:
        raise InputError(f"the GPU is {device}, and was {model.device}: figures of two GPUs do not mix.\nChoose another --out.")
    ways, refused = find_working_ways(torch, CUDA)
    if (reason := explain_nothing_sparse(ways, refused)) is not None:
        return {"measured": False, "reason": reason}
    try:
        watch = EventClock(torch)
    except RuntimeError as e:  # no memory, or a device that the trials above have brought to an end
        return {"measured": False, "reason": describe_error(e)}
    return model.measure(torch, ways, watch, {"device": device, "refused": refused})


def sum_whole_model(cells: Sequence[Mapping[str, Any]], shapes: int) -> list[dict[str, Any]]:
    """Milliseconds of all products of a model, where every shape was measured: for each dtype, M and arm."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dtype"], cell["m"]), []).append(cell)
    totals = []
    for (dtype, m), group in groups.items():
        arms = set.intersection(*(set(cell["median_ms"]) for cell in group))
        if len(group) == shapes and arms:
            times = {arm: sum(cell["count"] * cell["median_ms"][arm] for cell in group) for arm in sorted(arms)}
            totals.append({"dtype": dtype, "m": m, "ms": times})
    return totals
