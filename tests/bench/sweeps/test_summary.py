from __future__ import annotations

import dataclasses

import pytest
from simulated import BROKEN_SELF_TEST

from maskpro_deploy.bench.results.document import format_number, to_markdown
from maskpro_deploy.bench.sweeps.columns import CaseResult
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.bench.sweeps.summary import describe, verdicts


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (12345.6, "12346"),
        (1234.5, "1234"),
        (12.3456, "12.35"),
        (0.0012345, "0.001234"),
        (1.5e-5, "0.000015"),
    ],
)
def test_numbers_have_four_digits_and_no_exponent(value: float | None, shown: str) -> None:
    assert format_number(value) == shown


def test_a_verdict_names_both_arms_the_interval_and_the_answer(latency_result: BenchResult) -> None:
    first = verdicts(latency_result)[0]
    assert first.ratio is not None
    assert first.sentence == (
        f"prefill, batch 1, prompt 16: sparse runs at {first.ratio.speedup:.3f}x the speed of dense, "
        f"95 % interval [{first.ratio.low:.3f}, {first.ratio.high:.3f}]: faster."
    )
    assert describe(latency_result).headline == "sparse compared with dense: faster in 4 of 4 comparisons."


def test_an_invalid_run_prints_no_speedup_anywhere(latency_result: BenchResult, throughput_result: BenchResult) -> None:
    for result in (latency_result, throughput_result):
        broken = dataclasses.replace(result, self_test=BROKEN_SELF_TEST)
        assert verdicts(broken) == []
        assert describe(broken).verdicts == []
        assert describe(broken).headline.startswith("Invalid: self-test")
        page = to_markdown(describe(broken))
        assert "Why this run is invalid" in page
        assert "the speed of" not in page
        assert "a difference twice in a row where there is none" in page


def test_every_case_and_arm_has_a_row(latency_result: BenchResult, throughput_result: BenchResult) -> None:
    for result in (latency_result, throughput_result):
        (table,) = describe(result).tables
        assert len(table.rows) == len(result.cases) * len(result.arms)
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_reader_is_told_of_the_self_test_the_bandwidth_and_the_notes(latency_result: BenchResult) -> None:
    text = "\n".join(describe(latency_result).notes)
    assert "sparse against itself" in text
    assert "GB/s" in text
    assert "GFLOP/s" in text
    assert "The floor is the longer of bytes of weights and cache over this bandwidth and operations" in text
    assert "Verdicts hold for all 4 comparisons of this run together at 95 %: each uses its 98.75 % interval." in text
    assert "The least difference of interest is 2 %" in text
    assert text.endswith("A note.")


def same_kernels(result: BenchResult, **facts: object) -> BenchResult:
    """The result with arms whose graphs differ in the values of weights only."""
    known = {"provider": "CPUExecutionProvider", "graph_sha256": "one", **facts}
    first, second = result.arms
    arms = (
        dataclasses.replace(first, facts={**first.facts, **known, "graph_sha256": "one"}),
        dataclasses.replace(second, facts={**second.facts, **known}),
    )
    return dataclasses.replace(result, arms=arms)


def test_a_difference_between_same_kernels_is_a_caution_and_no_speedup(latency_result: BenchResult) -> None:
    found = same_kernels(latency_result)
    for verdict in verdicts(found):
        assert verdict.same_kernels
        assert verdict.sentence.endswith(
            ": measured faster, but same kernels: no difference expected. Something disturbed this measurement."
        )
    assert describe(found).headline == (
        "sparse compared with dense: a difference that same kernels cannot have, so a disturbed measurement, "
        "in 4 of 4 comparisons."
    )
    assert all(c["comparisons"][0]["same_kernels"] is True for c in found.to_json()["cases"])


def test_no_difference_between_same_kernels_is_said_to_be_expected(throughput_result: BenchResult) -> None:
    for verdict in verdicts(same_kernels(throughput_result)):
        assert verdict.sentence.endswith("(same kernels: no difference expected).")


@pytest.mark.parametrize("facts", [{"graph_sha256": "two"}, {"graph_sha256": None}, {"provider": "CUDAExecutionProvider"}])
def test_kernels_that_are_not_known_to_be_the_same_are_not_called_so(latency_result: BenchResult, facts: dict[str, str]) -> None:
    found = same_kernels(latency_result, **facts)
    assert not any(v.same_kernels for v in verdicts(found))
    assert "same kernels" not in to_markdown(describe(found))


def test_a_busy_machine_is_mentioned(latency_result: BenchResult) -> None:
    environment = {**latency_result.environment, "cpu_count": 2, "load_average_1min": 3.5}
    busy = dataclasses.replace(latency_result, environment=environment)
    assert "The machine was busy when the run began: load average 3.5 on 2 cores." in describe(busy).notes
    idle = dataclasses.replace(latency_result, environment={**environment, "load_average_1min": 0.2})
    assert not any("busy" in line for line in describe(idle).notes)


def test_a_budget_that_was_too_short_is_mentioned(latency_result: BenchResult) -> None:
    late = dataclasses.replace(latency_result, config={**latency_result.config, "budget_s": 10.0}, duration_s=35.2)
    assert "The budget of 10 s was too short for 8 sessions: 35 s." in describe(late).notes


def test_the_outputs_of_the_arms_are_told_apart(latency_result: BenchResult) -> None:
    line = next(line for line in describe(latency_result).notes if line.startswith("Outputs of sparse and dense"))
    assert "different weights" in line
    assert "logits differ by up to 0, the same likeliest token at 100.0 %" in line


def test_the_best_batch_is_said_in_words(throughput_result: BenchResult) -> None:
    first = describe(throughput_result).verdicts[-2]
    assert first.startswith("sparse: most tokens per second with a median of 1.3 ms or less per token at batch 2: ")
    strict = dataclasses.replace(throughput_result, config={"latency_bound_ms": 0.5})
    assert describe(strict).verdicts[-2] == "sparse: none of the batch sizes tried has a median of 0.5 ms or less per token."


def test_markdown_escapes_names(latency_result: BenchResult) -> None:
    arms = (dataclasses.replace(latency_result.arms[0], name="a|b_<c>"),)
    cases = tuple(_renamed(case, "sparse", "a|b_<c>") for case in latency_result.cases)
    page = to_markdown(describe(dataclasses.replace(latency_result, arms=arms, cases=cases)))
    assert "a\\|b\\_&lt;c>" in page
    assert "a|b" not in page


def _renamed(case: CaseResult, old: str, new: str) -> CaseResult:
    measurement = dataclasses.replace(case.measurement, samples={new: case.measurement.samples[old]})
    return dataclasses.replace(case, measurement=measurement)
