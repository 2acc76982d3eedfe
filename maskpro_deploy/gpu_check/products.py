"""Item: torch's 2:4 matrix product against the dense one, over the shapes of real models and the number of tokens.

fp16, bf16 and int8; each kind of product that this machine refuses is reported with its reason, and the others are measured.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.products.measure import explain_nothing_sparse, find_break_evens, measure_cells, plan_cells
from maskpro_deploy.bench.products.timing import EventClock
from maskpro_deploy.bench.products.ways import find_working_ways
from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.gpu_check.items import Record, Settings, import_torch
from maskpro_deploy.gpu_check.models import ONE_B, SEVEN_B, SMOL, LlamaShape

# the ends and the middle first: where time runs out, the curve is coarse but whole
TOKENS = (1, 4096, 64, 512, 16, 1024, 256, 2048, 128, 32, 8)


def linear_shapes(models: Sequence[LlamaShape]) -> dict[tuple[int, int], list[str]]:
    """(N, K) -> the models that have such a layer."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for model in models:
        for shape in dict.fromkeys(model.projections.values()):
            shapes.setdefault(shape, []).append(model.name)
    return shapes


def measure_products(settings: Settings, record: Record) -> str:
    """Time the products; a `CheckFailed` where one is wrong, or failed while it was measured."""
    if settings.rehearse:
        raise MachineError("torch has 2:4 products on CUDA only")
    torch = import_torch(settings.device)
    ways, refused = find_working_ways(torch, settings.device)
    record.put(arms={dtype: list(arms) for dtype, arms in ways.items()}, refused=refused)
    if (reason := explain_nothing_sparse(ways, refused)) is not None:
        raise MachineError(reason)
    shapes = linear_shapes((SMOL, ONE_B, SEVEN_B))
    cells: list[dict[str, Any]] = []
    planned = plan_cells(ways, list(shapes), TOKENS)
    for cell in measure_cells(torch, planned, ways, EventClock(torch)):
        cells.append({**cell, "models": shapes[cell["n"], cell["k"]]})
        record.put(cells=cells, planned=len(planned), break_even=find_break_evens(cells))
        if record.left_s < 0:
            break
    if wrong := [c for c in cells if c["wrong"]]:
        raise CheckFailed(f"{len(wrong)} of {len(cells)} products are wrong, first {wrong[0]['wrong']}")
    if failed := [c for c in cells if c["failed"]]:
        raise CheckFailed(f"{len(failed)} of {len(cells)} products failed, first {failed[0]['failed']}")
    cut = "" if len(cells) == len(planned) else f" ({len(planned)} planned; the time was up)"
    return f"{count_faster(cells)}{cut}"


def count_faster(cells: Sequence[Mapping[str, Any]]) -> str:
    """In how many products 2:4 was faster than dense, for each dtype."""
    counts: dict[str, list[bool]] = {}
    for cell in cells:
        counts.setdefault(cell["dtype"], []).append(any(r["verdict"] == stats.FASTER for r in cell["against_dense"].values()))
    return "faster than dense: " + ", ".join(f"{dtype} {sum(faster)} of {len(faster)}" for dtype, faster in counts.items())
