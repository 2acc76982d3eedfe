"""What a reader makes of a file or folder: its weights, what it could not make sense of, and what contradicts itself.

One reader a format, each in a module of its own (`from_*.py`), all behind `Reader`. A reader works out each weight's reduction
axis; where it cannot, the weight becomes `Unchecked` with the reason, so that it never counts as passed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation.arrays import FlatArray
from maskpro_deploy.validation.inputs import InputFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight that can be checked.

    Attributes:
        name: as the file has it.
        shape: its shape there.
        dtype: its dtype there, in the short names of safetensors and ONNX: "f32", "bf16", "int4".
        axis: the reduction axis.
        data: its values in row-major order, or values that are zero and finite exactly where they are.
        mask: what it was pruned with, in the same order, if known.
        listed: whether masks or manifest say that it holds the pattern.
        linear: whether it is the weight of a linear layer by the default rule (no embedding, norm or output head).
        uses: how many products multiply with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int
    data: FlatArray
    mask: FlatArray | None = None
    listed: bool = False
    linear: bool = True
    uses: int = 1

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A weight that could not be checked, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str
    listed: bool = False
    linear: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All that was found at a path.

    Attributes:
        kind: what it is: "checkpoint", "safetensors", "masks", "maskllm masks", "onnx", "bundle".
        pattern: the pattern it claims to hold, if it does.
        has_list: whether it says which weights hold it.
        weights: those that can be checked.
        unchecked: those that cannot.
        problems: contradictions within it, each a sentence.
        num_parameters: elements of all its tensors.
        files: other files that the tensors lie in, relative to the path's folder.
        inputs: every file that was opened, to see at the end that none was changed.
        multiply_adds: of all products with stored weights, for one token (or one output position of a convolution); 0 if the
            path does not say.
        notes: what a reader of the report has to know.
    """

    kind: str
    weights: tuple[Weight, ...]
    num_parameters: int
    pattern: NMPattern | None = None
    has_list: bool = False
    unchecked: tuple[Unchecked, ...] = ()
    problems: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    multiply_adds: int = 0
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """One input format."""

    def accepts(self, path: Path) -> bool:
        """Whether `path` looks like this format (cheap; no promise that it is whole)."""

    def read(self, path: Path, progress: Progress) -> Source:
        """Find the weights; their values are read later, piece by piece.

        Raises:
            InputError: it is something else after all.
            FormatError: it is damaged.
        """


_NOT_LINEAR = re.compile(
    r"(^|[._/])(lm_head|output_head|embed\w*|\w*embeddings?|wte|wpe|\w*norm\w*|ln_\w+|rotary\w*|inv_freq)([._/]|$)"
)


def is_linear(name: str) -> bool:
    """Whether a matrix of this name counts by the default rule: no embedding, no norm, no output head."""
    return _NOT_LINEAR.search(name) is None
