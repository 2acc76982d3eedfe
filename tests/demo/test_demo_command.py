"""The demo, end to end, on a tiny model."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from demo_runs import finish_demo, start_demo
from tiny_model import tiny_config, write_tiny

from maskpro_deploy.models import _DEMO_FOLDER

for needed in ("torch", "onnxruntime", "starlette", "matplotlib"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder whose demo model is tiny."""
    folder = tmp_path_factory.mktemp("cache")
    model = write_tiny(folder / _DEMO_FOLDER)
    (model / "config.json").write_text(json.dumps({**tiny_config(), "max_position_embeddings": 1024}))
    return folder


def test_the_whole_path_on_a_tiny_model(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start_demo(out, cache, "--budget", "12s", "--json")
    figures, stderr = finish_demo(process, out, layers=14)
    assert [line for line in stderr.splitlines() if line.startswith("[9/9]")]
    perplexity = figures["quality"]["perplexity"]
    assert perplexity["learned"] < perplexity["one-shot"]
    assert perplexity["recovered"] < perplexity["one-shot"]
    assert figures["serve"].keys() == {"question", "sparse", "dense"}


def interrupt(out: Path, cache: Path, budget: str, when: str) -> None:
    """Start a demo and interrupt it as soon as it prints a line with `when`."""
    process = start_demo(out, cache, "--budget", budget)
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if when in process.stderr.readline():
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr
    assert "Traceback" not in stderr


def test_an_interrupted_demo_goes_on_learning_where_it_was(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    interrupt(out, cache, "10m", "step")
    assert [p.name for p in out.iterdir()] == ["masked.learning"]
    process = start_demo(out, cache, "--budget", "4s", "--json")
    finish_demo(process, out, layers=14)
    assert not (out / "masked.learning").exists()


def test_masks_are_not_learned_again_when_the_weights_were_interrupted(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    interrupt(out, cache, "20s", "recovering:")
    masks = (out / "masked" / "masks.safetensors").read_bytes()
    process = start_demo(out, cache, "--budget", "20s", "--json")
    _, stderr = finish_demo(process, out, layers=14)
    assert (out / "masked" / "masks.safetensors").read_bytes() == masks
    assert "recovering:" in stderr
    assert "learning:" not in stderr
    assert not (out / "sparse.learning").exists()
    assert not (out / "masked-run").exists()


def test_the_demo_replaces_nothing_but_its_own_results(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    process = start_demo(tmp_path, cache)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "thesis.tex" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
