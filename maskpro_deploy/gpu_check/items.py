"""What the items of the GPU check share: settings, outcomes, and the record that keeps partial results.

An item is a function. It puts figures into its `Record` as it goes, so that what was measured before a crash or the end of its
time is kept, and returns one line for the table. It raises `MachineError` where this machine lacks something.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.products.timing import CPU, CUDA
from maskpro_deploy.errors import MachineError, check_range
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import write_json

MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
END_FACTOR = 3  # an item is ended when it takes this many budgets: loading and building included


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How an item runs."""

    budget_s: float  # seconds that it may spend on measuring, above 0
    scratch: Path  # a folder for models and bundles, shared by all items
    rehearse: bool = False  # run with tiny shapes on the CPU, to try the check itself; the figures say nothing about a GPU

    def __post_init__(self) -> None:
        check_range("--budget", self.budget_s, above=0)

    @property
    def device(self) -> str:
        """Where torch works."""
        return CPU if self.rehearse else CUDA

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "scratch": str(self.scratch)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Settings:
        """The settings that `to_json` wrote."""
        return cls(**{**value, "scratch": Path(value["scratch"])})


class Record:
    """The figures of one item, on disk after every change; without a path in memory only. The budget counts from now."""

    def __init__(self, path: Path | None, budget_s: float) -> None:
        self.figures: dict[str, Any] = {}
        self._path = path
        self._end = time.monotonic() + budget_s

    def put(self, **figures: Any) -> None:
        """Add figures, as JSON values."""
        self.figures |= json.loads(json.dumps(figures, allow_nan=False))
        if self._path is not None:
            write_json(self._path, self.figures)

    @property
    def left_s(self) -> float:
        """Seconds left for measuring; negative once they are used up."""
        return self._end - time.monotonic()


Item = Callable[[Settings, Record], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an item ended."""

    name: str
    status: str  # `MEASURED`, `NOT_RUN` or `FAILED`
    detail: str  # the line for the table: result, reason or message
    seconds: float = 0.0
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)  # what it measured, even if it failed later
    trace: str = ""  # the traceback of a failure, "" otherwise


def import_torch(device: str) -> Any:
    """The torch module, where it can work on `device`; a `MachineError` where it is missing or sees no GPU."""
    from maskpro_deploy.system.extras import require

    require("learn", "this item")
    import torch

    if device == CUDA and not torch.cuda.is_available():
        reason = "is built without CUDA" if torch.version.cuda is None else "finds no GPU that its CUDA can use"
        raise MachineError(f"torch {torch.__version__} {reason}")
    return torch


def check_installed(*extras: str) -> None:
    """Refuse a machine that lacks the packages of an extra: a MachineError names them."""
    for extra in extras:
        if absent := missing(extra):
            raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[{extra}]'")
