"""The products of one model on a GPU, at several numbers of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.products.product import explain_nothing_sparse, find_break_evens, measure_cells, plan_cells
from maskpro_deploy.bench.products.timing import CUDA, EventClock, Stopwatch
from maskpro_deploy.bench.products.ways import Ways, describe_error, find_working_ways
from maskpro_deploy.errors import InputError
from maskpro_deploy.system.progress import SILENT, Progress


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
        """Measure them by the ways that work here.

        Returns:
            `facts`, "cells", "planned", "break_even" and "whole_model": milliseconds of all products.
        """
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

    Returns:
        "measured"; with "reason" if not, else "device", "refused" and what `ModelProducts.measure` gives.

    Raises:
        InputError: the earlier cells were measured on another GPU.
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
