"""Products on a simulated clock: what is added up, compared and said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from simulated import BANDWIDTH, ManualClock

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.arms import MeasureConfig, PreparedTask, Task, Work
from maskpro_deploy.bench.kernels.measure import KernelCase, plan_cases, run_kernels
from maskpro_deploy.bench.kernels.result import KernelResult, load_result
from maskpro_deploy.bench.kernels.summary import describe
from maskpro_deploy.bench.results.document import to_markdown
from maskpro_deploy.bench.roofline import Arithmetic
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.reports.benchmarks import build_kernels_page
from maskpro_deploy.reports.blocks import render

PRODUCTS = {(32, 64): 4, (64, 32): 2, (32, 320): 1}
QUICK = MeasureConfig(blocks=1, sessions=8, warmup_rounds=6)


class Form:
    """Products that take a time for each operation; emptying the caches takes ten seconds that must not be measured."""

    def __init__(self, clock: ManualClock, per_operation_s: Callable[[KernelCase], float], off: float = 0.0) -> None:
        self._clock, self._per_operation_s, self._off = clock, per_operation_s, off

    def __call__(self, case: KernelCase) -> Task:
        def work() -> Work:
            self._clock.advance(case.copies * case.operations * self._per_operation_s(case))
            return Work(tokens=np.array([case.m]))

        return PreparedTask(lambda: self._clock.advance(10.0), work)

    def error(self, case: KernelCase) -> float:
        return self._off


@contextmanager
def opened(form: Form) -> Iterator[Form]:
    yield form


def result(*, off: float = 0.0) -> KernelResult:
    """int8 takes half the time of fp32 at one token and twice its time at eight; 2:4 takes the same."""
    clock = ManualClock()
    forms = {
        "fp32": Form(clock, lambda case: 1e-6),
        "2:4": Form(clock, lambda case: 1e-6),
        "int8": Form(clock, lambda case: 5e-7 if case.m == 1 else 2e-6, off),
    }
    openers = {name: partial(opened, form) for name, form in forms.items()}
    run = run_kernels(openers, plan_cases(PRODUCTS, (1, 8)), QUICK, clock=clock, wall=clock)
    return KernelResult(
        forms=tuple(forms),
        run=run,
        last=(32, 320),
        layers=2,
        environment=environment.capture(),
        config={"threads": None},
        facts={"name": "model"},
        bandwidth=BANDWIDTH,
        arithmetic=Arithmetic(operations_per_s=1e9, method="simulated"),
        gpu={"measured": False, "reason": "no GPU"},
        duration_s=1.0,
    )


@pytest.fixture(scope="module")
def measured() -> KernelResult:
    return result()


def test_cases_come_shape_by_shape_with_as_many_weights_as_fit() -> None:
    cases = plan_cases({(1024, 4096): 32, (64, 64): 12}, (1, 4))
    assert [(c.k, c.n, c.m, c.count) for c in cases] == [
        *((1024, 4096, 1, 32), (1024, 4096, 4, 32)),
        *((64, 64, 1, 12), (64, 64, 4, 12)),
    ]
    assert [c.copies for c in cases] == [2, 2, 12, 12]  # 32 MiB of fp32 weights, and not more than the model has


def test_one_product_takes_its_part_of_a_sample_without_the_time_of_emptying_caches(measured: KernelResult) -> None:
    for case in measured.cases:
        assert measured.product_ms(case, "fp32") == pytest.approx(case.operations * 1e-3)


def test_times_add_up_to_those_of_the_model_and_of_a_layer(measured: KernelResult) -> None:
    layers = 4 * 2 * 32 * 64 + 2 * 2 * 64 * 32  # operations of both layers at one token
    assert measured.model_ms(1, "fp32") == pytest.approx((layers + 2 * 32 * 320) * 1e-3)
    assert measured.model_ms(1, "fp32", layer=True) == pytest.approx(layers / 2 * 1e-3)
    assert measured.model_ms(8, "int8") == pytest.approx(8 * (layers + 2 * 32 * 320) * 2e-3)


def test_forms_are_compared_by_product_and_for_the_model(measured: KernelResult) -> None:
    for m, speedup, verdict in ((1, 2.0, stats.FASTER), (8, 0.5, stats.SLOWER)):
        whole = measured.model_ratio(m, "int8")
        assert whole is not None
        assert (whole.speedup, whole.verdict, whole.sessions) == (pytest.approx(speedup), verdict, 8)
    same = measured.model_ratio(1, "2:4")
    assert same is not None
    assert (same.verdict, same.comparisons) == (stats.NO_INTEREST, (6 + 2) * 2)  # products and sums, in two forms
    assert measured.faster_at("int8", (64, 32)) == [1]
    assert measured.faster_at("2:4", (64, 32)) == []


def test_the_report_says_where_each_form_is_faster(measured: KernelResult) -> None:
    lines = describe(measured).verdicts
    assert "int8 is faster than fp32 at M: 32 x 64 at 1; 64 x 32 at 1; 32 x 320 at 1." in lines
    assert sum("2:4 runs at" in line and line.endswith("(same kernels: no difference expected).") for line in lines) == 2
    assert not any("2:4 is faster" in line for line in lines)
    assert describe(measured).headline == (
        "All matrix products of model against fp32: 2:4 no difference seen at M 1, 8 (same kernels: no difference "
        "expected); int8 2.00x at M 1, 0.50x at M 8."
    )
    for text in (render(build_kernels_page(measured)), to_markdown(describe(measured))):
        for said in ("Each product", "The whole model", "not measured (no GPU)", str(measured.environment["command_line"])[:20]):
            assert said in text
    assert render(build_kernels_page(measured)).count("<svg") == 2


def test_the_result_is_json_that_says_its_schema(measured: KernelResult) -> None:
    value = json.loads(json.dumps(measured.to_json(), allow_nan=False))
    assert (value["schema"], value["version"], value["valid"]) == ("maskpro-deploy/kernels", 2, True)
    assert len(value["products"]) == 6
    assert [len(form["samples"]["seconds"]) for form in value["products"][0]["forms"]] == [16, 16, 16]


def test_a_result_is_read_back_whole(measured: KernelResult, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(measured.to_json()))
    found = load_result(tmp_path)
    run = found.run(measured.forms, measured.cases)
    assert run.sessions == 8
    assert [m.samples for m in run.self_test] == [m.samples for m in measured.run.self_test]
    for case, expected in measured.run.measurements.items():
        again = run.measurements[case]
        assert again.samples == expected.samples
        assert {name: work.tokens.tolist() for name, work in again.work.items()} == {name: [case.m] for name in measured.forms}
        assert (again.warm, again.warmup_rounds, again.failed) == (expected.warm, expected.warmup_rounds, expected.failed)
    assert found.others(measured.cases[1:]).keys() == {measured.cases[0]}


def test_a_run_that_is_not_finished_compares_nothing(measured: KernelResult) -> None:
    state = dataclasses.replace(measured, finished=False)
    assert state.ratio(state.cases[0], "int8") is None
    assert state.model_ratio(1, "int8") is None


def test_a_wrong_product_makes_the_run_invalid_and_leaves_no_comparison() -> None:
    wrong = result(off=0.3)
    assert not wrong.valid
    assert "int8: the product is wrong, off by 30.0 % of the largest value." in wrong.invalid_reasons[0]
    assert wrong.model_ratio(1, "2:4") is None
    assert describe(wrong).verdicts == []
    assert describe(wrong).headline.startswith("Invalid: ")
    assert "x the speed" not in to_markdown(describe(wrong))


def test_gpu_figures_are_told_with_their_break_even(measured: KernelResult) -> None:
    whole = {"refused": {}, "wrong": "", "failed": "", "against_dense": {}}
    gpu = {
        "measured": True,
        "device": "a GPU",
        "refused": {"int8 cusparselt": "no such kernel"},
        "planned": 3,
        "cells": [
            {**whole, "dtype": "float16", "m": 512},
            {**whole, "dtype": "int8", "m": 1, "rows": {"dense": 32}, "failed": "int8 1 x 2 x 3: no memory"},
        ],
        "break_even": [{"dtype": "float16", "k": 32, "n": 64, "backend": "cutlass", "from_m": 512}],
        "whole_model": [
            {"dtype": "float16", "m": 512, "ms": {"dense": 3.0, "cutlass": 2.0}},
            {"dtype": "int8", "m": 512, "ms": {"cusparselt": 1.0}},  # dense was refused
        ],
    }
    found = dataclasses.replace(measured, gpu=gpu)
    notes = "\n".join(describe(found).notes)
    for said in (
        "float16, 32 x 64, cutlass: faster than dense from M 512 on.",
        "Not on this GPU: int8 cusparselt: no such kernel",
        "Padded inside the timed call, as the library takes no smaller M: int8 dense M 1 as 32.",
        "Failed on the GPU, and not measured: int8 1 x 2 x 3: no memory (1 in all).",
    ):
        assert said in notes
    assert "WRONG" not in notes
    assert describe(found).tables[2].rows == [
        ["float16", "512", "dense", "3", "-"],
        ["float16", "512", "cutlass", "2", "1.500x"],
        ["int8", "512", "cusparselt", "1", "-"],
    ]
    assert "The whole model on the GPU" in to_markdown(describe(found))


@pytest.mark.parametrize(("products", "tokens", "said"), [({}, (1,), "no matrix product"), ({(4, 4): 1}, (0,), "--tokens 0")])
def test_nothing_to_measure_is_refused(products: dict[tuple[int, int], int], tokens: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_cases(products, tokens)
