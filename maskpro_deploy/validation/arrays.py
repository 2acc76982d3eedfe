"""Arrays that are read in pieces: what a weight's values are to the checker, whatever file they lie in.

Every array is seen flat, in row-major order, so that a piece is one contiguous run of elements. One thread reads a tensor from
the front to the back; a class that has to unpack or reorder may keep up to one packed tensor until `release`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskpro_deploy.system.input_file import InputFile

Array = npt.NDArray[Any]


class FlatArray(Protocol):
    """A flat array of `size` elements."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> Array:
        """The elements [start, stop), contiguous."""

    def release(self) -> None:
        """Give back what is kept between pieces."""


@dataclass(frozen=True, slots=True)
class MemoryArray:
    """An array that is in memory already."""

    values: Array

    @property
    def size(self) -> int:
        return self.values.size

    def read(self, start: int, stop: int) -> Array:
        return self.values.reshape(-1)[start:stop]

    def release(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileArray:
    """Elements of one dtype that lie in a file from `offset` on."""

    file: InputFile
    offset: int
    dtype: np.dtype[Any]
    size: int

    def read(self, start: int, stop: int) -> Array:
        width = self.dtype.itemsize
        return self.file.read(self.offset + start * width, (stop - start) * width).view(self.dtype)

    def release(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedArray:
    """What arrays share that are made of another one, which holds whatever is kept."""

    base: FlatArray

    def release(self) -> None:
        self.base.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class NibbleArray(DerivedArray):
    """4-bit integers, two to a byte, the first in the low half (ONNX's layout); read as int8 or uint8."""

    size: int
    signed: bool

    def read(self, start: int, stop: int) -> Array:
        first, last = start // 2, -(-stop // 2)
        packed = self.base.read(first, last)
        nibbles = np.empty(packed.size * 2, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = packed & 0x0F, packed >> 4
        nibbles = nibbles[start - 2 * first : stop - 2 * first]
        return (nibbles << 4).view(np.int8) >> 4 if self.signed else nibbles


@dataclass(frozen=True, slots=True, kw_only=True)
class BitArray(DerivedArray):
    """Booleans, eight to a byte, each row of `columns` padded to whole bytes."""

    size: int  # number of booleans
    columns: int  # of a row; `size` where all of them are packed as one
    # "big": the first in the highest bit (mask files), "little": in the lowest (compressed-tensors)
    order: Literal["big", "little"] = "big"

    def read(self, start: int, stop: int) -> Array:
        if self.columns % 8 == 0 or self.columns == self.size:
            first = start // 8
            bits = np.unpackbits(self.base.read(first, -(-stop // 8)), bitorder=self.order)
            return bits[start - 8 * first : stop - 8 * first].view(np.bool_)
        stride, row, last = -(-self.columns // 8), start // self.columns, -(-stop // self.columns)
        rows = self.base.read(row * stride, last * stride).reshape(-1, stride)
        flat = np.unpackbits(rows, axis=1, count=self.columns, bitorder=self.order).reshape(-1)
        return flat[start - row * self.columns : stop - row * self.columns].view(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedArray(DerivedArray):
    """An array whose elements pass through a function of the piece and its first index (a cast, a dequantisation)."""

    function: Callable[[Array, int], Array]

    @property
    def size(self) -> int:
        return self.base.size

    def read(self, start: int, stop: int) -> Array:
        return np.ascontiguousarray(self.function(self.base.read(start, stop), start))


def fp4_array(packed: FlatArray, size: int) -> MappedArray:
    """4-bit floats (E2M1), two to a byte as `NibbleArray` has them."""
    nibbles = NibbleArray(base=packed, size=size, signed=False)
    return MappedArray(base=nibbles, function=lambda piece, start: piece.view(ml_dtypes.float4_e2m1fn))


class LoadedArray:
    """An array that comes whole when its first piece is read, and goes with `release`."""

    def __init__(self, load: Callable[[], Array], size: int) -> None:
        self._load, self._size = load, size
        self._held: Array | None = None

    @property
    def size(self) -> int:
        return self._size

    def read(self, start: int, stop: int) -> Array:
        held = self._held
        if held is None:  # two threads at once load twice, and both are right
            self._held = held = self._load().reshape(-1)
        return held[start:stop]

    def release(self) -> None:
        self._held = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedArray(DerivedArray):
    """The transpose of a stored matrix of (rows, columns) bits packed as one run: element (c, r) comes from (r, c)."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def read(self, start: int, stop: int) -> Array:
        first, last = start // self.rows, -(-stop // self.rows)  # columns of the stored matrix
        packed = self.base.read(0, self.base.size)
        if self.columns % 8 == 0:
            byte = first // 8
            part = packed.reshape(self.rows, -1)[:, byte : -(-last // 8)]
            bits = np.unpackbits(part, axis=1)[:, first - 8 * byte : last - 8 * byte]
        else:
            at = np.arange(self.rows)[:, None] * self.columns + np.arange(first, last)
            bits = packed[at >> 3] >> (7 - (at & 7)).astype(np.uint8) & 1
        flat = np.ascontiguousarray(bits.T).reshape(-1)
        return flat[start - first * self.rows : stop - first * self.rows].view(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySideArray:
    """Matrices of equal height as one, the columns (`widths`) of the first before those of the second."""

    parts: tuple[FlatArray, ...]
    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, start: int, stop: int) -> Array:
        width = sum(self.widths)
        first, last = start // width, -(-stop // width)  # rows
        rows = [
            part.read(first * columns, last * columns).reshape(-1, columns)
            for part, columns in zip(self.parts, self.widths, strict=True)
        ]
        return np.concatenate(rows, axis=1).reshape(-1)[start - first * width : stop - first * width]

    def release(self) -> None:
        for part in self.parts:
            part.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelArray(DerivedArray):
    """Columns [left, left + width) of an array seen as rows of `inner` elements; pieces are whole rows."""

    inner: int
    left: int
    width: int

    @property
    def size(self) -> int:
        return self.base.size // self.inner * self.width

    def read(self, start: int, stop: int) -> Array:
        rows = range(start // self.width, stop // self.width)
        pieces = [self.base.read(r * self.inner + self.left, r * self.inner + self.left + self.width) for r in rows]
        return np.concatenate(pieces)
