"""The demo, end to end: on a tiny model in seconds, and once on the real demo model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import tiny_config, write_tiny

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.models import _DEMO_FOLDER

for needed in ("torch", "onnxruntime", "starlette", "matplotlib"):
    pytest.importorskip(needed)


def start(out: Path, cache: Path | None, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **({"MASKPRO_CACHE": str(cache)} if cache else {})}
    command = [sys.executable, "-m", "maskpro_deploy", "demo", "--out", str(out), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder whose demo model is tiny."""
    folder = tmp_path_factory.mktemp("cache")
    model = write_tiny(folder / _DEMO_FOLDER)
    (model / "config.json").write_text(json.dumps({**tiny_config(), "max_position_embeddings": 1024}))
    return folder


def check(figures: dict[str, object], out: Path, layers: int) -> None:
    """What must hold of every demo, whatever the model."""
    text = json.dumps(figures)
    assert "NaN" not in text
    validation, export, serve = (figures[k] for k in ("validation", "export", "serve"))
    assert validation["holds"]  # type: ignore[index]
    assert validation["required_tensors"] == layers  # type: ignore[index]
    assert export["status"] == "passed"  # type: ignore[index]
    assert export["max_logit_difference"] < 1e-3  # type: ignore[index, operator]
    assert export["greedy_equal"] == export["greedy_tokens"] == 64  # type: ignore[index]
    assert serve["completion_tokens"] > 0  # type: ignore[index, operator]
    assert figures["not_measured"]
    masks = Checkpoint.open(out / "sparse").masks
    assert masks is not None
    assert len(masks) == layers
    page = (out / "report.html").read_text(encoding="utf-8")
    if figures["latency"]["valid"]:  # type: ignore[index]
        assert page.count("same kernels: no difference expected") >= 4  # two comparisons, in the table and in the list
        for case in figures["latency"]["cases"]:  # type: ignore[index]
            assert case["comparisons"][0]["same_kernels"]
    assert page.count("<svg") >= (4 if figures["latency"]["valid"] else 3)  # type: ignore[index]
    assert not re.search(r"(src|href)=.?https?:", page)


def test_the_whole_path_on_a_tiny_model(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start(out, cache, "--budget", "4s", "--json")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    figures = json.loads(stdout)
    check(figures, out, layers=14)
    assert [line for line in stderr.splitlines() if line.startswith("[8/8]")]
    assert figures["quality"]["perplexity"]["learned"] < figures["quality"]["perplexity"]["one-shot"]


def test_an_interrupted_demo_goes_on_learning_where_it_was(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start(out, cache, "--budget", "10m")
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if "step" in process.stderr.readline():
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert [p.name for p in out.iterdir()] == ["sparse.learning"]
    process = start(out, cache, "--budget", "4s", "--json")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    check(json.loads(stdout), out, layers=14)
    assert not (out / "sparse.learning").exists()


def test_the_demo_replaces_nothing_but_its_own_results(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    process = start(tmp_path, cache)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "thesis.tex" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_whole_path_on_the_real_demo_model(tmp_path: Path) -> None:
    from maskpro_deploy.runtime.http.lifecycle import running_server

    openai = pytest.importorskip("openai")
    out = tmp_path / "demo"
    process = start(out, None, "--budget", "75s", "--json")
    stdout, stderr = process.communicate(timeout=1500)
    assert process.returncode == 0, stderr
    figures = json.loads(stdout)
    check(figures, out, layers=210)
    perplexity = figures["quality"]["perplexity"]
    assert perplexity["dense"] < perplexity["learned"] <= 1.02 * perplexity["one-shot"]
    if figures["learn"]["steps"] >= 6:  # on a machine that is very busy the time is over before that
        assert perplexity["learned"] < 0.8 * perplexity["one-shot"]
    with running_server(out / "bundle") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        model = client.models.list().data[0].id
        messages = [{"role": "user", "content": "Say something about rivers."}]
        whole = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
        stream = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert whole.choices[0].message.content == streamed != ""
