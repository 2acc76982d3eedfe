"""Two saved runs beside each other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import CEILINGS, ManualClock, simulated_arm

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.results.document import to_markdown
from maskpro_deploy.bench.sweeps.compare import compare_results, describe
from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency
from maskpro_deploy.bench.sweeps.result import BenchResult, Saved, load_result
from maskpro_deploy.bench.sweeps.sweep import SweepConfig
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.reports.benchmarks import build_comparison_page
from maskpro_deploy.reports.blocks import render

SWEEP = SweepConfig(samples=20, sessions=10, threads=1)


def measured(slower: float = 1.0, *, seed: int = 0, names: tuple[str, ...] = ("model", "dense"), **config: Any) -> BenchResult:
    """A run in which the first model is slower by a factor; its files are others then."""
    clock, rng = ManualClock(), np.random.default_rng(seed)

    def noise(factor: float) -> Any:
        return lambda: factor * float(np.exp(rng.normal(0, 0.01)))

    arms = [simulated_arm(n, clock, jitter=noise(slower if i == 0 else 1.0)) for i, n in enumerate(names)]
    arms = [
        dataclasses.replace(arm, facts={**arm.facts, "files_sha256": f"{arm.name} {slower if i == 0 else 1}"})
        for i, arm in enumerate(arms)
    ]
    settings = LatencyConfig(**{"prompts": (8,), "contexts": (16,), "decode_steps": 2, "sweep": SWEEP, **config})
    return run_latency(arms, settings, clock=clock, **CEILINGS)


def on_disk(result: BenchResult, folder: Path) -> Saved:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result.to_json()))
    return load_result(folder)


def test_a_run_that_got_slower_is_seen_and_the_unchanged_bundle_is_told_apart(tmp_path: Path) -> None:
    a, b = on_disk(measured(), tmp_path / "a"), on_disk(measured(1.1, seed=1), tmp_path / "b")
    found = compare_results(a, b, environment.capture())
    verdicts = {(p.case.phase, p.name): (p.same_files, p.ratio.verdict if p.ratio else None) for p in found.pairs}
    assert {p.ratio.comparisons for p in found.pairs if p.ratio} == {4}
    assert verdicts == {
        ("prefill", "model"): (False, stats.SLOWER),
        ("prefill", "dense"): (True, stats.NO_INTEREST),
        ("decode", "model"): (False, stats.SLOWER),
        ("decode", "dense"): (True, stats.NO_INTEREST),
    }
    assert describe(found).headline == "B compared with A: slower in 2, no difference of interest in 2 of 4 comparisons."
    assert ("model: files_sha256", "model 1.0", "model 1.1") in found.differences
    back = compare_results(b, a, environment.capture())
    for p, q in zip(found.pairs, back.pairs, strict=True):
        assert p.ratio is not None
        assert q.ratio is not None
        assert p.ratio.speedup * q.ratio.speedup == pytest.approx(1.0)


def test_every_form_of_the_report_says_that_drift_counts(tmp_path: Path) -> None:
    a, b = on_disk(measured(), tmp_path / "a"), on_disk(measured(1.1, seed=1), tmp_path / "b")
    found = compare_results(a, b, environment.capture())
    page = render(build_comparison_page(found))
    assert "Two runs, not interleaved: drift counts." in page
    assert page.index("What differs between the runs") < page.index("Compared")
    assert "Two runs, not interleaved: drift counts." in to_markdown(describe(found))
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["note"].startswith("Two runs")
    assert len(value["comparisons"]) == 4


def test_drift_of_the_same_bundle_is_named(tmp_path: Path) -> None:
    a, b = measured(), measured(1.1, seed=1)
    same = dataclasses.replace(b, arms=(dataclasses.replace(b.arms[0], facts=a.arms[0].facts), b.arms[1]))
    found = compare_results(on_disk(a, tmp_path / "a"), on_disk(same, tmp_path / "b"), environment.capture())
    assert any("model is the same bundle in both runs" in note for note in describe(found).notes)


def test_cases_and_models_of_one_run_alone_are_left_out_by_name(tmp_path: Path) -> None:
    a = on_disk(measured(contexts=(16, 32)), tmp_path / "a")
    b = on_disk(measured(names=("model", "int8")), tmp_path / "b")
    found = compare_results(a, b, environment.capture())
    assert {p.name for p in found.pairs} == {"model"}
    assert set(found.left_out) == {"only in A: decode, batch 1, context 32", "only in A: dense", "only in B: int8"}


def test_single_models_are_compared_whatever_their_names(tmp_path: Path) -> None:
    a, b = on_disk(measured(names=("old",)), tmp_path / "a"), on_disk(measured(0.8, names=("new",)), tmp_path / "b")
    found = compare_results(a, b, environment.capture())
    assert {(p.name, p.ratio.verdict if p.ratio else None) for p in found.pairs} == {("new against old", stats.FASTER)}


def test_too_few_sessions_give_no_verdict(tmp_path: Path) -> None:
    short = measured(sweep=SweepConfig(samples=8, sessions=4, threads=1))
    found = compare_results(on_disk(measured(), tmp_path / "a"), on_disk(short, tmp_path / "b"), environment.capture())
    assert all(p.ratio is None for p in found.pairs)
    assert describe(found).headline == "Too few sessions to compare the runs (8 of each are needed)."
    assert "too few sessions" in render(build_comparison_page(found))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finished": False}, "is not finished"),
        ({"kind": "throughput"}, "a latency run and .* a throughput run"),
        ({"cases": ()}, "no case in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    whole = measured()
    a, b = on_disk(whole, tmp_path / "a"), on_disk(dataclasses.replace(whole, **change), tmp_path / "b")
    with pytest.raises(InputError, match=said):
        compare_results(a, b, environment.capture())


def test_an_invalid_run_is_refused(tmp_path: Path) -> None:
    whole = measured()
    whole.cases[0].measurement.fail("model failed: broken")
    broken = on_disk(whole, tmp_path / "b")
    with pytest.raises(InputError, match=r"proves nothing: .*model failed: broken"):
        compare_results(on_disk(measured(), tmp_path / "a"), broken, environment.capture())


def test_runs_of_the_same_speed_are_called_different_in_less_than_one_of_twenty() -> None:
    rng, false, runs = np.random.default_rng(3), 0, 600
    for _ in range(runs):
        a, b = ([np.exp(rng.normal(0, 0.03) + rng.normal(0, 0.01, (2, 2))) for _ in range(8)] for _ in range(2))
        ratio = stats.compare_unpaired(a, b)
        assert ratio is not None
        false += ratio.differs
    assert 1 <= false <= 0.05 * runs


def test_the_least_difference_of_interest_decides_what_counts_as_none(tmp_path: Path) -> None:
    a, b = on_disk(measured(), tmp_path / "a"), on_disk(measured(seed=1), tmp_path / "b")
    strict = compare_results(a, b, environment.capture(), least_difference=0.0001)
    assert {p.ratio.verdict for p in strict.pairs if p.ratio} == {stats.NO_DIFFERENCE}
    wide = compare_results(a, b, environment.capture(), least_difference=0.1)
    assert describe(wide).headline == "B compared with A: no difference of interest in 4 of 4 comparisons."
    assert any("The least difference of interest is 10 %" in note for note in describe(wide).notes)
    assert wide.to_json()["verdicts"] == {
        "comparisons": 4,
        "confidence_together": 0.95,
        "confidence_each": pytest.approx(0.9875),
        "least_difference": 0.1,
    }
    with pytest.raises(ConfigError, match="--least-difference 2 is out of range"):
        compare_results(a, b, environment.capture(), least_difference=2.0)
