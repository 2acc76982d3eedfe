"""What `validate` says of both versions of a foreign graph, and what is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foreign_reference import broken_zeros

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

_PATTERN = NMPattern(2, 4)
# sparse graphs that `validate` cannot prove today: label -> part of the reason it gives
REFUSED = {
    # onnxruntime stores the weight of a convolution in blocks of channels, in an order that depends on the processor
    "torchscript/vit > all": "com.microsoft.nchwc.Conv",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts of one case.

    Attributes:
        wrong: why something passed that must not; empty if nothing did.
        refused: why the sparse version did not pass although its weights hold 2:4; empty if it did.
        broken: weights whose zeros the tool itself has not kept.
    """

    wrong: str
    refused: str
    broken: tuple[str, ...]


def judge(sparse: Path, dense: Path) -> Judgement:
    """Validate both versions; the pattern is given once and found once."""
    broken = tuple(broken_zeros(str(sparse)))
    passed = [
        (kind, how) for kind, path in (("dense", dense), ("sparse", sparse)) for how in (_PATTERN, None) if not verdict(path, how)
    ]
    wrong = [f"the {kind} version passes" for kind, _ in passed if kind == "dense" or broken]
    refused = [] if broken else [verdict(sparse, how) for how in (_PATTERN, None) if ("sparse", how) not in passed]
    return Judgement(wrong="; ".join(wrong), refused=refused[0] if refused else "", broken=broken)


def verdict(path: Path, pattern: NMPattern | None) -> str:
    """Why a file does not hold 2:4; empty if it does."""
    try:
        report = validate(path, pattern)
    except MaskProError as e:
        return str(e)
    if report.holds:
        return "" if report.pattern == _PATTERN else f"it holds {report.pattern}"
    failed = [f"{t.name}: {t.why()}" for t in report.failed]
    return "; ".join([report.verdict, *failed, *(f"{u.name}: {u.reason}" for u in report.unchecked)])
