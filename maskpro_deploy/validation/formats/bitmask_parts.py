"""Weights behind a bitmask of compressed-tensors (`maskpro_deploy.storage.bitmask` has the layout).

The bitmask is the mask that the law is about; a stored value that is zero makes its group short. `sparse-24-bitmask` stores half
of the values and so claims 2:4; `sparse-bitmask` stores any number and claims nothing.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.storage.bitmask import BITS, OFFSETS, SHAPE, VALUES, list_parts, name_weight
from maskpro_deploy.system.input_file import Entry, InputFile
from maskpro_deploy.validation.arrays import Array, BitArray, FileArray
from maskpro_deploy.validation.source import Unchecked, Weight

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I8": np.dtype(np.int8),
}


Entries = Mapping[str, tuple[InputFile, Entry]]


def find_claim(prefixes: Iterable[str], entries: Container[str]) -> NMPattern | None:
    """The pattern that the layers of these prefixes claim by their format."""
    return NMPattern(2, 4) if any(prefix + OFFSETS not in entries for prefix in prefixes) else None


def read_weight(prefix: str, entries: Entries, listed: Container[str]) -> Weight | Unchecked:
    """One compressed weight, its bitmask as its mask."""
    name = name_weight(prefix)
    value_file, values = entries[prefix + VALUES]
    bit_file, bits = entries[prefix + BITS]
    shape = _read_shape(entries.get(prefix + SHAPE))

    def leave_unchecked(reason: str) -> Unchecked:
        return Unchecked(name=prefix + VALUES, shape=shape or values.shape, reason=reason, bytes=values.bytes)

    if shape is None:
        return leave_unchecked("its compressed form has no valid shape")
    rows, columns = shape
    if values.dtype not in DTYPES:
        return leave_unchecked(f"dtype {values.dtype} packs or encodes its weights")
    if bits.dtype != "U8" or bits.shape != (rows, -(-columns // 8)):
        return leave_unchecked(f"its bitmask has shape {list(bits.shape)} for a weight of {list(shape)}")
    if prefix + OFFSETS not in entries and 2 * math.prod(values.shape) != rows * columns:
        return leave_unchecked(f"it has {math.prod(values.shape)} values for a weight of {list(shape)}")
    packed = FileArray(file=bit_file, offset=bits.offset, dtype=np.dtype(np.uint8), size=math.prod(bits.shape))
    mask = BitArray(base=packed, size=rows * columns, columns=columns, order="little")
    kept = FileArray(file=value_file, offset=values.offset, dtype=DTYPES[values.dtype], size=math.prod(values.shape))
    return Weight(
        name=name,
        shape=shape,
        dtype=values.dtype.lower(),
        axis=1,
        data=ExpandedArray(mask, kept),
        mask=mask,
        listed=name in listed,
        constants=tuple(p for p in list_parts(prefix) if p in entries),
    )


def _read_shape(place: tuple[InputFile, Entry] | None) -> tuple[int, int] | None:
    if place is None or place[1].dtype not in ("I64", "I32") or math.prod(place[1].shape) != 2:
        return None
    file, entry = place
    dtype = np.dtype(np.int64 if entry.dtype == "I64" else np.int32)
    rows, columns = file.read(entry.offset, 2 * dtype.itemsize).view(dtype).tolist()
    return (rows, columns) if rows > 0 and columns > 0 else None


class ExpandedArray:
    """The dense values: those that were kept where the mask has a bit, zeros elsewhere.

    Where the mask has more bits than there are values, the rest becomes ones: the mask itself breaks the law then.
    """

    def __init__(self, mask: BitArray, values: FileArray) -> None:
        self._mask, self._values = mask, values
        self._position, self._taken = 0, 0
        self._kept: int | None = None

    @property
    def contradiction(self) -> str:
        """What is wrong with the layout, once all of it was read: the bitmask has to keep as many weights as there are values."""
        if self._kept is None or self._kept == self._values.size:
            return ""
        return f"its bitmask keeps {self._kept} weights, {self._values.size} values are stored"

    @property
    def size(self) -> int:
        return self._mask.size

    def read(self, start: int, stop: int) -> Array:
        if start != self._position:  # pieces come in order; from the front otherwise
            self._taken = 0
            for at in range(0, start, 1 << 20):
                self._taken += int(np.count_nonzero(self._mask.read(at, min(at + (1 << 20), start))))
        keep = self._mask.read(start, stop)
        count = int(np.count_nonzero(keep))
        there = max(0, min(count, self._values.size - self._taken))
        dense = np.zeros(stop - start, dtype=self._values.dtype)
        kept = np.ones(count, dtype=self._values.dtype)
        if there:
            kept[:there] = self._values.read(self._taken, self._taken + there)
        dense[keep] = kept
        self._position, self._taken = stop, self._taken + count
        if stop == self.size:
            self._kept = self._taken
        return dense

    def release(self) -> None:
        self._position, self._taken = 0, 0
