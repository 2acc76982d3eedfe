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

from maskpro_deploy.pattern import Counts, NMPattern, count_in_groups
from maskpro_deploy.validation.arrays import Array, FlatArray, PanelArray

_TILE = 1 << 19  # elements: enough that calls are cheap and threads seldom wait for each other, few enough for the caches
_LONGEST_RUN = 1 << 21  # elements of M rows side by side: longer ones are cut into panels of columns
_LARGE_BLOCK = 30 << 20  # bytes
_SHOWN = 3  # offending groups whose place is kept


class _Bits(NamedTuple):
    """How a float dtype says zero and not finite: integer twin, all bits but the sign, first magnitude that is not a number."""

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
_FAST_COMPARE = (np.dtype(np.float32), np.dtype(np.float64))
# numbers without NaN and infinity, one to a byte
_SMALL: dict[np.dtype[np.generic], _Bits] = {
    np.dtype(ml_dtypes.float4_e2m1fn): _Bits(np.uint8, 0x07, 0xFF),
    np.dtype(ml_dtypes.float6_e2m3fn): _Bits(np.uint8, 0x1F, 0xFF),
    np.dtype(ml_dtypes.float6_e3m2fn): _Bits(np.uint8, 0x1F, 0xFF),
}
# one NaN where others have -0.0, and no infinity
_FNUZ = (np.dtype(ml_dtypes.float8_e4m3fnuz), np.dtype(ml_dtypes.float8_e5m2fnuz))
_INTEGERS = tuple(np.dtype(t) for t in (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64))
CHECKED_DTYPES = (*_BITS, *_SMALL, *_FNUZ, *_INTEGERS)


class Values(NamedTuple):
    """What a tile holds: where it is not zero (E,), and how many negative zeros and NaN or infinite values."""

    nonzero: npt.NDArray[np.bool_]
    negative_zeros: int
    not_finite: int


def inspect_values(tile: Array) -> Values:
    """Tell zeros from values.  # (E,)"""
    if tile.dtype in _BITS:
        integer, magnitude_mask, limit = _BITS[tile.dtype]
        bits = tile.view(integer)
        magnitude = bits & integer(magnitude_mask)
        # numpy compares single and double precision at full speed, and knows that -0.0 == 0
        nonzero = tile != 0 if tile.dtype in _FAST_COMPARE else magnitude != 0
        bad = int(np.count_nonzero(magnitude >= limit)) if tile.size and magnitude.max() >= limit else 0
        return Values(nonzero, _negative_zeros(bits), bad)
    if tile.dtype in _SMALL:
        _, magnitude_mask, _ = _SMALL[tile.dtype]
        bits = tile.view(np.uint8)
        nonzero = bits & np.uint8(magnitude_mask) != 0
        sign = np.uint8(magnitude_mask + 1)
        return Values(nonzero, int(np.count_nonzero(bits & np.uint8(magnitude_mask | sign) == sign)), 0)
    if tile.dtype in _FNUZ:
        bits = tile.view(np.uint8)
        return Values(bits != 0, 0, int(np.count_nonzero(bits == 0x80)))
    return Values(tile != 0, 0, 0)


def _negative_zeros(bits: npt.NDArray[np.unsignedinteger]) -> int:
    """How many values are the sign alone: as a signed integer, the least of all, so that one pass says whether there is any."""
    signed = bits.view(f"i{bits.itemsize}")
    least = np.iinfo(signed.dtype).min
    return int(np.count_nonzero(signed == least)) if signed.size and signed.min() == least else 0


@dataclass(slots=True)
class Tally:
    """What was counted for one pattern."""

    pattern: NMPattern
    groups: int = 0  # groups looked at
    over: int = 0  # groups with more than N nonzeros
    under: int = 0  # groups with fewer
    outside: int = 0  # groups with a nonzero where the mask has none (mask known)
    bad_masks: int = 0  # groups whose mask does not keep N (mask known)
    violations: int = 0  # groups that break the law
    first: list[int] = field(default_factory=list)  # flat index of the first element of the first few of them

    @property
    def lawful(self) -> bool:
        return self.groups > 0 and self.violations == 0

    def add(self, counts: Counts, start: int, inner: int, at_most: bool) -> bool:
        """Count one tile that begins at flat index `start`; `counts` are nonzeros in a group. Says whether all are exactly N."""
        self.groups += counts.size
        differs = counts != self.pattern.n
        if not differs.any():
            return True
        over = self._count_over(counts, differs)
        self._note_violations(over if at_most else differs, start, inner)
        return False

    def add_masked(self, counts: Counts, kept: Counts, outside: Counts, start: int, inner: int, at_most: bool) -> None:
        """Count one tile whose mask is known: then it is the mask that has to hold the pattern, and be kept to.

        `kept` are weights that the mask keeps in each group, `outside` nonzeros where it has none; the rest is as in `add`.
        """
        self.groups += counts.size
        self._count_over(counts, counts != self.pattern.n)
        bad, leaks = kept > self.pattern.n if at_most else kept != self.pattern.n, outside != 0
        self.bad_masks += int(np.count_nonzero(bad))
        self.outside += int(np.count_nonzero(leaks))
        self._note_violations(bad | leaks, start, inner)

    def _count_over(self, counts: Counts, differs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        over = counts > self.pattern.n
        number = int(np.count_nonzero(over))
        self.over += number
        self.under += int(np.count_nonzero(differs)) - number
        return over

    def _note_violations(self, wrong: npt.NDArray[np.bool_], start: int, inner: int) -> None:
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
        done: gets the number of elements after each tile.
    """
    inner = math.prod(shape[axis + 1 :])
    result = Scan([Tally(p) for p in patterns])
    counter = _TileCounter(result, [t for t in result.tallies if shape[axis] % t.pattern.m == 0], at_most, done)
    # Having seen a large block freed, glibc keeps the memory of tiles for the next ones. Otherwise it is given back and faulted
    # in again for every array, which makes all of this six times slower.
    np.empty(_LARGE_BLOCK, dtype=np.uint8)
    try:
        if counter.longest * inner <= _LONGEST_RUN:
            counter.count_runs(data, mask, inner)
        else:
            counter.count_panels(data, mask, inner)
    finally:
        data.release()
        if mask is not None:
            mask.release()
    return result


class _TileCounter:
    """Counts the tiles of one tensor into those of its tallies whose M divides the axis; `longest` is a multiple of every M."""

    def __init__(self, result: Scan, tallies: Sequence[Tally], at_most: bool, done: Callable[[int], None]) -> None:
        self._result, self._tallies, self._at_most, self._done = result, tallies, at_most, done
        self._sizes = [t.pattern.m for t in tallies]
        self.longest = math.lcm(*self._sizes)

    def count_panels(self, data: FlatArray, mask: FlatArray | None, inner: int) -> None:
        """As `count_runs`, a few columns at a time, so that a tile stays small however long the rows are."""
        width = max(1, _LONGEST_RUN // self.longest)
        for left in range(0, inner, width):
            part = min(width, inner - left)
            panel = PanelArray(base=data, inner=inner, left=left, width=part)
            panel_mask = PanelArray(base=mask, inner=inner, left=left, width=part) if mask is not None else None
            known = [len(t.first) for t in self._tallies]
            self.count_runs(panel, panel_mask, part)
            for tally, count in zip(self._tallies, known, strict=True):
                tally.first[count:] = [at // part * inner + left + at % part for at in tally.first[count:]]

    def count_runs(self, data: FlatArray, mask: FlatArray | None, inner: int) -> None:
        run = max(1, self.longest * inner)
        step = max(1, _TILE // run) * run
        for start in range(0, data.size, step):
            stop = min(start + step, data.size)
            values = inspect_values(data.read(start, stop))
            self._result.negative_zeros += values.negative_zeros
            self._result.not_finite += values.not_finite
            exact = self._count_tile(values, mask.read(start, stop) if mask is not None else None, start, inner)
            self._result.nonzeros += (stop - start) // exact.m * exact.n if exact else int(np.count_nonzero(values.nonzero))
            self._done(stop - start)

    def _count_tile(self, values: Values, keep: Array | None, start: int, inner: int) -> NMPattern | None:
        """Add one tile to every tally; a pattern of which all groups have exactly N, if any: it gives the number of nonzeros."""
        counts = count_in_groups(values.nonzero, self._sizes, inner)
        exact = None
        if keep is None:
            for tally in self._tallies:
                if tally.add(counts[tally.pattern.m], start, inner, self._at_most):
                    exact = tally.pattern
            return exact
        kept = count_in_groups(keep, self._sizes, inner)
        outside = count_in_groups(values.nonzero > keep, self._sizes, inner)
        for tally in self._tallies:
            m = tally.pattern.m
            tally.add_masked(counts[m], kept[m], outside[m], start, inner, self._at_most)
        return None
