"""The account of a file: every stored tensor is proven, exempt by a rule, or unaccounted for.

`RULES` is the whole list of exemptions. A tensor that is none of them and was not proven forbids a pass.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace


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
    Rule.ROUTER: "so named, with a row for each expert that config.json gives: it chooses experts",
    Rule.NARROW: "a convolution whose reduction dimension is 1: nothing is summed over channels",
    Rule.UNUSED: "nothing in the graph uses it",
    Rule.UNLISTED: "masks or manifest do not list it: it is declared dense",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One stored tensor of a file.

    Attributes:
        name: as the file has it.
        shape: its shape.
        bytes: what it takes in the file; 0 for a further name of bytes that are counted already.
        rule: what exempts it; None if nothing does: then it is a weight that was checked, or unaccounted for.
        elements: number of its values, packed ones counted in full.
        place: file and first byte, for tensors in files of their own.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int
    rule: Rule | None
    elements: int
    place: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Bytes of all stored tensors, by what became of them; the parts add up to `total`.

    Attributes:
        total: bytes of all stored tensors.
        proven: of those that hold the pattern in every use.
        broken: of those that were checked and do not.
        exempt: of those that need not, by rule.
        unaccounted: of those that no rule exempts and no check reached.
        files: bytes of the files that they are in, headers, graph and padding included.
        stored: every tensor that is exempt.
        missing: names of those that are unaccounted for.
    """

    total: int
    proven: int
    broken: int
    exempt: dict[Rule, int]
    unaccounted: int
    files: int
    stored: tuple[Stored, ...]
    missing: tuple[str, ...]

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
            "total_bytes": self.total,
            "proven_bytes": self.proven,
            "broken_bytes": self.broken,
            "exempt_bytes": {str(rule): size for rule, size in self.exempt.items()},
            "unaccounted_bytes": self.unaccounted,
            "files_bytes": self.files,
            "exempt_tensors": by_rule,
        }


def settle(
    stored: Iterable[Stored], proven: set[str], broken: set[str], declared: set[str], refused: set[str], files: int
) -> Account:
    """Give every stored tensor its class.

    Args:
        stored: all of them.
        proven: names of those that hold the pattern.
        broken: names of those that were checked and do not.
        declared: names of those that were reached, and that masks or manifest leave out.
        refused: names of those with a use that could not be checked.
        files: bytes of the files.
    """
    sums = dict.fromkeys(("proven", "broken", "unaccounted"), 0)
    exempt: dict[Rule, int] = {}
    spared, missing = [], []
    total = 0
    for tensor in stored:
        total += tensor.bytes
        if tensor.name in refused:
            sums["unaccounted"] += tensor.bytes
            missing.append(tensor.name)
        elif tensor.name in broken:
            sums["broken"] += tensor.bytes
        elif tensor.name in proven:
            sums["proven"] += tensor.bytes
        elif (rule := Rule.UNLISTED if tensor.name in declared else tensor.rule) is not None:
            exempt[rule] = exempt.get(rule, 0) + tensor.bytes
            spared.append(replace(tensor, rule=rule))
        else:
            sums["unaccounted"] += tensor.bytes
            missing.append(tensor.name)
    return Account(total=total, exempt=exempt, files=files, stored=tuple(spared), missing=tuple(missing), **sums)
