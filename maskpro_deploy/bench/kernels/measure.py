"""Matrix products one by one: the shapes of a model, in several forms of the weight, over numbers of tokens.

One sample of a case is `copies` products of one shape with different weights, on caches that were just emptied: in a model each
weight is read once a step, and comes from memory. Forms are compared with the first one as models are (`sessions`).

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.arms import Clock, MeasureConfig
from maskpro_deploy.bench.sessions import Opener, Run, Sessions
from maskpro_deploy.errors import ConfigError, check_range
from maskpro_deploy.system.progress import SILENT, Progress

_COPIES_BYTES = 32 << 20  # enough for a sample of a millisecond, and quick to make


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One shape at one number of tokens."""

    k: int  # the weight, `# (K, N)`
    n: int
    m: int  # tokens
    count: int  # how often a token goes through such a product in the model
    copies: int  # products in one sample

    @property
    def label(self) -> str:
        """Such as "576 x 1536 (x 60), M 16"."""
        return f"{self.k} x {self.n} (x {self.count}), M {self.m}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one product."""
        return 2 * self.m * self.k * self.n


def plan_cases(products: Mapping[tuple[int, int], int], tokens: Sequence[int]) -> list[KernelCase]:
    """Shape by shape, the numbers of tokens of each: of products (K, N) -> how many the model has, at these values of M."""
    if not products:
        raise ConfigError("the graph has no matrix product with a constant weight: there is nothing to measure.")
    for m in tokens:
        check_range("--tokens", m, least=1)
    return [
        KernelCase(k=k, n=n, m=m, count=count, copies=min(count, max(1, _COPIES_BYTES // (4 * k * n))))
        for (k, n), count in products.items()
        for m in tokens
    ]


TOLERANCE = 0.05  # of the largest value: kernels for quantised weights may quantise the input to 8 bits too


def run_kernels(
    openers: Mapping[str, Opener[KernelCase]],
    cases: Sequence[KernelCase],
    config: MeasureConfig,
    *,
    run: Run[KernelCase] | None = None,
    save: Callable[[Run[KernelCase]], None] = lambda run: None,
    clock: Clock = time.perf_counter,
    wall: Clock = time.time,
    progress: Progress = SILENT,
) -> Run[KernelCase]:
    """Measure all cases in all forms; cases of one shape stand in a row. `save` is called after each case of each session.

    What an opener yields makes the task of a case, and may have `error(case)`: how far it is off. See `Sessions` for the rest.
    """
    sessions = Sessions(
        openers, cases, config, run=run, before=_check, after=save, after_case=save, clock=clock, wall=wall, progress=progress
    )
    return sessions.measure()


def _check(case: KernelCase, opened: Mapping[str, Any]) -> str | None:
    """Why the products of a case are not timed: one of them is wrong."""
    for name, make in opened.items():
        off = make.error(case) if hasattr(make, "error") else 0.0
        if not off <= TOLERANCE:
            return f"{name}: the product is wrong, off by {100 * off:.1f} % of the largest value."
    return None
