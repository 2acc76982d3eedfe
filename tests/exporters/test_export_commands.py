"""`export` and `build-engine` from the command line: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from maskpro_deploy.extras import missing


def run(*arguments, cwd):
    command = [sys.executable, "-m", "maskpro_deploy", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment, check=False)


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
        (("build-engine", "nowhere"), "does not exist or is no folder"),
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
