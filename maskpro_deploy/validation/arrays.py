"""Arrays that are read in pieces: what a weight's values are to the checker, whatever file they lie in.

Every array is seen flat, in row-major order, so that a piece is one contiguous run of elements. Files are read, not mapped:
a file that is truncated while it is being checked then gives an error instead of killing the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import FormatError

Array = npt.NDArray[Any]


class FlatArray(Protocol):
    """A flat array of `size` elements."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> Array:
        """The elements [start, stop), contiguous."""


@dataclass(frozen=True, slots=True)
class MemoryArray:
    """An array that is in memory already."""

    values: Array

    @property
    def size(self) -> int:
        return self.values.size

    def read(self, start: int, stop: int) -> Array:
        return self.values.reshape(-1)[start:stop]


def read_bytes(path: Path, offset: int, count: int) -> npt.NDArray[np.uint8]:
    """`count` bytes of a file.

    Raises:
        FormatError: the file ends before.
    """
    with path.open("rb", buffering=0) as file:
        found = np.fromfile(file, dtype=np.uint8, count=count, offset=offset)
    if found.size != count:
        raise FormatError(f"{path} ends early: it was truncated, perhaps while it was being read.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FileArray:
    """Elements of one dtype that lie in a file from `offset` on."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    size: int

    def read(self, start: int, stop: int) -> Array:
        width = self.dtype.itemsize
        return read_bytes(self.path, self.offset + start * width, (stop - start) * width).view(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class NibbleArray:
    """4-bit integers, two to a byte, the first in the low half (ONNX's layout); read as int8 or uint8."""

    path: Path
    offset: int
    size: int
    signed: bool

    def read(self, start: int, stop: int) -> Array:
        first, last = start // 2, -(-stop // 2)
        packed = read_bytes(self.path, self.offset + first, last - first)
        nibbles = np.empty(packed.size * 2, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = packed & 0x0F, packed >> 4
        nibbles = nibbles[start - 2 * first : stop - 2 * first]
        return (nibbles << 4).view(np.int8) >> 4 if self.signed else nibbles


@dataclass(frozen=True, slots=True, kw_only=True)
class BitArray:
    """Booleans, eight to a byte, the first in the highest bit (the layout of mask files)."""

    packed: npt.NDArray[np.uint8]
    size: int

    def read(self, start: int, stop: int) -> Array:
        first = start // 8
        bits = np.unpackbits(self.packed[first : -(-stop // 8)])
        return bits[start - 8 * first : stop - 8 * first].view(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedArray:
    """An array whose elements pass through a function of the piece and its first index (a cast, a dequantisation)."""

    base: FlatArray
    function: Callable[[Array, int], Array]

    @property
    def size(self) -> int:
        return self.base.size

    def read(self, start: int, stop: int) -> Array:
        return np.ascontiguousarray(self.function(self.base.read(start, stop), start))
