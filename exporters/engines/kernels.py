"""What is known of an engine's kernels: from the builder's log, and from the inspector of the finished engine.

The log speaks of sparsity in one of two wordings:

Older builders:   (Sparsity) Layers eligible for sparse math: A, B
                  (Sparsity) TRT inference plan picked sparse implementation for layers: A
Newer builders:   (Sparsity) Found 2 layer(s) eligible to use sparse tactics: A, B
                  (Sparsity) Chose 1 layer(s) using sparse tactics: A

Eligible is not chosen: a builder times sparse kernels against dense ones and takes the faster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = r"\(Sparsity\)\s+(?:{older}|{newer})\s*:?(?P<layers>.*)"
_ELIGIBLE = re.compile(
    _LINE.format(older="Layers eligible for sparse math", newer=r"Found\s+\d+\s+layer\(s\) eligible[^:]*"), re.S
)
_CHOSEN = re.compile(
    _LINE.format(older="TRT inference plan picked sparse implementation for layers", newer=r"Chose\s+\d+\s+layer\(s\)[^:]*"), re.S
)
# names of kernels that run on sparse tensor cores
SPARSE_KERNEL = re.compile(r"sparse|sptensor|spgemm", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsityLog:
    """Layer names out of a build log; `spoke` is False if the log has no word about sparsity."""

    spoke: bool
    eligible: tuple[str, ...]
    chosen: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One layer of a built engine, perhaps fused of several of the graph."""

    name: str  # the engine's name for it
    tactic: str  # name of the kernel that runs it, where known
    text: str  # name and metadata, in which the graph's nodes are mentioned
    sparse: bool  # the kernel runs on sparse tensor cores


def read_kernels(inspection: str) -> list[Kernel] | None:
    """The engine's layers, from the inspector's JSON; None without one."""
    if not inspection:
        return None
    kernels = []
    for layer in (layer for layer in json.loads(inspection).get("Layers", []) if isinstance(layer, dict)):
        name, tactic = str(layer.get("Name", "")), str(layer.get("TacticName", ""))
        text = f"{name} {layer.get('Metadata', '')}"
        kernels.append(Kernel(name=name, tactic=tactic, text=text, sparse=bool(SPARSE_KERNEL.search(tactic))))
    return kernels


def parse_log(messages: Iterable[str]) -> SparsityLog:
    """Collect the layers of all `(Sparsity)` lines; a build with several profiles has several."""
    eligible: dict[str, None] = {}
    chosen: dict[str, None] = {}
    spoke = False
    for message in messages:
        for pattern, layers in ((_ELIGIBLE, eligible), (_CHOSEN, chosen)):
            if match := pattern.search(message):
                spoke = True
                names = (name.strip() for name in re.split(r"[,\n]", match["layers"]))
                layers.update(dict.fromkeys(name for name in names if name))
    return SparsityLog(spoke=spoke, eligible=tuple(eligible), chosen=tuple(chosen))


def mentions(layer: str, node: str) -> bool:
    """Whether a builder's layer, perhaps fused from several nodes, contains the node of that name."""
    return re.search(rf"(?<![\w./]){re.escape(node)}(?![\w./])", layer) is not None
