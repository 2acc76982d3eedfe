"""What the steps of the demo share: its settings, its folders, and what they gave so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.pattern import NMPattern

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.result import BenchResult
    from maskpro_deploy.learn import LearnResult, RecoverResult


@dataclass(slots=True, kw_only=True)
class Demo:
    """What the steps share."""

    out: Path  # the folder for everything
    budget_s: float  # seconds to learn, masks and weights
    seed: int = 0
    pattern: NMPattern = field(default_factory=lambda: NMPattern(2, 4))
    rows: list[tuple[str, str]] = field(default_factory=list)  # (what, value) for the table at the end
    figures: dict[str, Any] = field(default_factory=dict)  # the same for machines
    not_measured: list[str] = field(default_factory=list)  # what this run says nothing about, and why
    dense: Path = Path()
    masked: Path = field(init=False)  # the checkpoint with masks and low-rank deltas that were learned together
    sparse: Path = field(init=False)  # the same with recovered weights
    bundle: Path = field(init=False)  # its ONNX bundle
    dense_bundle: Path = field(init=False)  # the dense twin
    learned: LearnResult | None = None
    recovered: RecoverResult | None = None
    latency: BenchResult | None = None

    def __post_init__(self) -> None:
        self.masked, self.sparse = self.out / "masked", self.out / "sparse"
        self.bundle, self.dense_bundle = self.out / "bundle", self.out / "bundle-dense"
