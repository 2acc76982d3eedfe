"""Latency and throughput sweeps: exact relations on a simulated model, and a run on the real tiny bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from simulated import CEILINGS, ManualClock, simulated_arm

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.model import DECODE, PREFILL, Case, Forward, ModelArm, check_arms, draw_tokens
from maskpro_deploy.bench.sweeps.measure import LatencyConfig, ThroughputConfig, run_latency, run_throughput
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.sweep import SweepConfig
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime import SessionConfig, open_session

FEW = SweepConfig(samples=20, threads=1)


class Seen:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.parts: list[float] = []

    def update(self, done: float, total: float, note: str = "") -> None:
        self.parts.append(done / total)

    def close(self) -> None:
        pass


def forward_of(arm: ModelArm[int]) -> Forward[int]:
    with arm.open() as forward:
        return forward


def bundle_arm(name: str, bundle: Path) -> ModelArm[Any]:
    shape = Manifest.load(bundle).model

    @contextmanager
    def opened() -> Iterator[Forward[Any]]:
        yield open_session(bundle, SessionConfig(provider="cpu", threads=1)).forward

    return ModelArm(name=name, open=opened, vocab_size=shape.vocab_size, max_length=shape.max_length)


def test_a_step_costs_one_call_and_its_rows() -> None:
    clock = ManualClock()
    config = LatencyConfig(batches=(1, 3), prompts=(10,), contexts=(20,), decode_steps=4, sweep=FEW)
    result = run_latency([simulated_arm("A", clock, call_s=1e-3, token_s=1e-4)], config, clock=clock, **CEILINGS)
    medians = {}
    for case in result.cases:
        summary = case.summary("A")
        assert summary is not None
        medians[case.case.phase, case.case.batch_size] = summary.median
    assert medians == pytest.approx({(PREFILL, 1): 2.0, (PREFILL, 3): 4.0, (DECODE, 1): 1.1, (DECODE, 3): 1.3})


def test_a_batch_costs_its_prefill_and_its_steps() -> None:
    clock = ManualClock()
    config = ThroughputConfig(batches=(2,), prompt=10, output=5, sweep=FEW)
    (case,) = run_throughput([simulated_arm("A", clock, call_s=1e-3, token_s=1e-4)], config, clock=clock, **CEILINGS).cases
    values = {metric: stats.summarise(v).median for metric, v in case.values_ms("A").items()}
    assert values == pytest.approx({"ttft": 3.0, "tpot": 1.2, "e2el": 3.0 + 4 * 1.2})
    assert case.tokens_per_s("A") == pytest.approx(2 * 5 / 7.8e-3)


def test_a_planted_slowdown_is_found_in_every_case(latency_result: BenchResult) -> None:
    assert latency_result.valid
    for case in latency_result.cases:
        ratio = latency_result.comparisons(case)["dense"]
        assert ratio is not None
        assert ratio.verdict == stats.FASTER
        assert ratio.speedup == pytest.approx(1.1, rel=0.03)


def test_the_best_batch_has_the_most_tokens_per_second_within_the_bound(throughput_result: BenchResult) -> None:
    best = throughput_result.best_batch("sparse")
    assert best is not None
    assert best.case.batch_size == 2  # a step takes 1.1, 1.2, 1.4 ms; the bound is 1.3
    unbound = dataclasses.replace(throughput_result, config={"latency_bound_ms": None}).best_batch("sparse")
    assert unbound is not None
    assert unbound.case.batch_size == 4
    assert dataclasses.replace(throughput_result, config={"latency_bound_ms": 0.5}).best_batch("sparse") is None


def test_a_budget_is_kept_and_every_case_gets_its_part() -> None:
    clock = ManualClock()
    arms = [simulated_arm(name, clock) for name in "AB"]
    sweep = SweepConfig(samples=60, budget_s=6.0, threads=1)
    start = clock()
    result = run_latency(arms, LatencyConfig(batches=(1, 2), prompts=(8,), contexts=(8,), sweep=sweep), clock=clock, **CEILINGS)
    assert 0.85 * 6.0 < clock() - start <= 6.0
    counts = {len(case.measurement.samples[arm]) for case in result.cases for arm in "AB"}
    assert len(counts) == 1


def test_progress_only_grows_and_ends_at_the_whole() -> None:
    clock, seen = ManualClock(), Seen()
    run_latency(
        [simulated_arm("A", clock)],
        LatencyConfig(prompts=(4,), contexts=(4,), sweep=FEW),
        clock=clock,
        progress=seen,
        **CEILINGS,
    )
    assert seen.parts == sorted(seen.parts)
    assert seen.parts[-1] == pytest.approx(1.0)


def test_a_model_that_fails_on_one_case_makes_the_run_invalid_and_leaves_no_comparison() -> None:
    clock = ManualClock()
    whole = simulated_arm("A", clock)

    def forward(tokens: npt.NDArray[np.int64], cache: int | None) -> tuple[npt.NDArray[np.float32], int]:
        if tokens.shape == (2, 16):
            raise RuntimeError("out of memory")
        return forward_of(whole)(tokens, cache)

    broken = dataclasses.replace(whole, name="B", open=lambda: nullcontext(forward))
    config = LatencyConfig(batches=(1, 2), prompts=(16,), contexts=(8,), sweep=FEW)
    result = run_latency([whole, broken], config, clock=clock, **CEILINGS)
    assert result.invalid_reasons == ["prefill, batch 2, prompt 16: B failed: out of memory"]
    assert not any(result.comparisons(case) for case in result.cases)
    assert [case.measurement.failed for case in result.cases] == [0, 1, 0, 0]


def test_a_model_that_cannot_read_a_context_makes_the_run_invalid() -> None:
    clock = ManualClock()
    whole = simulated_arm("A", clock)

    def forward(tokens: npt.NDArray[np.int64], cache: int | None) -> tuple[npt.NDArray[np.float32], int]:
        if tokens.shape[1] == 32:
            raise RuntimeError("no such context")
        return forward_of(whole)(tokens, cache)

    config = LatencyConfig(prompts=(8,), contexts=(32,), sweep=FEW)
    result = run_latency([dataclasses.replace(whole, open=lambda: nullcontext(forward))], config, clock=clock, **CEILINGS)
    assert result.invalid_reasons == ["decode, batch 1, context 32: A failed: no such context"]


def test_arms_with_different_vocabularies_are_refused() -> None:
    clock = ManualClock()
    with pytest.raises(InputError, match="different vocabularies"):
        run_latency(
            [simulated_arm("A", clock), simulated_arm("B", clock, vocab_size=60)],
            LatencyConfig(),
            clock=clock,
            **CEILINGS,
        )


def test_arms_of_one_name_are_refused() -> None:
    clock = ManualClock()
    with pytest.raises(InputError, match="same name"):
        run_latency([simulated_arm("A", clock), simulated_arm("A", clock)], LatencyConfig(), clock=clock, **CEILINGS)


def test_a_case_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 1032 tokens; A takes 1024"):
        run_latency([simulated_arm("A", ManualClock())], LatencyConfig(contexts=(1024,)))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to measure"):
        check_arms([simulated_arm("A", ManualClock())], [])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LatencyConfig(batches=(0,)), "--batch 0"),
        (lambda: LatencyConfig(prompts=(4, -1)), "--prompt -1"),
        (lambda: LatencyConfig(contexts=(0,)), "--context 0"),
        (lambda: LatencyConfig(decode_steps=0), "--decode-steps 0"),
        (lambda: ThroughputConfig(output=1), "--output 1"),
        (lambda: ThroughputConfig(latency_bound_ms=0.0), "--latency-bound 0"),
        (lambda: SweepConfig(samples=1), "--samples 1"),
        (lambda: SweepConfig(budget_s=-1.0), "--budget -1"),
    ],
)
def test_settings_out_of_range_name_the_flag(make: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def test_the_same_seed_draws_the_same_tokens_for_every_arm() -> None:
    case = Case(phase=PREFILL, batch_size=2, input_len=5, output_len=1)
    first = draw_tokens(case, 50, seed=1)
    assert first.shape == (2, 5)
    assert (first == draw_tokens(case, 50, seed=1)).all()
    assert (first != draw_tokens(case, 50, seed=2)).any()


def test_a_real_bundle_is_the_same_model_as_itself(dense_bundle: Path) -> None:
    arms = [bundle_arm("one", dense_bundle), bundle_arm("two", dense_bundle)]
    sweep = SweepConfig(samples=20, same_model=True, threads=1)
    latency = run_latency(
        arms, LatencyConfig(batches=(1, 2), prompts=(8,), contexts=(8,), decode_steps=2, sweep=sweep), **CEILINGS
    )
    throughput = run_throughput(arms, ThroughputConfig(batches=(2,), prompt=8, output=4, sweep=sweep), **CEILINGS)
    for result in (latency, throughput):
        assert [case.measurement.invalid for case in result.cases] == [None] * len(result.cases)
        for case in result.cases:
            assert case.measurement.work["one"].tokens.shape == (case.case.batch_size, case.case.output_len)
            assert len(case.measurement.samples["two"]) == 20
