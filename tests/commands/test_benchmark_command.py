from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from bundle_cases import fail, run, run_json
from click.testing import CliRunner

from maskpro_deploy.backends.providers import PROVIDERS
from maskpro_deploy.bench.graph_work import graph_work
from maskpro_deploy.bench.roofline import measure_bandwidth
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.stats import FASTER, Ratio
from maskpro_deploy.bench.sweeps.result import BenchResult
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runs.output import RunFolder
from maskpro_deploy.runtime import OrtSession

QUICK = ("--samples", 4, "--threads", 1)
SMALL = ("--batch", 1, "--prompt", 8, *QUICK)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the bandwidth for real, over less memory."""
    monkeypatch.setattr("maskpro_deploy.bench.sweeps.sweep.measure_bandwidth", partial(measure_bandwidth, buffer_bytes=4 << 20))


def test_latency_of_two_bundles_is_one_json_object(sparse_bundle: Path, dense_bundle: Path) -> None:
    value = run_json("benchmark", "latency", sparse_bundle, "--against", dense_bundle, "--context", "8,16", *SMALL)
    assert value["valid"] is True
    assert [(c["phase"], c["input_len"]) for c in value["cases"]] == [("prefill", 8), ("decode", 8), ("decode", 16)]
    first, second = value["arms"]
    assert (first["name"], first["sparsity"], first["sparse_weights"]) == ("sparse-bundle", "2:4", 14)
    assert (second["name"], second["sparsity"]) == ("dense-bundle", None)
    assert first["provider"] == "CPUExecutionProvider"
    assert first["threads_spin"] is False
    assert first["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert any("no 2:4 kernels on a CPU" in note for note in value["notes"])
    for case in value["cases"]:
        assert [arm["completed"] for arm in case["arms"]] == [4, 4]
        assert case["comparisons"][0]["verdict"] is None  # four samples do not make one
        assert case["comparisons"][0]["same_kernels"] is True  # a CPU multiplies zeros like any value


def test_throughput_writes_the_three_files(sparse_bundle: Path, tmp_path: Path) -> None:
    arguments = ("benchmark", "throughput", sparse_bundle, "--batch", "1,2", "--prompt", 8, "--output", 4, *QUICK)
    out = run(*arguments, "--out", tmp_path / "report").stdout
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html", "report.md", "result.json"]
    value = json.loads((tmp_path / "report/result.json").read_text())
    assert value["kind"] == "throughput"
    assert value["best_batch"]["sparse-bundle"]["batch_size"] in (1, 2)
    assert "Throughput over batch size" in (tmp_path / "report/report.html").read_text()
    assert "most tokens per second" in out
    assert str(tmp_path / "report/report.html") in out
    error, _ = fail(*arguments, "--out", tmp_path / "report")
    assert "--force" in str(error)
    run(*arguments, "--out", tmp_path / "report", "--force")


def test_the_text_has_the_table_the_verdicts_and_the_remark(sparse_bundle: Path, dense_bundle: Path) -> None:
    out = run(
        *("benchmark", "latency", sparse_bundle, "--against", dense_bundle, "--prompt", 8, "--context", 8),
        *("--samples", 20, "--threads", 1, "--decode-steps", 2),
    ).stdout
    assert "median ms" in out
    assert out.count("sparse-bundle runs at ") == 2
    assert "95 % interval [" in out
    assert "Self-test: sparse-bundle against itself" in out
    assert "no 2:4 kernels on a CPU" in out
    assert out.count("same kernels: no difference expected") == 2
    assert "Verdicts hold for all 2 comparisons of this run together at 95 %" in out


def test_a_bundle_can_be_measured_against_itself_as_the_same_model(dense_bundle: Path) -> None:
    value = run_json("benchmark", "latency", dense_bundle, "--against", dense_bundle, "--same-model", "--context", 8, *SMALL)
    assert value["valid"] is True
    assert [arm["name"] for arm in value["arms"]] == [f"{dense_bundle} (1)", f"{dense_bundle} (2)"]


def test_two_forms_of_one_bundle_are_compared(tiny_sparse: Path, tmp_path: Path) -> None:
    export(tiny_sparse, tmp_path / "b", ExportConfig(forms=("cat", "gqa"), max_length=64), compare=False)
    arguments = ("--form", "gqa,cat", "--same-model", "--context", 8, "--prompt", 8)
    value = run_json("benchmark", "latency", tmp_path / "b", "--against", tmp_path / "b", *arguments, *SMALL)
    assert value["valid"] is True
    assert [arm["cache_form"] for arm in value["arms"]] == ["gqa", "cat"]
    assert value["arms"][0]["name"].endswith("(1) gqa")
    manifest = Manifest.load(tmp_path / "b")
    files = {graph.form: graph.file for graph in (manifest.graph, *manifest.siblings)}
    read = {form: graph_work(tmp_path / "b" / file).weight_bytes for form, file in files.items()}
    assert {arm["cache_form"]: arm["weight_bytes"] for arm in value["arms"]} == read


def test_models_that_are_not_the_same_make_the_run_invalid(sparse_bundle: Path, dense_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    error, result = fail(
        *("benchmark", "latency", sparse_bundle, "--against", dense_bundle, "--same-model", "--context", 8, *SMALL, "--out", out)
    )
    assert isinstance(error, CheckFailed)
    assert error.exit_code == 1
    assert "chose different tokens" in str(error)
    assert "INVALID: " in result.stdout
    assert "the speed of" not in result.stdout
    assert json.loads((out / "result.json").read_text())["valid"] is False


def test_a_model_that_fails_while_timed_makes_the_run_invalid(dense_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = OrtSession.forward, iter(range(10_000))

    def forward(self: OrtSession, *arguments: object) -> object:
        if next(calls) == 60:
            raise RuntimeError("the device went away")
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtSession, "forward", forward)
    result = CliRunner().invoke(cli, [str(a) for a in ("benchmark", "latency", dense_bundle, "--context", 8, *SMALL, "--json")])
    assert isinstance(result.exception, CheckFailed)
    assert "the device went away" in str(result.exception)
    assert json.loads(result.stdout)["valid"] is False


def test_an_interrupted_run_goes_on_with_resume(dense_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("benchmark", "latency", dense_bundle, "--context", 8, *SMALL, "--samples", 8, "--out", tmp_path / "report")
    save, saves = RunFolder.save, iter(range(100))

    def interrupted(self: RunFolder, result: BenchResult) -> None:
        save(self, result)
        if next(saves) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", interrupted)
        CliRunner().invoke(cli, [str(a) for a in arguments])
    state = json.loads((tmp_path / "report/result.json").read_text())
    assert state["finished"] is False
    assert state["cases"][0]["arms"][0]["completed"] == 4
    error, _ = fail(*arguments)
    assert "--force" in str(error)
    error, _ = fail(*arguments, "--resume", "--seed", 3)
    assert isinstance(error, InputError)
    assert "seed is 3, and was 0" in str(error)
    value = run_json(*arguments, "--resume")
    assert value["finished"] is True
    assert [case["arms"][0]["completed"] for case in value["cases"]] == [8, 8]
    assert len(value["earlier"]) == 1
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html", "report.md", "result.json"]


def test_append_adds_cases_and_sessions(dense_bundle: Path, tmp_path: Path) -> None:
    arguments = ("benchmark", "throughput", dense_bundle, "--prompt", 8, "--output", 4, *QUICK, "--out", tmp_path / "report")
    run(*arguments, "--batch", "1,2")
    value = run_json(*arguments, "--batch", "2,3", "--append")
    assert {c["batch_size"]: c["arms"][0]["completed"] for c in value["cases"]} == {1: 4, 2: 8, 3: 4}
    assert json.loads((tmp_path / "report/result.json").read_text())["finished"] is True


def test_a_bundle_that_changed_is_not_gone_on_with(dense_bundle: Path, sparse_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_bundle, tmp_path / "bundle")
    arguments = ("benchmark", "latency", tmp_path / "bundle", "--context", 8, *SMALL, "--out", tmp_path / "report")
    run(*arguments)
    shutil.rmtree(tmp_path / "bundle")
    shutil.copytree(sparse_bundle, tmp_path / "bundle")
    error, _ = fail(*arguments, "--append")
    assert isinstance(error, InputError)
    assert "of bundle is" in str(error)


def test_two_results_are_compared(dense_bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("benchmark", "latency", dense_bundle, "--context", 8, *SMALL, "--out", tmp_path / name)
    value = run_json("benchmark", "compare", tmp_path / "a", tmp_path / "b/result.json", "--out", tmp_path / "both")
    assert [c["same_files"] for c in value["comparisons"]] == [True, True]
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == ["report.html", "report.md", "result.json"]
    assert "drift counts" in run("benchmark", "compare", tmp_path / "a", tmp_path / "b").stdout
    error, _ = fail("benchmark", "compare", tmp_path / "a", tmp_path / "both")
    assert isinstance(error, FormatError)
    assert "is a result of `benchmark compare`, and one of `benchmark latency` or `benchmark throughput` is expected." in str(
        error
    )
    error, _ = fail("benchmark", "compare", tmp_path / "a", tmp_path / "nowhere")
    assert isinstance(error, InputError)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume",), "--resume needs --out"),
        (("--append", "--force", "--out", "report"), "exclude each other"),
        (("--append", "--out", "nowhere"), "holds no result.json"),
        (("--logit-tolerance", "-1"), "--logit-tolerance -1"),
        (("--sessions", "0"), "--sessions 0"),
    ],
)
def test_flags_that_make_no_sense_are_named(arguments: tuple[str, ...], said: str, dense_bundle: Path) -> None:
    error, _ = fail("benchmark", "latency", dense_bundle, "--context", 8, *SMALL, *arguments)
    assert isinstance(error, (ConfigError, InputError))
    assert said in str(error)


def test_logits_within_the_tolerance_may_choose_other_tokens(
    dense_bundle: Path, sparse_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "int8", ExportConfig(quantize="int8"))
    settings = ("benchmark", "latency", tmp_path / "int8", "--against", dense_bundle, "--context", 8, *SMALL)
    value = run_json(*settings, "--logit-tolerance", 1.0)
    (near,) = value["cases"][0]["agreement"]
    assert 0 < near["max_logit_difference"] < 1.0
    assert 0.5 < near["same_top_token"] <= 1.0
    assert near["positions"] == 8
    assert "the same weights" in run(*settings).stdout
    assert value["cases"][0]["comparisons"][0]["same_kernels"] is False
    error, result = fail(*settings, "--logit-tolerance", 1e-6)
    assert isinstance(error, CheckFailed)
    assert "logits differ by up to" in str(error)
    assert "the speed of" not in result.stdout


def test_a_self_test_that_fails_twice_makes_the_run_invalid(dense_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"speedup": 1.2, "speedup_of_medians": 1.2, "low": 1.1, "high": 1.3, "error": 0.04, "degrees": 17.0}
    seen = Ratio(**figures, confidence=0.95, blocks=20, verdict=FASTER)
    broken = SelfTest(attempts=(seen, seen), passed=False)
    monkeypatch.setattr("maskpro_deploy.bench.sessions.Run.judge_self_test", lambda run: broken)
    error, _ = fail("benchmark", "latency", dense_bundle, "--context", 8, *SMALL, "--json")
    assert isinstance(error, CheckFailed)
    assert "looked different twice in a row" in str(error)


def test_bundles_with_different_vocabularies_are_an_error(dense_bundle: Path, other_tokenizer: Path, tmp_path: Path) -> None:
    export(other_tokenizer, tmp_path / "other", ExportConfig())
    error, _ = fail("benchmark", "latency", tmp_path / "other", "--against", dense_bundle)
    assert isinstance(error, InputError)
    assert "different vocabularies" in str(error)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "1,x"), "--batch '1,x'"),
        (("--batch", "0"), "--batch 0"),
        (("--context", "100000"), "takes 256 at most"),
        (("--samples", "1"), "--samples 1"),
        (("--budget", "soon"), "--budget"),
        (("--form", "cat,gqa"), "--form cat,gqa"),
    ],
)
def test_wrong_settings_name_the_flag(arguments: tuple[str, ...], said: str, dense_bundle: Path) -> None:
    error, _ = fail("benchmark", "latency", dense_bundle, *arguments)
    assert isinstance(error, ConfigError)
    assert said in str(error)


@pytest.mark.parametrize("words", ["benchmark latency", "benchmark serve", "serve", "eval"])
def test_a_provider_that_does_not_exist_is_wrong_usage(words: str, dense_bundle: Path) -> None:
    result = CliRunner().invoke(cli, [*words.split(), str(dense_bundle), "--provider", "abacus"])
    assert result.exit_code == 2
    names = ", ".join(f"'{name}'" for name in ("auto", *PROVIDERS))
    assert f"'abacus' is not one of {names}" in result.output


def test_a_folder_that_is_no_bundle_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for path in (tiny_checkpoint, tmp_path / "nothing"):
        error, _ = fail("benchmark", "throughput", path)
        assert isinstance(error, InputError)


def test_a_damaged_bundle_is_an_error_and_leaves_no_report(dense_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle/model.onnx.data").open("r+b") as f:
        f.truncate(100)
    error, _ = fail("benchmark", "latency", tmp_path / "bundle", "--out", tmp_path / "report")
    assert isinstance(error, FormatError)
    assert not (tmp_path / "report").exists()


def test_help_shows_examples() -> None:
    assert "benchmark latency bundle --against dense-bundle" in run("benchmark", "--help").output
    assert "--context 128,512" in run("benchmark", "latency", "--help").output
    assert "--latency-bound 100" in run("benchmark", "throughput", "--help").output
