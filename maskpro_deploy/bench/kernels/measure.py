"""Matrix products one by one: the shapes of a model, in several forms of the weight, over numbers of tokens.

One sample of a case is `copies` products of one shape with different weights, on caches that were just emptied: in a model each
weight is read once a step, and comes from memory. Forms are compared with the first one as models are (`sessions`), and times are
added up for the model, each shape as often as the model has it.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskpro_deploy.bench.arms import Clock, MeasureConfig
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.roofline import Arithmetic, Bandwidth
from maskpro_deploy.bench.sessions import Opener, Run, Sessions
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.result import plain, samples_json, self_test_json
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.system.progress import SILENT, Progress

KIND = "kernels"
SCHEMA, VERSION = "maskpro-deploy/kernels", 2
_COPIES_BYTES = 32 << 20  # enough for a sample of a millisecond, and quick to make
_SAME_KERNELS = {"fp32", "2:4"}  # forms that run the same ones on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One shape at one number of tokens.

    Attributes:
        k, n: the weight, `# (K, N)`.
        m: tokens.
        count: how often a token goes through such a product in the model.
        copies: products in one sample.
    """

    k: int
    n: int
    m: int
    count: int
    copies: int

    @property
    def label(self) -> str:
        """Such as "576 x 1536 (x 60), M 16"."""
        return f"{self.k} x {self.n} (x {self.count}), M {self.m}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one product."""
        return 2 * self.m * self.k * self.n


def kernel_cases(products: Mapping[tuple[int, int], int], tokens: Sequence[int]) -> list[KernelCase]:
    """Shape by shape, the numbers of tokens of each.

    Args:
        products: (K, N) -> how many the model has.
        tokens: values of M.

    Raises:
        ConfigError: there is no product, or an M below 1.
    """
    if not products:
        raise ConfigError("the graph has no matrix product with a constant weight: there is nothing to measure.")
    for m in tokens:
        if m < 1:
            raise ConfigError(f"--tokens {m} is out of range: 1 or more.")
    return [
        KernelCase(k=k, n=n, m=m, count=count, copies=min(count, max(1, _COPIES_BYTES // (4 * k * n))))
        for (k, n), count in products.items()
        for m in tokens
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """A whole run.

    Attributes:
        forms: names of the arms; the others are compared with the first.
        run: the samples of each case.
        last: (K, N) of the product that makes the logits, which is in no layer.
        layers: how many layers the model has.
        gpu: what was measured on a GPU, or why nothing was.
        earlier: where the run went on with an earlier one or added to it: when and how those were started.
        planned_sessions: how many sessions the run is to have in all; with a budget, at most.
        cpu_finished: whether all sessions on the CPU are done.
        finished: whether this is the end of the run, and not a state on the way that it can go on from.
    """

    forms: tuple[str, ...]
    run: Run[KernelCase]
    last: tuple[int, int] | None
    layers: int
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    bandwidth: Bandwidth
    arithmetic: Arithmetic
    gpu: Mapping[str, Any]
    duration_s: float
    earlier: tuple[Mapping[str, Any], ...] = ()
    planned_sessions: int = 0
    cpu_finished: bool = True
    finished: bool = True

    @property
    def cases(self) -> list[KernelCase]:
        """In the order measured."""
        return list(self.run.measurements)

    @property
    def tokens(self) -> list[int]:
        """The values of M."""
        return list(dict.fromkeys(case.m for case in self.cases))

    @property
    def invalid_reasons(self) -> list[str]:
        """Why the figures prove nothing; empty if they may be believed."""
        reasons = [f"{case.label}: {m.invalid}" for case, m in self.run.measurements.items() if m.invalid is not None]
        test = self.run.verdict()
        if test.invalid is not None:
            reasons.append(f"self-test: {test.invalid}")
        elif test.passed is False:
            reasons.append("self-test: one form looked different from itself twice in a row; something disturbs the timing.")
        return reasons

    @property
    def valid(self) -> bool:
        """Whether the figures may be believed."""
        return not self.invalid_reasons

    @property
    def comparison_count(self) -> int:
        """How many comparisons the run makes on the CPU; their verdicts hold together."""
        return (len(self.cases) + len(self.tokens)) * (len(self.forms) - 1)

    @property
    def least_difference(self) -> float:
        """The smallest difference of interest, as a fraction."""
        return float(self.config.get("least_difference", stats.LEAST_DIFFERENCE))

    def same_kernels(self, form: str) -> bool:
        """Whether a form runs the kernels of the first: a CPU multiplies zeros like any value."""
        return {form, self.forms[0]} == _SAME_KERNELS

    def product_ms(self, case: KernelCase, form: str) -> float | None:
        """Median time of one product."""
        seconds = [s.seconds for s in self.run.measurements[case].samples[form]]
        return 1e3 * stats.summarise(seconds).median / case.copies if seconds else None

    def ratio(self, case: KernelCase, form: str) -> stats.Ratio | None:
        """How much faster a form is than the first; None for a run that is invalid or not finished, or too few sessions."""
        return self._judged(self.run.measurements[case].compare(form, self.forms[0])) if self.finished and self.valid else None

    def model_ms(self, m: int, form: str, *, layer: bool = False) -> float | None:
        """All products of the model at M, each as often as the model has it; or those of one layer, on average."""
        total = 0.0
        for case in self._of(m, layer=layer):
            if (each := self.product_ms(case, form)) is None:
                return None
            total += case.count * each
        return total / self.layers if layer else total

    def model_ratio(self, m: int, form: str) -> stats.Ratio | None:
        """How much faster a form is than the first over all products of the model."""
        cases = self._of(m)
        sessions = min((self.run.measurements[c].sessions for c in cases), default=0)
        if not self.finished or not self.valid or sessions < stats.MIN_SESSIONS:
            return None
        sums = {name: self._session_sums(cases, name) for name in (form, self.forms[0])}  # (P,)
        return self._judged(stats.compare_sessions([[[v]] for v in sums[form]], [[[v]] for v in sums[self.forms[0]]]))

    def _judged(self, ratio: stats.Ratio | None) -> stats.Ratio | None:
        return None if ratio is None else ratio.judged(self.comparison_count, self.least_difference)

    def _session_sums(self, cases: Sequence[KernelCase], form: str) -> list[float]:
        """Seconds of all products in each session, from its medians.  # (P,)"""
        parts = [[c.count / c.copies * float(np.median(p)) for p in self.run.measurements[c].portions(form)] for c in cases]
        return [sum(session) for session in zip(*parts, strict=True)]

    def _of(self, m: int, *, layer: bool = False) -> list[KernelCase]:
        return [c for c in self.cases if c.m == m and not (layer and (c.k, c.n) == self.last)]

    def faster_at(self, form: str, shape: tuple[int, int] | None = None) -> list[int]:
        """The values of M at which a form is faster than the first: for a shape, or for the whole model."""
        found = []
        for m in self.tokens:
            cases = [c for c in self._of(m) if shape is None or (c.k, c.n) == shape]
            ratio = self.model_ratio(m, form) if shape is None else self.ratio(cases[0], form)
            if ratio is not None and ratio.verdict == stats.FASTER:
                found.append(m)
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        test = self.run.verdict()
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": KIND,
            "finished": self.finished,
            "cpu_finished": self.cpu_finished,
            "sessions": self.run.sessions,
            "planned_sessions": self.planned_sessions,
            "date": self.environment.get("date"),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "duration": self.duration_s,
            "config": plain(self.config),
            "model": plain(self.facts),
            "forms": list(self.forms),
            "products": [self._case_json(case) for case in self.cases],
            "whole_model": [
                {
                    "m": m,
                    "form": form,
                    "ms": self.model_ms(m, form),
                    "per_layer_ms": self.model_ms(m, form, layer=True),
                    "against_first": _ratio_json(self.model_ratio(m, form)) if form != self.forms[0] else None,
                }
                for m in self.tokens
                for form in self.forms
            ],
            "verdicts": wording.family_json(self.comparison_count, self.least_difference),
            "self_test": {
                "passed": test.passed,
                "invalid": test.invalid,
                "attempts": [dataclasses.asdict(r) for r in test.attempts],
                "samples": [self_test_json(m) for m in self.run.self_test],
            },
            "earlier": plain(self.earlier),
            "memory_bandwidth": dataclasses.asdict(self.bandwidth),
            "arithmetic": dataclasses.asdict(self.arithmetic),
            "gpu": plain(self.gpu),
            "environment": plain(self.environment),
        }

    def _case_json(self, case: KernelCase) -> dict[str, Any]:
        measured = self.run.measurements[case]
        forms = [
            {
                "form": form,
                "product_ms": self.product_ms(case, form),
                "against_first": _ratio_json(self.ratio(case, form)) if form != self.forms[0] else None,
                "tokens": plain(measured.work[form].tokens.tolist()) if form in measured.work else None,
                "samples": samples_json(measured.samples[form]),
            }
            for form in self.forms
        ]
        state = {name: getattr(measured, name) for name in ("warmup_rounds", "warm", "failed", "invalid")}
        return {**dataclasses.asdict(case), **state, "forms": forms}


def _ratio_json(ratio: stats.Ratio | None) -> dict[str, Any]:
    return dataclasses.asdict(ratio) if ratio is not None else {"verdict": None}


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
    """Measure all cases in all forms.

    Args:
        openers: form -> opens it; what it yields makes the task of a case, and may tell by `error(case)` how far it is off.
        cases: what to time; cases of one shape in a row.
        config: how long.
        run: to go on with; by default a new one.
        save: given the run so far after each case of each session.
        clock: seconds, monotonic.
        wall: the wall clock.
        progress: told after each case of each session.
    """
    sessions = Sessions(
        openers, cases, config, run=run, before=_wrong, after=save, after_case=save, clock=clock, wall=wall, progress=progress
    )
    return sessions.measure()


TOLERANCE = 0.05  # of the largest value: kernels for quantised weights may quantise the input to 8 bits too


def _wrong(case: KernelCase, opened: Mapping[str, Any]) -> str | None:
    """Why the products of a case are not timed: one of them is wrong."""
    for name, make in opened.items():
        off = make.error(case) if hasattr(make, "error") else 0.0
        if not off <= TOLERANCE:
            return f"{name}: the product is wrong, off by {100 * off:.1f} % of the largest value."
    return None
