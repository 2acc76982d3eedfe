"""The law of N:M, counted.

A tensor with its reduction axis of length K is, in row-major order, `outer x K x inner`. Where M divides K, every run of
`M * inner` elements is `inner` whole groups side by side, so any tile of such runs can be counted alone: tensors of any size are
checked in pieces that fit the cache.

Values are looked at as bits: magnitude 0 is zero (so -0.0 is), an exponent of ones is NaN or infinity. No float arithmetic.

Shapes: `E` elements of a tile, `M` group size, `I` inner, `G` groups along the axis in the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation.arrays import Array, FlatArray

_TILE_BYTES = 1 << 20  # fits a core's second-level cache together with what is made of it
_SHOWN = 3  # offending groups whose place is kept


class _Bits(NamedTuple):
    """How a float dtype says zero and not finite: integer twin, all bits but the sign, first magnitude that is no number."""

    integer: type[np.unsignedinteger]
    magnitude: int
    not_finite: int


_BITS: dict[np.dtype[np.generic], _Bits] = {
    np.dtype(np.float16): _Bits(np.uint16, 0x7FFF, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): _Bits(np.uint16, 0x7FFF, 0x7F80),
    np.dtype(np.float32): _Bits(np.uint32, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): _Bits(np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    np.dtype(ml_dtypes.float8_e5m2): _Bits(np.uint8, 0x7F, 0x7C),
    np.dtype(ml_dtypes.float8_e4m3fn): _Bits(np.uint8, 0x7F, 0x7F),
}
# one NaN where others have -0.0, and no infinity
_FNUZ = (np.dtype(ml_dtypes.float8_e4m3fnuz), np.dtype(ml_dtypes.float8_e5m2fnuz))
_INTEGERS = tuple(np.dtype(t) for t in (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64))
CHECKED_DTYPES = (*_BITS, *_FNUZ, *_INTEGERS)


class Values(NamedTuple):
    """What a tile holds: where it is not zero (E,), and how many negative zeros and NaN or infinite values."""

    nonzero: npt.NDArray[np.bool_]
    negative_zeros: int
    not_finite: int


def look(tile: Array) -> Values:
    """Tell zeros from values.  # (E,)"""
    if tile.dtype in _BITS:
        integer, magnitude_mask, limit = _BITS[tile.dtype]
        bits = tile.view(integer)
        magnitude = bits & integer(magnitude_mask)
        nonzero = magnitude != 0
        negative_zeros = int(np.count_nonzero(bits)) - int(np.count_nonzero(nonzero))
        bad = int(np.count_nonzero(magnitude >= limit)) if tile.size and magnitude.max() >= limit else 0
        return Values(nonzero, negative_zeros, bad)
    if tile.dtype in _FNUZ:
        bits = tile.view(np.uint8)
        return Values(bits != 0, 0, int(np.count_nonzero(bits == 0x80)))
    return Values(tile != 0, 0, 0)


def group_counts(flags: npt.NDArray[np.bool_], m: int, inner: int) -> npt.NDArray[np.uint8]:
    """How many flags are set in each group.  # (E,) -> (G * I,)"""
    if inner == 1 and m in (2, 4, 8):  # a group's flags are the bytes of one integer: its set bits are the count
        word = {2: np.uint16, 4: np.uint32, 8: np.uint64}[m]
        counts: npt.NDArray[np.uint8] = np.bitwise_count(np.ascontiguousarray(flags).view(word))
        return counts
    grouped = flags.view(np.uint8).reshape(-1, m, inner)  # (G, M, I)
    total = grouped[:, 0] + grouped[:, 1]  # M adds of whole rows are faster than one sum over a short axis
    for i in range(2, m):
        total += grouped[:, i]
    return total.reshape(-1)


@dataclass(slots=True)
class Tally:
    """What was counted for one pattern.

    Attributes:
        groups: groups looked at.
        over: groups with more than N nonzeros.
        under: groups with fewer.
        outside: groups with a nonzero where the mask has none (mask known).
        bad_masks: groups whose mask does not keep N (mask known).
        violations: groups that break the law.
        first: flat index of the first element of the first few of them.
    """

    pattern: NMPattern
    groups: int = 0
    over: int = 0
    under: int = 0
    outside: int = 0
    bad_masks: int = 0
    violations: int = 0
    first: list[int] = field(default_factory=list)

    def add(
        self, nonzero: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_] | None, start: int, inner: int, at_most: bool
    ) -> None:
        """Count one tile that begins at flat index `start`."""
        n, m = self.pattern.n, self.pattern.m
        counts = group_counts(nonzero, m, inner)
        self.groups += counts.size
        differs = counts != n
        if mask is None and not differs.any():
            return
        over = counts > n
        self.over += int(np.count_nonzero(over))
        self.under += int(np.count_nonzero(differs)) - int(np.count_nonzero(over))
        wrong = over if at_most else differs
        if mask is not None:  # a kept weight may itself be zero: then the mask is what has to hold the pattern
            wrong = self._against(mask, nonzero, inner, at_most) | over
        self._note(wrong, start, inner)

    def _against(self, mask: Array, nonzero: Array, inner: int, at_most: bool) -> npt.NDArray[np.bool_]:
        n, m = self.pattern.n, self.pattern.m
        kept = group_counts(mask, m, inner)
        bad: npt.NDArray[np.bool_] = kept > n if at_most else kept != n
        outside: npt.NDArray[np.bool_] = group_counts(nonzero > mask, m, inner) != 0
        self.bad_masks += int(np.count_nonzero(bad))
        self.outside += int(np.count_nonzero(outside))
        return bad | outside

    def _note(self, wrong: npt.NDArray[np.bool_], start: int, inner: int) -> None:
        number = int(np.count_nonzero(wrong))
        self.violations += number
        if number and len(self.first) < _SHOWN:
            for at in np.flatnonzero(wrong)[: _SHOWN - len(self.first)].tolist():
                self.first.append(start + at // inner * self.pattern.m * inner + at % inner)


@dataclass(slots=True)
class Scan:
    """What was counted in one tensor: values of each kind, and one tally a pattern."""

    tallies: list[Tally]
    nonzeros: int = 0
    negative_zeros: int = 0
    not_finite: int = 0


def scan(
    data: FlatArray,
    shape: Sequence[int],
    axis: int,
    patterns: Sequence[NMPattern],
    *,
    mask: FlatArray | None = None,
    at_most: bool = False,
    done: Callable[[int], None] = lambda elements: None,
) -> Scan:
    """Count every group of a tensor, tile by tile.

    Args:
        data: the values, flat; `mask` likewise, in the same order.
        shape: the tensor's shape.
        axis: its reduction axis.
        patterns: what to count; those whose M does not divide the axis get no groups.
        mask: what the tensor was pruned with, if known.
        at_most: take groups with fewer than N nonzeros as lawful.
        done: told the number of elements after each tile.
    """
    inner = math.prod(shape[axis + 1 :])
    result = Scan([Tally(p) for p in patterns])
    whole = [t for t in result.tallies if shape[axis] % t.pattern.m == 0]
    run = math.lcm(*(t.pattern.m for t in whole)) * inner
    step = max(1, _TILE_BYTES // 4 // run) * run
    for start in range(0, data.size, step):
        stop = min(start + step, data.size)
        values = look(data.read(start, stop))
        kept = mask.read(start, stop) if mask is not None else None
        result.nonzeros += int(np.count_nonzero(values.nonzero))
        result.negative_zeros += values.negative_zeros
        result.not_finite += values.not_finite
        for tally in whole:
            tally.add(values.nonzero, kept, start, inner, at_most)
        done(stop - start)
    return result
