"""The demo: its steps one after another, each of which calls what its own command calls, and keeps the figures.

Everything is written to one folder:

    masked/          the checkpoint with learned 2:4 masks, and low-rank deltas of its weights
    sparse/          the same with recovered weights
    bundle/          its ONNX bundle, fp32
    bundle-dense/    the dense twin
    bundle-fp16/     the sparse bundle for engines, where TensorRT-RTX is installed
    result.json      all figures
    report.html      the same to look at
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.demo.state import Demo
from maskpro_deploy.demo.steps import ask, build, evaluate, export_bundles, fetch, learn, measure, prove, recover
from maskpro_deploy.errors import MaskProError
from maskpro_deploy.system.extras import require

STEPS: list[tuple[str, Callable[[Demo], None]]] = [
    ("fetch the demo model (once)", fetch),
    ("learn {pattern} masks, with low-rank deltas of the weights", learn),
    ("recover: train the kept weights against the dense model", recover),
    ("validate: every group of every pruned layer", prove),
    ("export to ONNX and compare with torch", export_bundles),
    ("build a TensorRT-RTX engine", build),
    ("evaluate dense, one-shot, learned and recovered on held-out text", evaluate),
    ("measure latency, sparse next to dense in one run", measure),
    ("serve, and ask both models one question over HTTP", ask),
]


def run(demo: Demo) -> None:
    """All steps, one after another, each announced on stderr."""
    for number, (title, step) in enumerate(STEPS, start=1):
        click.echo(f"[{number}/{len(STEPS)}] {title.format(pattern=demo.pattern)}", err=True)
        started = time.monotonic()
        step(demo)
        seconds = time.monotonic() - started
        demo.figures.setdefault("seconds", {})[step.__name__] = round(seconds, 1)
    demo.figures["environment"] = capture()


def check_platform() -> None:
    """Refuse early what would fail after minutes: an extra that is not installed, a Python of 32 bits."""
    for extra in ("learn", "cpu", "serve", "report"):
        require(extra, "the demo")
    if sys.maxsize < 2**32:
        raise MaskProError("the demo needs a 64-bit Python.")
