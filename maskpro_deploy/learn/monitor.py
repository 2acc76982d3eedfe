"""What a run reports while it goes on: a JSONL log, TensorBoard, memory in use, and a sign of overfitting.

The log has one JSON object a line, flushed at once: `start` (settings), `step` (every step: loss, tokens, seconds, rate) and
`point` (every measurement, see `trainer.Point`). A resumed run removes the lines after its saved state: no step is
reported twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from maskpro_deploy.errors import InputError
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import atomic_file, disk_errors
from maskpro_deploy.system.peak_memory import peak_rss

_RISE = 0.005  # of the held-out loss: less is noise


class Observer(Protocol):
    """Who wants to know how a run goes."""

    def start(self, facts: Mapping[str, Any], step: int) -> None:
        """A run begins, or goes on after `step`."""

    def step(self, facts: Mapping[str, Any]) -> None:
        """A step is done."""

    def point(self, facts: Mapping[str, Any]) -> None:
        """The argmax mask was measured."""

    def close(self) -> None:
        """The run is over, for now or for good."""


class JsonLog:
    """A log of JSON lines in a file that a new run replaces, and that a resumed one goes on with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def start(self, facts: Mapping[str, Any], step: int) -> None:
        with disk_errors(self._path):
            kept = self._lines_until(step) if step else []
            with atomic_file(self._path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        self._write("resume" if step else "start", {**facts, "step": step})

    def _lines_until(self, step: int) -> list[str]:
        if not self._path.is_file():
            return []
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            if isinstance(event, dict) and event.get("step", 0) <= step and line.endswith("\n"):
                kept.append(line)
        return kept

    def step(self, facts: Mapping[str, Any]) -> None:
        self._write("step", facts)

    def point(self, facts: Mapping[str, Any]) -> None:
        self._write("point", facts)

    def _write(self, event: str, facts: Mapping[str, Any]) -> None:
        with disk_errors(self._path):
            self._file.write(json.dumps({"event": event, **facts}) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoardLog:
    """The same figures as TensorBoard scalars over the step, in the event files of a folder."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "--tensorboard")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--tensorboard {folder} is not a folder.")
        self._folder = folder
        self._writer: Any = None

    def start(self, facts: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with disk_errors(self._folder):
            # events after the saved state are reported again: TensorBoard hides what it has of them
            self._writer = SummaryWriter(self._folder, purge_step=step + 1 if step else None)
            self._writer.add_text("settings", json.dumps(facts, indent=1), step)

    def step(self, facts: Mapping[str, Any]) -> None:
        self._scalars("step", facts)

    def point(self, facts: Mapping[str, Any]) -> None:
        self._scalars("point", facts)
        self._writer.flush()

    def _scalars(self, group: str, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, facts["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def peak_memory(device: str) -> int:
    """The most memory that was in use so far: of the process on a CPU, of torch's allocator on a GPU; bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return peak_rss()


def memorises(epochs: float, training: Sequence[float | None], heldout: Sequence[float]) -> bool:
    """Whether the learning text is being memorised.

    The rule: it has been seen more than once (`epochs`), and from the last point but one to the last, the mean loss on it fell
    while the held-out loss rose by more than 0.5 %; the training loss is None at the start.
    """
    if epochs <= 1 or len(heldout) < 3:
        return False
    before, now = training[-2], training[-1]
    return before is not None and now is not None and now < before and heldout[-1] > heldout[-2] * (1 + _RISE)
