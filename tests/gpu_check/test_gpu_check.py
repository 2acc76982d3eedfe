"""The GPU check: what can be measured is, what cannot is named, and nothing is half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskpro_deploy.commands import gpu_check as gpu_check_command
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError
from maskpro_deploy.exporters.engines.profiles import parse_buckets
from maskpro_deploy.gpu_check import engines as _gpu_engines
from maskpro_deploy.gpu_check import processes, serving
from maskpro_deploy.gpu_check.items import FAILED, MEASURED, NOT_RUN, Outcome, Record, Settings
from maskpro_deploy.gpu_check.models import ONE_B, PATTERN, SEVEN_B, SMOL, TINY, make_bundles, write_checkpoint, write_sparse
from maskpro_deploy.gpu_check.registry import ITEMS, Entry
from maskpro_deploy.system.extras import missing
from maskpro_deploy.validation import validate

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check"
without_gpu = pytest.mark.skipif(processes.gpu_is_here(), reason="there is a GPU")


@pytest.fixture
def settings(tmp_path):
    return Settings(budget_s=1.0, scratch=tmp_path, rehearse=True)


@pytest.fixture
def record(settings, tmp_path):
    return Record(tmp_path / "figures.json", settings.budget_s)


def script(*arguments, cwd):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [SCRIPT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# -- the command ----------------------------------------------------------------------------------------------------------


@without_gpu
def test_without_a_gpu_every_item_is_named_and_nothing_is_written(tmp_path):
    done = script(cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    for name in ITEMS:
        assert f"{name} " in done.stderr
    assert "error: there is no NVIDIA GPU here" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_writes_one_whole_file(tmp_path):
    done = script("--rehearse", "--only", "products,environment", "--json", "--out", "o.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "o.json").read_text())
    assert json.loads(done.stdout) == value
    assert value["rehearsal"] is True
    assert [(i["name"], i["status"]) for i in value["items"]] == [("products", NOT_RUN), ("environment", MEASURED)]
    assert "CUDA" in value["items"][0]["detail"]
    assert value["items"][1]["figures"]["environment"]["python"]
    assert [p.name for p in tmp_path.iterdir()] == ["o.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "--only everything"),
        (["--budget", "soon"], "--budget 'soon'"),
        (["--out", "."], "--out . is a folder"),
        (["--out", "no/such/folder/x.json"], "--out no/such/folder/x.json cannot be written"),
        (["--rehearse", "--scratch", "no-such-folder"], "--scratch no-such-folder"),
    ],
)
def test_wrong_options_are_named_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(gpu_check_command.command, arguments)
    assert message in str(done.exception)
    assert done.exception.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_failed_item_ends_the_command_with_1_after_the_file_is_written(tmp_path, monkeypatch):
    failed = Outcome(name="products", status=FAILED, detail="wrong")
    monkeypatch.setattr(gpu_check_command, "run_check", lambda names, **options: [failed])
    done = CliRunner().invoke(gpu_check_command.command, ["--rehearse", "--out", str(tmp_path / "o.json")])
    assert isinstance(done.exception, CheckFailed)
    assert json.loads((tmp_path / "o.json").read_text())["items"][0]["detail"] == "wrong"


# -- processes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Puts a shell script in the place of the item's process; it gets the item's folder as $4."""

    def replace(text):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


def test_an_item_that_crashes_fails_alone_and_keeps_its_figures(process, settings):
    process('echo \'{"a": 1}\' > "$4/figures.json"\necho the last words >&2\nkill -SEGV $$')
    outcome = processes.run_item("products", settings, 60)
    assert outcome.status == FAILED
    assert "signal 11" in outcome.detail
    assert outcome.detail.endswith("the last words")
    assert outcome.figures == {"a": 1}


def test_an_item_that_hangs_is_ended_with_all_it_started(process, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_S", 0.1)
    process(f"trap '' TERM\nsleep 60 &\necho $! > {tmp_path}/child\nwait\nwait")
    outcome = processes.run_item("products", settings, 1)
    assert (outcome.status, outcome.detail) == (FAILED, "ended after 1 s")
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(200):
        if not child.exists() or " Z " in (child / "stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("what it started lives on")


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (MachineError("no tensor cores.\nBuy some."), NOT_RUN, "no tensor cores"),
        (CheckFailed("it is wrong."), FAILED, "it is wrong"),
        (ZeroDivisionError("x"), FAILED, "ZeroDivisionError: x"),
    ],
)
def test_whatever_an_item_raises_is_its_outcome(settings, monkeypatch, error, status, detail):
    def stumble(settings, record):
        record.put(before=1)
        raise error

    monkeypatch.setitem(ITEMS, "stumble", Entry(stumble))
    outcome = processes.run_here("stumble", settings, Record(None, 1.0))
    assert (outcome.status, outcome.detail, outcome.figures) == (status, detail, {"before": 1})
    assert ("Traceback" in outcome.trace) == (status == FAILED)


def test_settings_pass_to_the_process_unchanged(settings):
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(ConfigError, match="--budget 0"):
        Settings(budget_s=0, scratch=settings.scratch)


# -- items on the CPU -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(missing("learn")), reason="torch is not installed")
def test_learning_steps_and_their_parts_are_timed(settings, record, tmp_path):
    from maskpro_deploy.gpu_check.learning import time_learning

    line = time_learning(SMOL, settings, record)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert line.startswith("tiny: ")
    assert figures["pruned_weights"] == TINY.pruned_weights
    assert figures["steps"] == len(figures["step_ms_all"]) > 0
    assert figures["tokens_per_s"] == pytest.approx(1e3 * figures["batch_tokens"] / figures["step_ms"])
    for part in ("sampling", "update", "dense_pass"):
        assert 0 < figures[f"{part}_launch_ms"] <= figures[f"{part}_ms"]
    # random tokens: nothing is better than the uniform guess
    assert 6.0 < figures["dense_loss"] < 7.0


@pytest.mark.skipif(bool(missing("learn")), reason="torch is not installed")
def test_the_random_model_has_the_sizes_that_are_told():
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    for shape in (TINY, SMOL, ONE_B, SEVEN_B):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**shape.config()))
        linear = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        assert sum(a * b for name, (a, b) in linear.items() if name != "lm_head") == shape.pruned_weights
        assert {linear[f"model.layers.0.{name}"] for name in shape.projections} == set(shape.projections.values())
        norms = shape.hidden * (2 * shape.layers + 1)
        assert sum(p.numel() for p in model.parameters()) == shape.weights + norms


def test_the_random_checkpoint_is_sparse_where_it_says(tmp_path):
    sparse = write_sparse(write_checkpoint(TINY, tmp_path / "dense"), tmp_path / "sparse")
    report = validate(sparse, PATTERN)
    assert report.holds
    assert len(report.required) == TINY.layers * len(TINY.projections)


@pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
def test_engines_are_built_sparse_and_dense_with_every_layer_told(settings, record):
    line = _gpu_engines.measure_library("tensorrt-rtx", settings, record)
    (report,) = record.figures["engines"].values()
    assert report["gain"] in line
    assert [row["eligible"] for row in report["layers"]] == [True] * 14
    assert report["engine"]["file"] != report["comparison"]["dense_file"]


@pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
def test_the_wide_model_is_compared_in_a_rehearsal(settings, record):
    line = _gpu_engines.measure_engine_7b(settings, record)
    (report,) = record.figures["engines"].values()
    assert [p["name"] for p in report["engine"]["settings"]["profiles"]] == [
        "prefill:1x32",
        "prefill:4x32",
        "decode:1",
        "decode:4",
    ]
    assert len(report["layers"]) == 14
    assert report["gain"] in line
    assert not (settings.scratch / "tiny-alone" / "dense").exists()


def test_the_wide_model_has_the_layers_of_a_7b_one_and_prefill_of_4096_tokens():
    assert _gpu_engines.WIDE.projections == SEVEN_B.projections
    assert _gpu_engines.WIDE.weights - _gpu_engines.WIDE.pruned_weights < 0.01 * _gpu_engines.WIDE.weights
    buckets = parse_buckets(_gpu_engines._WIDE_PROFILES)
    assert sum(b.most[0] * b.most[1] == 4096 for b in buckets) == 2
    bounds = [(b.kind, b.most, b.most[1] <= _gpu_engines.WIDE.length) for b in buckets]
    assert all(inside for *_, inside in bounds), bounds


@pytest.mark.skipif(bool(missing("cpu")), reason="onnxruntime is not installed")
def test_latency_and_tokens_are_compared(settings, record):
    line = serving.measure_onnxruntime("cuda", settings, record)
    assert "greedy tokens equal to the CPU's: 64 of 64" in line
    # the comparison rounds as fp16 does, the rehearsing session on the CPU does not
    assert 0 < record.figures["gpu_against_cpu"]["max_logit_difference"] < 0.1
    assert [a["name"] for a in record.figures["latency"]["arms"]] == ["sparse-bundle", "dense-bundle"]


@pytest.mark.skipif(bool(missing("cpu")), reason="onnxruntime is not installed")
def test_perplexities_stay_beside_the_reference(settings, record):
    line = ITEMS["evaluation"].run(settings, record)
    assert set(record.figures["found"]) == {"torch fp16 on cpu", "torch bf16 on cpu", "onnxruntime fp16 on cpu"}
    assert record.figures["lacks"] == {}
    assert all(abs(c["ratio"] - 1) < 0.01 and c["kl"] < 0.01 for c in record.figures["found"].values())
    assert "onnxruntime fp16 on cpu 1.0" in line or "onnxruntime fp16 on cpu 0.99" in line


@pytest.mark.skipif(bool(missing("cpu")), reason="onnxruntime is not installed")
def test_a_served_engine_is_compared_and_timed_in_a_rehearsal_on_the_graph(settings, record):
    line = ITEMS["serve-tensorrt"].run(settings, record)
    assert "greedy tokens equal to the CPU's: 64 of 64" in line
    assert 0 < record.figures["against_cpu"]["max_logit_difference"] < 0.1
    assert [a["name"] for a in record.figures["latency"]["arms"]] == ["sparse-bundle static", "dense-bundle static"]


@without_gpu
@pytest.mark.parametrize(
    "name",
    [
        "learn-135m",
        "learn-joint",
        "recover",
        "products",
        "tensorrt",
        "engine-7b",
        "onnxruntime",
        "onnxruntime-tensorrt-rtx",
        "serve-tensorrt",
        "serve-tensorrt-rtx",
        "serve-onnxruntime-tensorrt",
    ],
)
def test_an_item_without_its_gpu_is_not_run_and_says_why(tmp_path, name):
    outcome = processes.run_here(name, Settings(budget_s=1.0, scratch=tmp_path), Record(None, 1.0))
    assert outcome.status == NOT_RUN
    assert any(word in outcome.detail for word in ("CUDA", "GPU", "not installed"))


def test_bundles_are_made_once_and_made_again_after_an_interrupt(settings):
    sparse, dense = make_bundles(TINY, settings.scratch)
    before = (sparse / "manifest.json").stat().st_mtime_ns
    assert make_bundles(TINY, settings.scratch) == (sparse, dense)
    assert (sparse / "manifest.json").stat().st_mtime_ns == before
    dense.rename(settings.scratch / "elsewhere")
    make_bundles(TINY, settings.scratch)
    assert dense.is_dir()


def test_every_item_is_a_function_with_a_limit_of_its_own():
    assert len(ITEMS) == 15
    for name, entry in ITEMS.items():
        assert callable(entry.run), name
        assert entry.least_s >= 60
    assert len({name.lower() for name in ITEMS}) == len(ITEMS)
