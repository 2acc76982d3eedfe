"""The bitmask formats of compressed-tensors: how a weight is stored, and the dense weight that it stands for.

A weight (R, C) of `sparse-24-bitmask` or `sparse-bitmask` is stored as

    <layer>.bitmask       one bit a weight, rows padded to whole bytes, the first weight in the lowest bit   # (R, C / 8) uint8
    <layer>.compressed    the kept values in row-major order: (R, C / 2), or (values,) in `sparse-bitmask`
    <layer>.shape         R and C
    <layer>.row_offsets   where the values of each row begin: `sparse-bitmask` alone has it, and the bitmask says the same  # (R,)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

VALUES, BITS, SHAPE, OFFSETS = ".compressed", ".bitmask", ".shape", ".row_offsets"


def list_prefixes(names: Collection[str]) -> set[str]:
    """The layers that are stored in this form, among the names of all tensors."""
    return {n.removesuffix(VALUES) for n in names if n.endswith(VALUES) and n.removesuffix(VALUES) + BITS in names}


def list_parts(prefix: str) -> tuple[str, ...]:
    """Names of the tensors that one weight may be stored in."""
    return (prefix + VALUES, prefix + BITS, prefix + SHAPE, prefix + OFFSETS)


def name_weight(prefix: str) -> str:
    """The name of the weight when it is not compressed."""
    return prefix if prefix.endswith(".weight") else f"{prefix}.weight"


def expand(values: npt.NDArray[Any], bits: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The dense weight.  # (values,), (R, C / 8), (R, C) -> (R, C)

    Raises:
        ValueError: the parts do not fit together; in words that go behind "cannot be unpacked: ".
    """
    rows, columns = shape
    if bits.dtype != np.uint8 or bits.shape != (rows, -(-columns // 8)):
        raise ValueError(f"its bitmask has shape {list(bits.shape)} for a weight of {list(shape)}")
    keep = np.unpackbits(bits, axis=1, count=columns, bitorder="little").view(np.bool_)
    if (kept := int(np.count_nonzero(keep))) != values.size:
        raise ValueError(f"its bitmask keeps {kept} weights, {values.size} values are stored")
    dense = np.zeros(shape, values.dtype)
    dense[keep] = values.reshape(-1)
    return dense


class Expanded:
    """One weight behind a bitmask in the place of a slice of a safetensors file: unpacked as a whole when it is first read."""

    def __init__(self, shape: tuple[int, int], dtype: str, read: Callable[[], npt.NDArray[Any]]) -> None:
        self._shape, self._dtype, self._read = shape, dtype, read

    def get_shape(self) -> list[int]:
        """Its dense shape."""
        return list(self._shape)

    def get_dtype(self) -> str:
        """The type of its values, as safetensors names it."""
        return self._dtype

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        return self._dense[key]  # type: ignore[no-any-return]

    @cached_property
    def _dense(self) -> npt.NDArray[Any]:
        return self._read()
