"""What the steps of the demo share: its settings, its folders, and what they gave so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.pattern import NMPattern

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.result import BenchResult
    from maskpro_deploy.learn import LearnResult


@dataclass(slots=True, kw_only=True)
class Demo:
    """What the steps share."""

    out: Path  # the folder for everything
    budget_s: float  # seconds to learn
    seed: int = 0
    pattern: NMPattern = field(default_factory=lambda: NMPattern(2, 4))
    rows: list[tuple[str, str]] = field(default_factory=list)  # (what, value) for the table at the end
    figures: dict[str, Any] = field(default_factory=dict)  # the same for machines
    not_measured: list[str] = field(default_factory=list)  # what this run says nothing about, and why
    dense: Path = Path()
    sparse: Path = field(init=False)  # the sparse checkpoint
    bundle: Path = field(init=False)  # its ONNX bundle
    dense_bundle: Path = field(init=False)  # the dense twin
    learned: LearnResult | None = None
    latency: BenchResult | None = None

    def __post_init__(self) -> None:
        self.sparse = self.out / "sparse"
        self.bundle, self.dense_bundle = self.out / "bundle", self.out / "bundle-dense"
