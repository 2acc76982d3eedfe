"""Weights read from the checkpoint some rows at a time, in the graph's shape and type.

Memory is bounded by one tile, not by the model or a tensor: the checkpoint's files are mapped. What a float type cannot hold is
refused here. What half precision cannot tell from zero is counted: a number below the smallest of the type becomes 0, one below
the smallest normal number keeps fewer bits (it is subnormal).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.graph.builder import DTYPES, WIDER, Weight
from maskpro_deploy.exporters.graph.weight_kinds import DType, Floats

_WORTH_A_WARNING = 0.01  # share of a weight's values that become zero


@dataclass(slots=True)
class Lost:
    """Of one weight: values that were not zero, those that became zero, those that became subnormal."""

    values: int = 0
    zero: int = 0
    subnormal: int = 0


@dataclass(slots=True)
class Underflow:
    """What the cast of all weights to a float type lost, by weight; `values` counts those that were not zero before."""

    dtype: str
    weights: dict[str, Lost] = field(default_factory=dict)
    values: int = 0

    def count(self, name: str, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        """Take in some values of a weight, before and after the cast."""
        if before.dtype == after.dtype or after.dtype.itemsize != 2:
            return
        magnitude = after.view(np.uint16) & np.uint16(0x7FFF)
        smallest = np.asarray(ml_dtypes.finfo(after.dtype).smallest_normal, after.dtype).view(np.uint16)
        values, kept, normal = (int(np.count_nonzero(x)) for x in (before != 0, magnitude, magnitude >= smallest))
        self.values += values
        if values == normal:
            if name in self.weights:
                self.weights[name].values += values
            return
        lost = self.weights.setdefault(name, Lost())
        lost.values += values
        lost.zero += values - kept
        lost.subnormal += kept - normal

    @property
    def worst(self) -> str:
        """The weight that lost the largest share of its values to zero, "" if none lost any."""
        shares = {name: lost.zero / lost.values for name, lost in self.weights.items() if lost.zero}
        return max(shares, key=lambda name: shares[name], default="")

    def warning(self) -> str:
        """In words, if it is worth a warning; else ""."""
        if not (name := self.worst):
            return ""
        lost = self.weights[name]
        if lost.zero < _WORTH_A_WARNING * lost.values:
            return ""
        others = sum(x.zero for x in self.weights.values()) - lost.zero
        more = f" ({others} more in other weights)" if others else ""
        return f"{lost.zero} of {lost.values} nonzero values of {name} become 0 in {self.dtype}{more}"

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        worst = self.worst
        return {
            "values": self.values,
            "zero": sum(lost.zero for lost in self.weights.values()),
            "subnormal": sum(lost.subnormal for lost in self.weights.values()),
            "worst": worst or None,
            "worst_zero": self.weights[worst].zero if worst else 0,
        }


TILE_BYTES = 4 << 20
TILE_ROWS_MULTIPLE = 16  # columns of the source are read in runs of at least this many elements


def view_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The same memory as unsigned integers, so that -0.0 differs from +0.0."""
    return values.view(np.dtype(f"u{values.dtype.itemsize}"))


def read_columns(weight: Weight, checkpoint: Checkpoint, start: int, stop: int) -> Floats:
    """Some columns of a weight, each contiguous.  # [K, N] -> (stop - start, K)"""
    at = slice(weight.start + start, weight.start + stop)
    rows = _open_rows(weight, checkpoint)
    stored = rows[at] if weight.transposed else rows[:, at].T
    result = np.ascontiguousarray(stored, np.float32)
    _check_finite(stored, result, weight, checkpoint)
    return result


def read_tiles(weight: Weight, checkpoint: Checkpoint, dtype: DType, lost: Underflow | None = None) -> Iterator[npt.NDArray[Any]]:
    """The weight in its final form, some rows of the graph's shape at a time; `lost` counts what the cast loses."""
    if weight.parts and len(weight.shape) == 1:
        yield np.concatenate([tile for part in weight.parts for tile in read_tiles(part, checkpoint, dtype, lost)])
        return
    sources = [(piece, _open_rows(piece, checkpoint)) for piece in weight.pieces]
    for start, stop in split_rows(weight.shape, dtype.itemsize):
        pieces = []
        for piece, rows in sources:
            before = _read_tile(piece, rows, start, stop)
            with np.errstate(over="ignore", invalid="ignore"):
                # a copy with rows along memory, in the target's byte order
                pieces.append(np.array(before, dtype=dtype, order="C"))
            _check_finite(before, pieces[-1], piece, checkpoint)
            if lost is not None and piece.source:
                lost.count(weight.name, before, pieces[-1])
        tile = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        plain = view_bits(tile)
        plain[plain == 1 << (8 * dtype.itemsize - 1)] = 0  # -0.0
        yield tile


def _read_tile(weight: Weight, rows: Any, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows `start` to `stop` of the graph's shape, in the checkpoint's type."""
    outputs = slice(weight.start, weight.start + weight.shape[-1]) if weight.whole else slice(None)
    if weight.transposed:
        tile: npt.NDArray[Any] = rows[outputs, start:stop].T
    elif len(weight.shape) == 1 and weight.whole:
        tile = rows[weight.start + start : weight.start + stop]
    elif weight.whole:
        tile = rows[start:stop, outputs]
    else:
        tile = rows[start:stop]
    return tile.astype(np.float64) + weight.plus if weight.plus else tile


def _open_rows(weight: Weight, checkpoint: Checkpoint) -> Any:
    """What a weight is read from."""
    return weight.values if weight.values is not None else checkpoint.slices(weight.source)


def _check_finite(before: npt.NDArray[Any], stored: npt.NDArray[Any], weight: Weight, checkpoint: Checkpoint) -> None:
    """Refuse what a type cannot hold, and tell why."""
    if np.isfinite(stored).all():
        return
    where = f"{checkpoint.folder}: {weight.name}"
    if np.isnan(before).any():
        raise FormatError(f"{where} has NaN values.\nThe checkpoint is damaged: download or convert it again.")
    if np.isinf(before).any():
        raise FormatError(f"{where} has infinite values.\nThe checkpoint is damaged: download or convert it again.")
    name = next(name for name, (_, kind) in DTYPES.items() if kind == stored.dtype)
    largest, limit = float(np.abs(before.astype(np.float64)).max()), float(ml_dtypes.finfo(stored.dtype).max)
    fits = name in WIDER and largest <= float(np.finfo(np.float32).max)
    hint = f"Export it with {WIDER[name]}." if fits else "No --dtype holds them: scale the weight."
    raise FormatError(f"{where} has values up to {largest:.4g}; the largest {name} number is {limit:.6g}.\n{hint}")


def split_rows(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Cut the first axis into runs of about `TILE_BYTES`, each but the last a multiple of `TILE_ROWS_MULTIPLE` rows."""
    row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    step = max(1, TILE_BYTES // row_bytes // TILE_ROWS_MULTIPLE) * TILE_ROWS_MULTIPLE
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
