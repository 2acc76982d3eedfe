"""The answer of a validation: per tensor what was counted, in all whether the law holds."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation.source import Account, Unchecked

# sparse tensor cores take rows and columns in multiples of 16 (16-bit types) or 32 (8-bit types); below 256 nothing is gained
_NEEDED = {1: 32, 2: 16, 4: 16, 8: 16}
_SMALL = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Across:
    """What was counted in the transpose of a tensor: groups along its outputs."""

    outputs: int | None  # how many it has; None for a tensor that is not a matrix
    groups: int  # of M along them; none where M does not divide their number
    violations: int  # groups that break the law; `first` has the coordinates of the first weight of the first few
    first: tuple[tuple[int, ...], ...]

    @property
    def holds(self) -> bool:
        return self.groups > 0 and not self.violations

    def why(self, pattern: NMPattern) -> str:
        """What is wrong with it, in words; "" if nothing is."""
        if self.outputs is None:
            return "it is not a matrix, so its transpose is not judged"
        if self.outputs % pattern.m:
            return f"its number of outputs {self.outputs} is no multiple of {pattern.m}"
        if not self.violations:
            return ""
        places = ", ".join(str(list(at)) for at in self.first)
        return f"{self.violations} of {self.groups} groups of its transpose break it, first at {places}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """What was counted in one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int  # the reduction axis
    pattern: NMPattern | None  # the pattern it was held against; None if none was given and none was found
    satisfies: tuple[NMPattern, ...]  # all patterns looked for that it holds
    groups: int  # groups of M along the axis
    violations: int  # groups that break the law; `first` has the coordinates of the first weight of the first few
    over: int  # groups with more than N nonzeros; `under`: with fewer
    under: int
    outside: int  # groups with a value where the mask has none; `bad_masks`: whose mask does not keep exactly N
    bad_masks: int
    short: int  # lawful groups with fewer than N nonzeros (a kept weight is itself zero, or fewer are allowed)
    first: tuple[tuple[int, ...], ...]
    partial: bool  # the axis is no multiple of M: the last group is not whole
    nonzeros: int
    negative_zeros: int  # zeros with a sign, which some sparse kernels take for values
    not_finite: int  # NaN and infinite values
    mask_known: bool  # whether it was compared with its mask
    required: bool  # whether the verdict depends on it
    alignment: int  # largest of 64, 32, 16, 8, 4, 2, 1 that divides both K and N
    tensor_cores: str  # "fits", "small" (K or N at most 256) or "misaligned", by shape and dtype alone
    uses: int = 1  # how many products multiply with it
    across: Across | None = None  # its transpose; None where that was not asked for

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        return self.nonzeros / self.size if self.size else 0.0

    @property
    def holds(self) -> bool:
        """Whether every group obeys the law, those of the transpose too if they were asked for, and every value is finite."""
        if self.pattern is None or not self.groups or (self.across is not None and not self.across.holds):
            return False
        return not (self.violations or self.partial or self.not_finite)

    @property
    def is_only_short(self) -> bool:
        """Whether nothing is wrong with it but groups along the axis that have fewer than N nonzeros."""
        return self.violations == self.under and not (self.partial or self.not_finite or self.across)

    def why(self) -> str:
        """What is wrong with it, in words; "" if nothing is."""
        parts = []
        if self.partial and self.pattern is not None:
            parts.append(f"its reduction dimension {self.shape[self.axis]} is no multiple of {self.pattern.m}")
        if self.not_finite:
            parts.append(f"{self.not_finite} NaN or infinite values")
        if self.pattern is None:
            parts.append("holds no N:M pattern")
        elif self.violations:
            n = self.pattern.n
            kinds = [
                (self.over, f"more than {n} nonzeros"),
                (self.under if not self.mask_known else 0, f"fewer than {n}"),
                (self.outside, "values where the mask has none"),
                (self.bad_masks, "a mask of another pattern"),
            ]
            words = ", ".join(f"{count} with {what}" for count, what in kinds if count)
            places = ", ".join(str(list(at)) for at in self.first)
            parts.append(f"{self.violations} of {self.groups} groups break it ({words}), first at {places}")
        elif not self.groups and not self.partial:
            parts.append("it has no groups")
        if self.pattern is not None and self.across is not None and (across := self.across.why(self.pattern)):
            parts.append(across)
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        value["pattern"] = str(self.pattern) if self.pattern else None
        value["satisfies"] = [str(p) for p in self.satisfies]
        return value | {"density": self.density, "holds": self.holds}


def alignment(k: int, n: int) -> int:
    """Largest of 64, 32, 16, 8, 4, 2, 1 that divides both."""
    return next(a for a in (64, 32, 16, 8, 4, 2, 1) if k % a == 0 and n % a == 0)


def tensor_core_class(k: int, n: int, bytes_per_weight: int) -> str:
    """Whether a shape suits sparse tensor cores: "fits", "small" or "misaligned"."""
    if alignment(k, n) < _NEEDED.get(bytes_per_weight, 32):
        return "misaligned"
    return "small" if min(k, n) <= _SMALL else "fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """The whole answer."""

    path: str
    kind: str  # what the path is: "checkpoint", "safetensors", "masks", "onnx", "bundle"
    pattern: NMPattern | None  # the pattern that was proved or refuted; None if none was given and none was found
    detected: bool  # the pattern was found, not given
    at_most: bool  # fewer than N nonzeros in a group are allowed
    transposable: bool  # the transposes had to hold the pattern, too: asked for, or claimed by the masks
    require: str  # which tensors the verdict depends on, "listed" or "all"
    tensors: tuple[TensorReport, ...]
    unchecked: tuple[Unchecked, ...]  # stored tensors that are unaccounted for; one of them forbids a pass
    account: Account  # bytes of all stored tensors, by what became of them
    problems: tuple[str, ...]  # contradictions, such as a hash that differs
    num_parameters: int  # elements of all tensors at the path
    # of all products with stored weights, for one token (or one output position of a convolution), embedding lookups and
    # attention scores aside; 0 if the path does not say
    multiply_adds: int = 0
    notes: tuple[str, ...] = ()  # what has to be known to read the answer rightly
    left_dense: Mapping[str, str] = field(default_factory=dict)  # linear layers that stay dense on purpose -> why

    @property
    def required(self) -> tuple[TensorReport, ...]:
        """The tensors that the verdict depends on."""
        return tuple(t for t in self.tensors if t.required)

    @property
    def failed(self) -> tuple[TensorReport, ...]:
        """Those of them that do not hold the pattern."""
        return tuple(t for t in self.required if not t.holds)

    @property
    def holds(self) -> bool:
        """Whether the pattern is proved: something was checked, and nothing speaks against it."""
        return bool(self.required) and not (self.failed or self.unchecked or self.account.missing or self.problems)

    @property
    def share(self) -> float:
        """Share of all parameters that lie in tensors proved to hold the pattern."""
        return sum(t.size for t in self.required if t.holds) / self.num_parameters if self.num_parameters else 0.0

    @property
    def share_of_multiply_adds(self) -> float | None:
        """Share of the multiply-adds with stored weights that lie in tensors proved to hold the pattern; None if not known."""
        held = sum(t.size * t.uses for t in self.required if t.holds)
        return min(1.0, held / self.multiply_adds) if self.multiply_adds else None

    @property
    def verdict(self) -> str:
        required, failed = len(self.required), len(self.failed)
        law = f"at most {self.pattern.n} of every {self.pattern.m}" if self.pattern and self.at_most else str(self.pattern)
        others = Counter(str(t.pattern) for t in self.required if t.pattern is not None and t.pattern != self.pattern)
        law = ", ".join([law, *(f"{pattern} in {count}" for pattern, count in sorted(others.items()))])
        law += " along both axes" if self.transposable else ""
        if self.holds:
            line = f"holds: {law} in all {required} required tensors, {100 * self.share:.1f} % of the parameters"
            if self.share_of_multiply_adds is not None:
                line += f", {100 * self.share_of_multiply_adds:.1f} % of the multiply-adds"
            return line + (" (detected)" if self.detected else "")
        if not required and not self.unchecked and not self.problems:
            return "not proved: nothing here could be checked"
        reasons = []
        if failed and self.pattern is None:
            reasons.append(f"no N:M pattern in any of {required} required tensors")
        elif failed:
            reasons.append(f"{failed} of {required} required tensors break {law}")
        if self.unchecked or self.account.missing:
            count = max(len(self.unchecked), len(self.account.missing))
            reasons.append(f"{count} {'tensor is' if count == 1 else 'tensors are'} unaccounted for")
        reasons.extend(
            self.problems[:1] if len(self.problems) == 1 else [f"{len(self.problems)} contradictions"] * bool(self.problems)
        )
        line = "does not hold: " + "; ".join(reasons)
        if failed and self.pattern and all(t.is_only_short for t in self.failed):
            line += "\nevery violation is a group with fewer nonzeros, which sparse hardware accepts: --at-most allows them"
        return line

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("path", "kind", "holds", "verdict")},
            "pattern": str(self.pattern) if self.pattern else None,
            **{name: getattr(self, name) for name in ("detected", "at_most", "transposable", "require")},
            "required_tensors": len(self.required),
            "failed_tensors": [t.name for t in self.failed],
            **{name: sum(getattr(t, name) for t in self.required) for name in ("groups", "violations")},
            "short_groups": sum(t.short for t in self.required),
            "negative_zeros": sum(t.negative_zeros for t in self.required),
            "num_parameters": self.num_parameters,
            "share_of_parameters": self.share,
            "multiply_adds": self.multiply_adds,
            "share_of_multiply_adds": self.share_of_multiply_adds,
            "notes": list(self.notes),
            "left_dense": dict(self.left_dense),
            "problems": list(self.problems),
            "account": self.account.to_json(),
            "unchecked": [dataclasses.asdict(u) for u in self.unchecked],
            "tensors": [t.to_json() for t in self.tensors],
        }
