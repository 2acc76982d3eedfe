"""What a value of a graph is made of, as far as weights are concerned.

A value is a stored tensor that is still known element by element (`Constant`), something made of stored tensors that is not
(`Opaque`), or something that the graph's inputs decide (`Runtime`).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from maskpro_deploy.validation.arrays import FlatArray

# a constant of one dimension that is longer than any norm or bias is treated as a matrix that was flattened
LARGE = 1 << 14


class Kind(enum.IntEnum):
    """How a value was made of stored tensors; what it may be multiplied with follows from it."""

    CONSTANT = 0  # of constants alone, by a step that is not followed
    LOOKED_UP = 1  # rows of a table of two dimensions, at indices from the graph's inputs: activations
    ADDED = 2  # activations, to which a table was added
    SCALED = 3  # activations, multiplied element by element by a table that has no dimension which they lack
    SELECTED = 4  # a part or a version of a stored tensor, chosen when the graph runs
    EXPANDED = 5  # activations, multiplied by a table along dimensions that they lacked: half of a matrix product


# tables went into them, and yet they are activations: a proven weight may multiply with them
ACTIVATIONS = (Kind.LOOKED_UP, Kind.ADDED, Kind.SCALED)


class Runtime(enum.Enum):
    """A value without stored tensors in it."""

    INPUT = "input"  # depends on the graph's inputs through no product
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is a stored tensor with permuted axes: axis `i` of the value is axis `perm[i]` of the tensor.

    Attributes:
        name: of the tensor; for a part of one, with the part.
        shape: of the data.
        dtype: of the stored tensor.
        data: the values, in the order of `shape`.
        perm: see above.
        origins: keys of the stored tensors it is made of.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: FlatArray
    perm: tuple[int, ...]
    origins: frozenset[str]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.shape[i] for i in self.perm)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value made of the stored tensors `origins`, and why its elements are not known."""

    origins: frozenset[str]
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Picked(Opaque):
    """Whole entries of a constant's first axis, chosen at run time: whichever they are, the other axes are those of the constant.

    Attributes:
        base: the constant.
        axes: for each axis of the value the one of the constant; None for those that the index made.
        whole: whether these are all axes; else the index made some more in front of them.
    """

    base: Constant
    axes: tuple[int | None, ...]
    whole: bool = True

    @property
    def plain(self) -> Opaque:
        """The same without knowledge of its axes."""
        return Opaque(self.origins, self.kind, self.reason)


Value = Constant | Opaque | Runtime
Input = Value | None  # None: an optional input that is not given


def is_table(shape: tuple[int, ...]) -> bool:
    """Whether a constant of this shape could be a weight: two dimensions above 1, or more elements than a vector has."""
    return sum(d > 1 for d in shape) > 1 or math.prod(shape) > LARGE


def is_constant(value: Input) -> bool:
    """Whether a value depends on no input of the graph."""
    return isinstance(value, Constant) or (isinstance(value, Opaque) and value.kind is Kind.CONSTANT)


def origins_of(*values: Input) -> frozenset[str]:
    """Keys of all stored tensors in some values."""
    return frozenset(key for v in values if isinstance(v, (Constant, Opaque)) for key in v.origins)


def reason_of(*values: Input) -> str:
    """The first reason that one of the values has."""
    return next((v.reason for v in values if isinstance(v, Opaque)), "")


def runtime_of(*values: Input) -> Runtime:
    """The runtime value that depends on all of these."""
    quiet = all(v is None or v is Runtime.INPUT or isinstance(v, Constant) for v in values)
    return Runtime.INPUT if quiet else Runtime.ACTIVE
