"""One product by every way that multiplies it, checked against the product in fp32 and timed; and several in turn.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from maskpro_deploy.bench.products.timing import DENSE, Stopwatch, judge_samples, measure_launch_ms, race_arms, synchronize
from maskpro_deploy.bench.products.ways import DTYPES, Product, Way, Ways, describe_error, draw_operands
from maskpro_deploy.bench.statistics.break_even import find_break_even

_BLOCKS = 12
_TOLERANCE = 0.02  # largest difference of a product, as a part of its largest value

CellKey = tuple[str, int, int, int]  # dtype, M, N, K


def explain_nothing_sparse(ways: Ways, refused: Mapping[str, str]) -> str | None:
    """Why there is nothing to compare: no dtype has anything but its dense product."""
    if any(set(arms) - {DENSE} for arms in ways.values()):
        return None
    return "; ".join(f"torch's {name}: {why}" for name, why in refused.items())


def plan_cells(ways: Ways, shapes: Iterable[tuple[int, int]], tokens: Sequence[int]) -> list[CellKey]:
    """What there is to measure, in the order of `tokens`.

    Args:
        ways: of each dtype; those without any are left out.
        shapes: (N, K).
        tokens: values of M.
    """
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

    An arm that is refused or wrong is named, and not timed.

    Args:
        torch: the module.
        dtype: of weight and input.
        sizes: M, N and K.
        ways: arm -> how it multiplies; `DENSE`, if it is one of them, is what the others are compared with.
        watch: times it.

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
