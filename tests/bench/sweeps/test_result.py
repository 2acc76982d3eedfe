from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from simulated import BROKEN_SELF_TEST

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.results.run import SCHEMA, VERSION
from maskpro_deploy.bench.roofline import ARITHMETIC, MEMORY, Arithmetic, Floor
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.sweeps.result import BenchResult


def test_the_result_is_json_without_nan_and_says_its_schema(latency_result: BenchResult, throughput_result: BenchResult) -> None:
    for result in (latency_result, throughput_result):
        value = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert (value["schema"], value["version"], value["kind"]) == (SCHEMA, VERSION, result.kind)
        assert value["valid"] is True
        assert value["invalid_reasons"] == []
        assert value["environment"]["cpu_count"] >= 1
        assert value["memory_bandwidth"]["bytes_per_s"] > 0


def test_the_figures_can_be_computed_again_from_the_raw_samples(latency_result: BenchResult) -> None:
    for case in latency_result.to_json()["cases"]:
        metric = case["metric"]
        portions = {}
        for arm in case["arms"]:
            values = arm["samples"][f"{metric}_ms"]
            assert arm["completed"] == len(values) == len(arm["samples"]["block"]) == 40
            assert arm[f"median_{metric}_ms"] == pytest.approx(np.median(values))
            assert arm[f"p99_{metric}_ms"] is None  # 40 samples do not show it
            sessions = np.asarray(arm["samples"]["session"])
            portions[arm["name"]] = [np.asarray(values)[sessions == s].reshape(-1, 2) for s in np.unique(sessions)]
        (stated,) = case["comparisons"]
        alone = stats.compare_sessions(portions["sparse"], portions["dense"])
        assert alone is not None
        again = alone.judge(4, 0.02)
        assert (stated["candidate"], stated["baseline"], stated["verdict"]) == ("sparse", "dense", again.verdict)
        assert stated["low"] == pytest.approx(again.low)
        assert (stated["confidence"], stated["comparisons"]) == (0.95, 4)
    assert latency_result.to_json()["verdicts"] == {
        "comparisons": 4,
        "confidence_together": 0.95,
        "confidence_each": pytest.approx(0.9875),
        "least_difference": 0.02,
    }


def test_tokens_are_counted(throughput_result: BenchResult) -> None:
    case = throughput_result.to_json()["cases"][2]
    arm = case["arms"][0]
    assert (case["batch_size"], case["input_len"], case["output_len"]) == (4, 16, 8)
    assert arm["total_input_tokens"] == arm["completed"] * 4 * 16
    assert arm["total_output_tokens"] == arm["completed"] * 4 * 8
    assert arm["output_throughput"] == pytest.approx(4 * 8 / (arm["median_e2el_ms"] / 1e3))


def test_a_decode_step_is_bound_by_memory_and_a_prefill_by_the_longer_of_both(latency_result: BenchResult) -> None:
    prefill, _, decode, _ = latency_result.cases
    arm = latency_result.arms[0]
    step = latency_result.figures(decode, arm).floor  # 1e10 bytes and 1e11 operations a second are simulated
    assert step == Floor(seconds=pytest.approx((1_000_000 + 16 * 100) / 1e10), bound=MEMORY)
    whole = latency_result.figures(prefill, arm).floor
    assert whole == Floor(seconds=pytest.approx(1e-4), bound=MEMORY)
    slow = dataclasses.replace(latency_result, arithmetic=Arithmetic(operations_per_s=1e9, method="slow"))
    pairs = 16 * 17 / 2
    assert slow.figures(prefill, arm).floor == Floor(seconds=pytest.approx((16 * 500_000 + pairs * 50) / 1e9), bound=ARITHMETIC)
    summary = decode.summary("sparse")
    assert summary is not None
    assert latency_result.figures(decode, arm).share_of_ceiling == pytest.approx(1e3 * (1_000_000 + 1600) / 1e10 / summary.median)


def test_a_floor_that_is_not_known_is_none(latency_result: BenchResult) -> None:
    case, arm = latency_result.cases[2], latency_result.arms[0]
    assert latency_result.figures(case, dataclasses.replace(arm, weight_bytes=None)).floor is None
    assert latency_result.figures(case, dataclasses.replace(arm, on_cpu=False)).floor is None  # the ceilings are the CPU's
    quantised = dataclasses.replace(arm, operations_per_token=None)  # done in integers: bytes bound a step, but no prefill
    assert latency_result.figures(case, quantised).floor is not None
    assert latency_result.figures(latency_result.cases[0], quantised).floor is None


def test_a_whole_generation_has_the_floors_of_its_calls(throughput_result: BenchResult) -> None:
    case, arm = throughput_result.cases[0], throughput_result.arms[0]
    found = throughput_result.figures(case, arm).floor
    assert found is not None
    read = 8 * 1_000_000 + sum(100 * (16 + i) for i in range(7))
    assert found.seconds == pytest.approx(read / 1e10)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (BROKEN_SELF_TEST, "looked different twice in a row"),
        (SelfTest(attempts=(), passed=False, invalid="A failed: broken"), "self-test: A failed: broken"),
    ],
)
def test_a_broken_self_test_leaves_no_comparison(test: SelfTest, reason: str, throughput_result: BenchResult) -> None:
    broken = dataclasses.replace(throughput_result, self_test=test)
    assert not broken.valid
    assert reason in broken.invalid_reasons[0]
    value = broken.to_json()
    assert value["valid"] is False
    assert all(case["comparisons"] == [] for case in value["cases"])
    assert value["best_batch"] is None


def test_a_self_test_that_could_not_tell_leaves_the_run_valid(latency_result: BenchResult) -> None:
    assert dataclasses.replace(latency_result, self_test=SelfTest(attempts=(), passed=None)).valid
