"""`export` and `build-engine` from the command line: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from maskpro_deploy.system.extras import missing


def run(*arguments, cwd):
    command = [sys.executable, "-m", "maskpro_deploy", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment, check=False)


def killed(*arguments, cwd, when):
    """Start a command and kill it as soon as `when()` says so."""
    command = [sys.executable, "-m", "maskpro_deploy", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not when():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    process.kill()
    process.wait()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_export_prints_one_json_object(tiny_sparse, tmp_path):
    done = run("export", tiny_sparse, "--out", "b", "--no-verify", "--require-sparsity", "2:4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["sparsity"] == "2:4"
    assert value["verification"] == {"status": "not verified", "reason": "--no-verify"}
    assert (tmp_path / "b" / "manifest.json").is_file()


@pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")
def test_export_verifies_against_torch_by_default(tiny_sparse, tmp_path):
    done = run("export", tiny_sparse, "--out", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified against torch" in done.stdout
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["verification"]["status"] == "passed"


@pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")
def test_a_model_that_overflows_in_fp16_is_refused_and_passes_in_bf16(tiny_sparse, tmp_path):
    checkpoint = shutil.copytree(tiny_sparse, tmp_path / "wide")
    weights = load_file(checkpoint / "model.safetensors")
    for part in ("up_proj", "down_proj"):
        weights[f"model.layers.0.mlp.{part}.weight"] *= 2048
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    done = run("export", "wide", "--out", "b", "--dtype", "fp16", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert error[0] == "error: the exported graph does not work in fp16; nothing was kept."
    assert re.match(r"layer 0, /model/layers.0/mlp/down_proj reaches \S+, and the largest fp16 number is 65504.", error[1])
    assert error[2] == "Export it with --dtype bf16 (wider range) or --dtype fp32."
    assert names(tmp_path) == ["wide"]
    done = run("export", "wide", "--out", "b", "--dtype", "bf16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified against torch in bf16 arithmetic: largest logit difference" in done.stdout
    assert re.search(r"largest bf16 activation \S+, \S+ times below the limit of 3.38953e\+38: layer 0, /model", done.stdout)


def test_half_precision_that_is_not_verified_says_so(tiny_sparse, tmp_path):
    done = run("export", tiny_sparse, "--out", "b", "--no-verify", "--dtype", "fp16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fp16 not verified: --no-verify" in done.stdout.splitlines()
    figures = json.loads((tmp_path / "b" / "manifest.json").read_text())["verification"]
    assert figures["half_precision"] == "fp16 not verified: --no-verify"
    assert figures["underflow"]["zero"] == 0


def test_a_refused_pattern_exits_with_1_and_writes_nothing(tiny_checkpoint, tmp_path):
    done = run("export", tiny_checkpoint, "--out", "b", "--no-verify", "--require-sparsity", "2:4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "nowhere", "--out", "b"), "nowhere does not exist"),
        (("export", "nowhere", "--out", "b", "--dtype", "int3"), "--dtype int3"),
        (("export", "nowhere", "--out", "b", "--require-sparsity", "4:2"), "4:2"),
        (("build-engine", "nowhere"), "does not exist or is not a folder"),
        (("build-engine", "nowhere", "--sparsity", "1:4"), "only 2:4"),
    ],
)
def test_wrong_usage_exits_with_2_and_plain_lines(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
def test_build_engine_prints_the_table_then_says_it_is_up_to_date(tiny_sparse, tmp_path):
    assert run("export", tiny_sparse, "--out", "b", "--no-verify", "--dtype", "fp16", cwd=tmp_path).returncode == 0
    first = run("build-engine", "b", "--backend", "tensorrt-rtx", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "built ahead of time; this library does not select sparse kernels at build time" in first.stdout
    assert "down_proj" in first.stdout
    second = run("build-engine", "b", "--backend", "tensorrt-rtx", "--json", cwd=tmp_path)
    value = json.loads(second.stdout)
    assert value["reused"] is True
    assert value["gain"].startswith("not measured")
    assert (tmp_path / "b" / value["engine"]["file"]).is_file()


def test_an_export_that_is_killed_leaves_nothing_once_it_is_run_again(tiny_sparse, tmp_path):
    arguments = ("export", tiny_sparse, "--out", "b", "--no-verify", "--quantize", "int4", "--method", "calibrated")
    killed(*arguments, cwd=tmp_path, when=lambda: list(tmp_path.glob(".b.*.tmp/new/.calibration.*/model.onnx.data")))
    left = names(tmp_path)
    assert len(left) == 1
    done = run("-v", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"removing {left[0]}: the run that made it was killed" in done.stderr
    assert names(tmp_path) == ["b"]
    assert not [name for name in names(tmp_path / "b") if name.startswith(".")]


@pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed")
def test_a_build_that_is_killed_takes_its_process_with_it_and_leaves_nothing_once_it_is_run_again(half_bundle, tmp_path):
    bundle = shutil.copytree(half_bundle, tmp_path / "bundle")
    before = names(bundle)
    killed("build-engine", bundle, cwd=tmp_path, when=lambda: workers(bundle))
    assert len(names(bundle)) == len(before) + 1
    deadline = time.monotonic() + 10
    while workers(bundle):
        assert time.monotonic() < deadline, "the building process lives on"
        time.sleep(0.01)
    (bundle / "engines").mkdir()
    (bundle / "engines" / ".x.engine.abcdefgh.tmp").mkdir()  # a kill while the engine was put in its place
    done = run("build-engine", bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(bundle) == sorted([*before, "engines"])
    assert not [name for name in names(bundle / "engines") if name.startswith(".")]


def workers(bundle):
    """Processes that build from a bundle."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(path.read_bytes())
    return [line for line in found if f"{bundle}/.build.".encode() in line]


@pytest.mark.parametrize("command", ["export", "build-engine"])
def test_help_shows_an_example(command, tmp_path):
    assert f"maskpro-deploy {command} " in run(command, "--help", cwd=tmp_path).stdout.split("Example:")[1]


def test_forms_quantisation_and_layout_are_flags_and_the_result_is_a_valid_bundle(tiny_sparse, tmp_path):
    flags = ("--forms", "cat,gqa", "--quantize", "int4", "--block-size", "16", "--layout", "genai", "--max-length", "64")
    done = run("export", tiny_sparse, "--out", "b", "--no-verify", "--require-sparsity", "2:4", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "b: sparse, fp32, int4 block 16, nearest, opset 23" in done.stdout
    assert "forms: cat (model.onnx), gqa (model_gqa.onnx)" in done.stdout
    assert (tmp_path / "b" / "genai_config.json").is_file()
    checked = run("validate", "b", "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--forms", "cat,ring"), "--forms ring"),
        (("--forms", ","), "--forms is empty"),
        (("--quantize", "int2"), "--quantize int2"),
        (("--block-size", "32"), "give --quantize"),
        (("--layout", "gguf"), "--layout gguf"),
        (("--forms", "static", "--layout", "genai"), "it can run cat, gqa"),
    ],
)
def test_wrong_flags_of_export_name_themselves(tiny_sparse, tmp_path, flags, words):
    done = run("export", tiny_sparse, "--out", "b", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()
