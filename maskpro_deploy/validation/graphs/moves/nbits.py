"""Weights that are packed into bytes by MatMulNBits and MatMulBnb4.

MatMulNBits: 2, 4 or 8 bits each, in blocks along K with a scale and a zero point. Stored are `B` (N, blocks, bytes of a block),
the first weight of a byte in its lowest bits; scales (N * blocks); zero points (N rows of as many bytes as the blocks' zero
points fill), half of the range where they are omitted, or floats (N * blocks).

MatMulBnb4: 4 bits each, the first in the highest bits, numbers of entries in a table of values; (N, K) as one run, in blocks with
a scale. Entry 7 of the NF4 table is zero, entries 0 and 8 of the FP4 table are.

Shapes: `N` rows (outputs), `K` columns (inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from maskpro_deploy.onnx_graphs.nodes import get_integer
from maskpro_deploy.validation.arrays import Array, FlatArray
from maskpro_deploy.validation.graphs.values import Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class NBitsArray:
    """The dequantised weights (N, K), read in whole rows.

    Attributes:
        packed: the bytes of `B`.
        rows, columns: N and K.
        bits: of each weight.
        block: weights of a block.
        scales: (N, blocks).
        zeros: zero points, of the same shape.
    """

    packed: FlatArray
    rows: int
    columns: int
    bits: int
    block: int
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.float32]

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def read(self, start: int, stop: int) -> Array:
        first, last = start // self.columns, -(-stop // self.columns)
        width = self.packed.size // self.rows  # bytes of a row
        codes = unpack_bits(self.packed.read(first * width, last * width), self.bits).reshape(last - first, -1, self.block)
        with np.errstate(all="ignore"):
            values = (codes - self.zeros[first:last, :, None]) * self.scales[first:last, :, None]
        flat: Array = np.ascontiguousarray(values.reshape(last - first, -1)[:, : self.columns]).reshape(-1)
        return flat[start - first * self.columns : stop - first * self.columns]

    def release(self) -> None:
        self.packed.release()


def unpack_bits(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.float32]:
    """The numbers in some bytes, the first in the lowest bits.  # (E,) -> (E * 8 / bits,)"""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed.reshape(-1, 1) >> shifts) & np.uint8((1 << bits) - 1)).astype(np.float32).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bnb4Array:
    """Weights (N, K) that are zero and finite exactly where those of MatMulBnb4 are.

    Attributes:
        packed: the bytes of `B`.
        rows, columns: N and K.
        zeros: numbers of the table's entries that are zero.
        block: weights of a block.
        scales: one a block.
    """

    packed: FlatArray
    rows: int
    columns: int
    zeros: tuple[int, ...]
    block: int
    scales: npt.NDArray[np.float32]

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def read(self, start: int, stop: int) -> Array:
        first = start // 2
        packed = self.packed.read(first, -(-stop // 2))
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[start - 2 * first : stop - 2 * first]
        table = np.array([0.0 if code in self.zeros else 1.0 for code in range(16)], np.float32)
        with np.errstate(all="ignore"):
            values: Array = table[codes] * self.scales[np.arange(start, stop) // self.block]
        return values

    def release(self) -> None:
        self.packed.release()


def unpack_weights(
    node: NodeProto, form: str, value: Constant, scales: Array, zeros: Array | None
) -> NBitsArray | Bnb4Array | None:
    """The weights of a node that packs them; None if the sizes contradict each other.

    Args:
        node: a MatMulNBits or MatMulBnb4.
        form: "nbits" or "bnb4".
        value: `B`.
        scales: as stored.
        zeros: zero points as stored; None for half of the range.
    """
    columns, block = get_integer(node, "K", 0), get_integer(node, "block_size", 0)
    if value.dtype != "u8":
        return None
    if form == "nbits":
        return make_nbits_array(value.data, value.shape, columns, get_integer(node, "bits", 4), block, scales, zeros)
    rows = get_integer(node, "N", 0)
    size = rows * columns
    if size < 1 or block < 1 or value.data.size != -(-size // 2) or scales.size != -(-size // block):
        return None
    entries = (7,) if get_integer(node, "quant_type", 1) == 1 else (0, 8)
    flat = scales.astype(np.float32).reshape(-1)
    return Bnb4Array(packed=value.data, rows=rows, columns=columns, zeros=entries, block=block, scales=flat)


def make_nbits_array(
    packed: FlatArray, shape: tuple[int, ...], columns: int, bits: int, block: int, scales: Array, zeros: Array | None
) -> NBitsArray | None:
    """The weights of a MatMulNBits; None if the sizes contradict each other.

    Args:
        packed: the bytes of `B`.
        shape: of `B`.
        columns: K.
        bits: of each weight.
        block: weights of a block.
        scales: as stored.
        zeros: as stored; None for half of the range.
    """
    blocks = -(-columns // block) if block > 0 else 0
    rows = shape[0] if shape else 0
    if not blocks or not rows or columns < 1 or packed.size * 8 != rows * blocks * block * bits or scales.size != rows * blocks:
        return None
    if zeros is None:
        points = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        width = -(-blocks * bits // 8)
        if zeros.size != rows * width:
            return None
        points = unpack_bits(zeros.reshape(rows, width).reshape(-1), bits).reshape(rows, -1)[:, :blocks]
    elif zeros.size == rows * blocks:
        points = zeros.astype(np.float32).reshape(rows, blocks)
    else:
        return None
    return NBitsArray(
        packed=packed,
        rows=rows,
        columns=columns,
        bits=bits,
        block=block,
        scales=scales.astype(np.float32).reshape(rows, blocks),
        zeros=points,
    )
