"""What a reader makes of a file or folder: its weights, what it could not make sense of, and what contradicts itself.

One reader a format, each in a module of its own (see `formats`), all behind `Reader`. A reader works out each weight's reduction
axis; where it cannot, the weight becomes `Unchecked` with the reason, so that it never counts as passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.accounts import Rule, Stored
from maskpro_deploy.validation.arrays import FlatArray


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
        constants: names of the stored tensors that it is made of; by default the one of its own name.
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
    constants: tuple[str, ...] = ()

    @property
    def made_of(self) -> tuple[str, ...]:
        """Names of the stored tensors that it is made of."""
        return self.constants or (self.name,)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A stored tensor that no rule exempts and that could not be checked, or a node that may hold one: it forbids a pass.

    Attributes:
        name: of the tensor or node.
        shape: as the file has it.
        reason: why it could not be checked.
        consumers: what uses it, the first few.
        bytes: what it takes in the file.
        declared: a list of weights leaves it out, and nothing suggests that it changes those on the list: it forbids a pass only
            where all weights are required.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    consumers: tuple[str, ...] = ()
    bytes: int = 0
    declared: bool = False


Finding = Weight | Unchecked | Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All that was found at a path.

    Attributes:
        kind: what it is: "checkpoint", "safetensors", "masks", "maskllm masks", "onnx", "bundle".
        pattern: the pattern it claims to hold, if it does.
        has_list: whether it says which weights hold it.
        weights: those that can be checked.
        unchecked: what is unaccounted for.
        stored: every stored tensor, for the account; empty where all of them are weights.
        problems: contradictions within it, each a sentence.
        num_parameters: elements of all its tensors.
        files: other files that the tensors lie in, relative to the path's folder.
        inputs: every file that was opened, to see at the end that none was changed.
        tensor_files: those of them that hold the tensors; empty if all do.
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
    stored: tuple[Stored, ...] = ()
    problems: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    tensor_files: tuple[InputFile, ...] = ()
    multiply_adds: int = 0
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """One input format.

    Attributes:
        takes: what it reads, with its article, for the text that says what can be given.
    """

    takes: str

    def accepts(self, path: Path) -> bool:
        """Whether `path` looks like this format (cheap; no promise that it is whole)."""

    def read(self, path: Path, progress: Progress) -> Source:
        """Find the weights; their values are read later, piece by piece.

        Raises:
            InputError: it is something else after all.
            FormatError: it is damaged.
        """


class SuffixReader:
    """What readers of single files share: the suffix tells the format."""

    suffix: str  # in small letters, with its dot

    def accepts(self, path: Path) -> bool:
        """Whether `path` is a file with this suffix."""
        return path.is_file() and path.suffix.lower() == self.suffix
