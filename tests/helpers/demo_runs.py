"""Runs of `maskpro-deploy demo`, and what must hold of each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from maskpro_deploy.checkpoint import Checkpoint


def start_demo(out: Path, cache: Path | None, *options: str) -> subprocess.Popen[str]:
    """A demo that runs; `cache` is the cache folder, which decides what the demo model is."""
    environment = {**os.environ, **({"MASKPRO_CACHE": str(cache)} if cache else {})}
    command = [sys.executable, "-m", "maskpro_deploy", "demo", "--out", str(out), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_demo(process: subprocess.Popen[str], out: Path, layers: int, timeout: int = 300) -> tuple[dict[str, Any], str]:
    """The figures of a demo with `--json` that ends well, checked, and what it wrote to stderr."""
    stdout, stderr = process.communicate(timeout=timeout)
    assert process.returncode == 0, stderr
    figures: dict[str, Any] = json.loads(stdout)
    check_demo(figures, out, layers)
    return figures, stderr


def check_demo(figures: dict[str, Any], out: Path, layers: int) -> None:
    """What must hold of every demo, whatever the model."""
    text = json.dumps(figures)
    assert "NaN" not in text
    validation, export, serve = (figures[k] for k in ("validation", "export", "serve"))
    assert validation["holds"]
    assert validation["required_tensors"] == layers
    assert export["status"] == "passed"
    assert export["max_logit_difference"] < 1e-3
    assert export["greedy_equal"] == export["greedy_tokens"] == 64
    assert all(serve[model]["completion_tokens"] > 0 for model in ("sparse", "dense"))
    assert figures["not_measured"]
    masks = Checkpoint.open(out / "sparse").masks
    assert masks is not None
    assert len(masks) == layers
    page = (out / "report.html").read_text(encoding="utf-8")
    if figures["latency"]["valid"]:
        assert page.count("same kernels: no difference expected") >= 4  # two comparisons, in the table and in the list
        for case in figures["latency"]["cases"]:
            assert case["comparisons"][0]["same_kernels"]
    titles = ("Learning curve", "Movement", "A piece of the mask", "Quality")
    assert [title for title in titles if f"<h2>{title}</h2>" not in page] == []
    for title, phase, figure in (
        ("Groups changed", "learn", "groups_changed_by_layer"),
        ("Weights moved with the masks", "learn", "weights_moved_by_layer"),
        ("Weights moved after the masks", "recover", "weights_moved_by_layer"),
    ):  # a phase whose best point is its start changed nothing
        assert page.count(f"<h2>{title}, layer by layer</h2>") == any(figures[phase][figure].values()), title
    assert page.count("<svg") >= len(titles) + figures["latency"]["valid"]
    assert not re.search(r"(src|href)=.?https?:", page)
