"""What a TensorRT builder says about sparsity in its log, in both wordings that exist.

Older builders:   (Sparsity) Layers eligible for sparse math: A, B
                  (Sparsity) TRT inference plan picked sparse implementation for layers: A
Newer builders:   (Sparsity) Found 2 layer(s) eligible to use sparse tactics: A, B
                  (Sparsity) Chose 1 layer(s) using sparse tactics: A

Eligible is not chosen: a builder times sparse kernels against dense ones and takes the faster.
"""

from __future__ import annotations

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


def parse_log(messages: Iterable[str]) -> SparsityLog:
    """Collect the layers of all `(Sparsity)` lines; a build with several profiles has several."""
    eligible: dict[str, None] = {}
    chosen: dict[str, None] = {}
    spoke = False
    for message in messages:
        for pattern, found in ((_ELIGIBLE, eligible), (_CHOSEN, chosen)):
            if match := pattern.search(message):
                spoke = True
                found.update(dict.fromkeys(_names(match["layers"])))
    return SparsityLog(spoke=spoke, eligible=tuple(eligible), chosen=tuple(chosen))


def mentions(layer: str, node: str) -> bool:
    """Whether a builder's layer, perhaps fused from several nodes, contains the node of that name."""
    return re.search(rf"(?<![\w./]){re.escape(node)}(?![\w./])", layer) is not None


def _names(text: str) -> list[str]:
    return [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]
