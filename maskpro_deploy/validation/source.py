"""What a reader makes of a file or folder: weights, what it could not make sense of, contradictions, and an account of all bytes.

In the account every stored tensor is proven, exempt by a rule, or unaccounted for. `RULES` is the whole list of exemptions; a
tensor that is none of them and was not proven forbids a pass. A reader works out each weight's reduction axis; where it cannot,
the weight becomes `Unchecked` with the reason.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import FlatArray


class Rule(enum.StrEnum):
    """Why a stored tensor need not hold the pattern."""

    TOKEN_TABLE = "token table"
    HEAD = "output head"
    VECTOR = "vector"
    ELEMENTWISE = "elementwise table"
    POSITIONS = "position table"
    QUANTISATION = "quantisation parameter"
    INDEX = "index"
    BOOLEAN = "boolean"
    BIAS = "bias"
    ROUTER = "router"
    NARROW = "narrow convolution"
    UNUSED = "not used"
    UNLISTED = "not listed"


RULES: dict[Rule, str] = {
    Rule.TOKEN_TABLE: "rows of it are looked up at indices that come from the inputs; nothing else multiplies with it",
    Rule.HEAD: "its product becomes an output of the model: the logits, as wide as the token table or so named",
    Rule.VECTOR: "at most one of its dimensions is above 1: a norm, a bias, a scale, the weight of a single output",
    Rule.ELEMENTWISE: "it is added to activations or scales them; nothing but a proven weight sums over the result",
    Rule.POSITIONS: "sines, cosines, frequencies or a mask of positions, used as such by the operator or so named",
    Rule.QUANTISATION: "the scales or zero points of a quantised tensor",
    Rule.INDEX: "integers that serve as shapes, axes or indices",
    Rule.BOOLEAN: "true and false: a mask, no weights",
    Rule.BIAS: "biases of a stack of experts, by name",
    Rule.ROUTER: "so named, with a row or column for each expert or stream that config.json gives: it chooses or mixes them",
    Rule.NARROW: "a convolution whose reduction dimension is 1: nothing is summed over channels",
    Rule.UNUSED: "nothing in the graph uses it",
    Rule.UNLISTED: "masks or manifest do not list it: it is declared dense",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One stored tensor of a file."""

    name: str  # as the file has it
    shape: tuple[int, ...]  # its shape
    bytes: int  # what it takes in the file; 0 for a further name of bytes that are counted already
    rule: Rule | None  # what exempts it; None if nothing does: then it is a weight that was checked, or unaccounted for
    elements: int  # number of its values, packed ones counted in full
    place: tuple[str, int] | None = None  # file and first byte, for tensors in files of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Bytes of all stored tensors, by what became of them; the parts add up to `total`."""

    total: int  # bytes of all stored tensors
    proven: int  # of those that hold the pattern in every use
    broken: int  # of those that were checked and do not
    exempt: dict[Rule, int]  # of those that need not, by rule
    unaccounted: int  # of those that no rule exempts and no check reached
    files: int  # bytes of the files that they are in, headers, graph and padding included
    stored: tuple[Stored, ...]  # every tensor that is exempt
    missing: tuple[str, ...]  # names of those that are unaccounted for

    def rows(self) -> list[tuple[str, int, float]]:
        """Class, bytes and share of the total; without classes of no bytes, except what is unaccounted for."""
        classes = [("proven", self.proven), ("does not hold", self.broken), *((str(r), b) for r, b in self.exempt.items())]
        shown = [(name, size) for name, size in classes if size]
        return [(name, size, size / (self.total or 1)) for name, size in (*shown, ("unaccounted for", self.unaccounted))]

    def to_json(self) -> dict[str, object]:
        """Bytes by class, and the exempt tensors by rule."""
        by_rule: dict[str, list[str]] = {}
        for tensor in self.stored:
            by_rule.setdefault(str(tensor.rule), []).append(tensor.name)
        return {
            **{f"{name}_bytes": getattr(self, name) for name in ("total", "proven", "broken")},
            "exempt_bytes": {str(rule): size for rule, size in self.exempt.items()},
            "unaccounted_bytes": self.unaccounted,
            "files_bytes": self.files,
            "exempt_tensors": by_rule,
        }


def settle(
    stored: Iterable[Stored], proven: set[str], broken: set[str], declared: set[str], refused: set[str], files: int
) -> Account:
    """Give every stored tensor its class.

    The sets hold names: of tensors that hold the pattern, that were checked and do not, that masks or manifest leave out, and
    that have a use that could not be checked. `files` are the bytes of the files.
    """
    sums = dict.fromkeys(("total", "proven", "broken", "unaccounted"), 0)
    exempt: dict[Rule, int] = {}
    spared, missing = [], []
    for tensor in stored:
        name, rule = tensor.name, Rule.UNLISTED if tensor.name in declared else tensor.rule
        sums["total"] += tensor.bytes
        if name not in refused and (name in broken or name in proven):
            sums["broken" if name in broken else "proven"] += tensor.bytes
        elif name not in refused and rule is not None:
            exempt[rule] = exempt.get(rule, 0) + tensor.bytes
            spared.append(replace(tensor, rule=rule))
        else:
            sums["unaccounted"] += tensor.bytes
            missing.append(name)
    return Account(exempt=exempt, files=files, stored=tuple(spared), missing=tuple(missing), **sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight that can be checked."""

    name: str  # as the file has it
    shape: tuple[int, ...]  # its shape there
    dtype: str  # its dtype there, in the short names of safetensors and ONNX: "f32", "bf16", "int4"
    axis: int  # the reduction axis
    data: FlatArray  # its values in row-major order, or values that are zero and finite exactly where they are
    mask: FlatArray | None = None  # what it was pruned with, in the same order, if known
    listed: bool = False  # whether masks or manifest say that it holds the pattern
    pattern: NMPattern | None = None  # which one they say it holds, where that is another than the source's
    linear: bool = True  # whether it is the weight of a linear layer by the default rule (no embedding, norm or output head)
    uses: int = 1  # how many products multiply with it
    constants: tuple[str, ...] = ()  # names of the stored tensors that it is made of; by default the one of its own name

    @property
    def made_of(self) -> tuple[str, ...]:
        return self.constants or (self.name,)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A stored tensor that no rule exempts and that could not be checked, or a node that may hold one: it forbids a pass."""

    name: str  # of the tensor or node
    shape: tuple[int, ...]  # as the file has it
    reason: str  # why it could not be checked
    consumers: tuple[str, ...] = ()  # what uses it, the first few
    bytes: int = 0  # what it takes in the file
    # a list of weights leaves it out, and nothing suggests that it changes those on the list: it forbids a pass only where all
    # weights are required
    declared: bool = False


Finding = Weight | Unchecked | Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All that was found at a path."""

    kind: str  # what it is: "checkpoint", "safetensors", "masks", "maskllm masks", "onnx", "bundle"
    weights: tuple[Weight, ...]  # those that can be checked
    num_parameters: int  # elements of all its tensors
    pattern: NMPattern | None = None  # the pattern it claims to hold, if it does
    has_list: bool = False  # whether it says which weights hold it
    transposable: bool = False  # whether it claims that the transposes of its masks hold the pattern, too
    unchecked: tuple[Unchecked, ...] = ()  # what is unaccounted for
    stored: tuple[Stored, ...] = ()  # every stored tensor, for the account; empty where all of them are weights
    problems: tuple[str, ...] = ()  # contradictions within it, each a sentence
    files: tuple[str, ...] = ()  # other files that the tensors lie in, relative to the path's folder
    inputs: tuple[InputFile, ...] = ()  # every file that was opened, to see at the end that none was changed
    tensor_files: tuple[InputFile, ...] = ()  # those of them that hold the tensors; empty if all do
    # of all products with stored weights, for one token (or one output position of a convolution); 0 if the path does not say
    multiply_adds: int = 0
    notes: tuple[str, ...] = ()  # what a reader of the report has to know
    left_dense: Mapping[str, str] = field(default_factory=dict)  # linear layers that stay dense on purpose -> why


class Reader(Protocol):
    """One input format."""

    takes: str  # what it reads, with its article, for the text that says what can be given
    suffix: str = ""  # of its files, in small letters, with its dot; a format of folders has its own `accepts`

    def accepts(self, path: Path) -> bool:
        """Whether `path` looks like this format (cheap; no promise that it is whole)."""
        return path.is_file() and path.suffix.lower() == self.suffix

    def read(self, path: Path, progress: Progress) -> Source:
        """Find the weights; their values are read later, piece by piece.

        Raises:
            InputError: it is something else after all.
            FormatError: it is damaged.
        """
