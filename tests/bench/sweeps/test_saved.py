"""A result that was written is read back whole, and a run goes on from it as if it had not stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import CEILINGS, ManualClock, simulated_arm

from maskpro_deploy.bench.model import ModelArm
from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency
from maskpro_deploy.bench.sweeps.result import BenchResult, load_result
from maskpro_deploy.bench.sweeps.sweep import SweepConfig
from maskpro_deploy.errors import FormatError, InputError

SWEEP = SweepConfig(samples=32, sessions=8, threads=1)
CONFIG = LatencyConfig(prompts=(8,), contexts=(8, 16), decode_steps=2, sweep=SWEEP)


def arms(clock: ManualClock) -> list[ModelArm[int]]:
    """The times of a call depend on the clock alone, so that runs can be compared to the last bit."""

    def jitter() -> float:
        return 1.0 + 0.01 * np.sin(37.0 * clock.now)

    return [simulated_arm("sparse", clock, jitter=jitter), simulated_arm("dense", clock, jitter=jitter, seed=1)]


def write(result: BenchResult, path: Path) -> None:
    path.write_text(json.dumps(result.to_json(), allow_nan=False))


def changed(arm: ModelArm[Any]) -> ModelArm[Any]:
    return dataclasses.replace(arm, facts={**arm.facts, "files_sha256": "another"})


def test_a_result_is_read_back_whole(latency_result: BenchResult, throughput_result: BenchResult, tmp_path: Path) -> None:
    for result in (latency_result, throughput_result):
        write(result, tmp_path / "result.json")
        found = load_result(tmp_path)
        assert found.finished
        assert found.arms == ["sparse", "dense"]
        assert [c.case for c in result.cases] == list(found.cases)
        for case in result.cases:
            again = found.cases[case.case]
            assert again.agreement == case.agreement
            for name in found.arms:
                assert (again.measurement.work[name].tokens == case.measurement.work[name].tokens).all()
                for a, b in zip(again.measurement.samples[name], case.measurement.samples[name], strict=True):
                    assert dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b))


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    clock, states = ManualClock(), list[tuple[float, BenchResult]]()
    whole = run_latency(arms(clock), CONFIG, clock=clock, save=lambda r: states.append((clock.now, r)), **CEILINGS)
    assert [r.finished for _, r in states] == [False] * 8

    clock, stopped = ManualClock(), list[BenchResult]()

    def stop(result: BenchResult) -> None:
        stopped.append(result)
        write(result, tmp_path / "result.json")
        if len(stopped) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_latency(arms(clock), CONFIG, clock=clock, save=stop, **CEILINGS)
    state = load_result(tmp_path)
    assert (state.finished, state.sessions) == (False, 3)
    assert all(case["comparisons"] == [] for case in state.value["cases"])
    resumed = run_latency(arms(clock), CONFIG, clock=clock, earlier=state, **CEILINGS)
    assert resumed.finished
    assert resumed.earlier[0]["sessions"] == 3
    for case, expected in zip(resumed.cases, whole.cases, strict=True):
        places = [(s.session, s.block, s.position) for s in case.measurement.samples["sparse"]]
        assert places == [(s.session, s.block, s.position) for s in expected.measurement.samples["sparse"]]
        first = [s.seconds for s in case.measurement.samples["dense"] if s.session < 3]
        assert first == pytest.approx([s.seconds for s in expected.measurement.samples["dense"] if s.session < 3])
        assert resumed.comparisons(case)["dense"] is not None


def test_a_finished_run_that_is_resumed_measures_nothing_more(tmp_path: Path) -> None:
    clock = ManualClock()
    write(run_latency(arms(clock), CONFIG, clock=clock, **CEILINGS), tmp_path / "result.json")
    before = clock.now
    again = run_latency(arms(clock), CONFIG, clock=clock, earlier=load_result(tmp_path), **CEILINGS)
    assert clock.now == before
    assert again.cases[0].measurement.sessions == 8


def test_what_concerns_the_verdicts_only_may_differ_from_the_saved_run(tmp_path: Path) -> None:
    """Also a result of before there was a least difference and a hash of the graph."""
    clock = ManualClock()
    result = run_latency(arms(clock), CONFIG, clock=clock, **CEILINGS)
    write(result, tmp_path / "result.json")
    old = json.loads((tmp_path / "result.json").read_text())
    del old["config"]["least_difference"], old["verdicts"]
    (tmp_path / "result.json").write_text(json.dumps(old))
    now = [dataclasses.replace(arm, facts={**arm.facts, "graph_sha256": "new"}) for arm in arms(clock)]
    other = dataclasses.replace(CONFIG, sweep=dataclasses.replace(SWEEP, least_difference=0.1))
    again = run_latency(now, other, clock=clock, earlier=load_result(tmp_path), **CEILINGS)
    assert again.least_difference == 0.1
    assert {r.least_difference for r in again.comparisons(again.cases[0]).values() if r} == {0.1}


def test_appending_adds_sessions_and_cases(tmp_path: Path) -> None:
    clock = ManualClock()
    write(run_latency(arms(clock), CONFIG, clock=clock, **CEILINGS), tmp_path / "result.json")
    more = LatencyConfig(prompts=(), contexts=(16, 32), decode_steps=2, sweep=SWEEP)
    result = run_latency(arms(clock), more, clock=clock, earlier=load_result(tmp_path), append=True, **CEILINGS)
    counts = {c.case.label: c.measurement.sessions for c in result.cases}
    assert counts == {
        "prefill, batch 1, prompt 8": 8,
        "decode, batch 1, context 8": 8,
        "decode, batch 1, context 16": 16,
        "decode, batch 1, context 32": 8,
    }
    assert result.valid
    assert all(ratio is not None for case in result.cases for ratio in result.comparisons(case).values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {"config": {**r.config, "seed": 7}}, "seed is 0, and was 7"),
        (lambda r: {"kind": "throughput"}, "the result of a throughput run"),
        (
            lambda r: {"arms": (dataclasses.replace(r.arms[0], facts={**r.arms[0].facts, "files_sha256": "x"}), r.arms[1])},
            "files_sha256 of",
        ),
        (lambda r: {"environment": {**r.environment, "cpu_model": "another"}}, "another machine"),
    ],
)
def test_samples_that_do_not_belong_together_are_not_mixed(change: Any, said: str, tmp_path: Path) -> None:
    clock = ManualClock()
    result = run_latency(arms(clock), CONFIG, clock=clock, **CEILINGS)
    write(dataclasses.replace(result, **change(result)), tmp_path / "result.json")
    with pytest.raises(InputError, match=said):
        run_latency(arms(clock), CONFIG, clock=clock, earlier=load_result(tmp_path), **CEILINGS)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('{"schema": "maskpro-deploy/doctor", "version": 1}', FormatError, "maskpro-deploy/doctor"),
        ('{"schema": "maskpro-deploy/benchmark", "version": 99}', FormatError, "version 99"),
        (
            '{"schema": "maskpro-deploy/benchmark", "version": 2, "kind": "serve"}',
            FormatError,
            "a result of `benchmark serve`, and",
        ),
        ('{"schema": "maskpro-deploy/kernels", "version": 2, "kind": "kernels"}', FormatError, "`benchmark kernels`, and one of"),
        ('{"schema": "maskpro-deploy/benchmark", "version": 1, "kind": "latency"}', FormatError, "version 1; this command reads"),
        ('{"schema": "maskpro-deploy/benchmark", "version": 2, "cases": [{}]}', FormatError, "damaged: KeyError"),
        ("[1]", FormatError, "no JSON object"),
    ],
)
def test_a_file_that_is_no_result_is_refused(text: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(error, match=said):
        load_result(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_result(tmp_path / "nowhere")
