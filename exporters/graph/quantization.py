"""Weight-only quantisation: symmetric integers, or 8-bit floats, and one scale per column or per block of rows.

    w[k, n]  ~  q[k, n] * scale[k // block, n]        q in -8..7 (int4), -127..127 (int8), or E4M3 up to 448 (fp8)

Zero is stored as 0 and comes back as 0: a pattern of zeros survives. Runtimes see DequantizeLinear and MatMul, both standard;
onnxruntime fuses them to one kernel. The scale is the one of a few candidates that loses least, measured in squared error
over the block, not the one that its largest value asks for: an outlier may be clipped for the good of the others.

Shapes: `K` inputs, `N` outputs, `G = K / block` blocks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import ConfigError, check_known
from maskpro_deploy.exporters.graph.weight_kinds import WEIGHT_KINDS, DType, Floats, WeightKind

_SHORTEST_BLOCK = 16
_ROWS = 64  # columns whose candidates are compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How weights are stored: one of `WEIGHT_KINDS`, rows that share a scale (0: all), and kind of the output head."""

    kind: str
    block: int
    head: str | None = None

    @classmethod
    def make(cls, name: str, block: int | None, head: str | None = None) -> Quantization:
        """From flags (ConfigError: an unknown kind or a block that runtimes do not take)."""
        check_known("--quantize", name, WEIGHT_KINDS)
        kind = WEIGHT_KINDS[name]
        block = kind.default_block if block is None else block
        if block and (block < _SHORTEST_BLOCK or block & (block - 1)):
            raise ConfigError(f"--block-size {block}: give 0 (one scale a column) or a power of two, at least {_SHORTEST_BLOCK}.")
        if not kind.blocks and (block or head is not None):
            raise ConfigError(
                f"--quantize {name} has one scale a column, in the output head too: no --block-size or --quantize-head."
            )
        if head is not None and head not in kind.heads:
            raise ConfigError(f"--quantize-head {head}: with --quantize {name} give {' or '.join(kind.heads)}.")
        return cls(kind=name, block=block, head=head)

    @property
    def stored(self) -> WeightKind:
        """What is known of the kind."""
        return WEIGHT_KINDS[self.kind]

    def describe(self) -> str:
        """For people."""
        head = f", {self.head} head" if self.head not in (None, self.stored.heads[0]) else ""
        return f"{self.kind} block {self.block}{head}" if self.block else f"{self.kind} per column{head}"

    def of_head(self) -> Quantization:
        """How the output head is stored; one of 8 bits has one scale a column."""
        kind = WEIGHT_KINDS[self.head or self.stored.heads[0]]
        return dataclasses.replace(self, kind=kind.name, block=self.block if kind.bits < 8 else 0)

    def block_for(self, k: int) -> int:
        """The block of a weight of `k` rows: 0 where `k` is no multiple of it."""
        return self.block if self.block and k % self.block == 0 else 0

    def scales(self, columns: Floats, dtype: DType, importance: Floats | None = None) -> Floats:
        """The best scales of some columns, rounded to `dtype`.  # (n, K) -> (G, n), or (n,) without blocks

        The columns lie one after the other in memory (the checkpoint's own layout). `importance`, (K,), is how much the squared
        error in each row counts; all the same by default.
        """
        n, k = columns.shape
        block = self.block_for(k)
        grouped = columns.reshape(n, -1, block or k)  # (n, G, block)
        rows = None if importance is None else importance.reshape(-1, block or k)  # (G, block)
        best = np.empty(grouped.shape[:2], np.float32)
        for start in range(0, n, _ROWS):
            best[start : start + _ROWS] = self._choose_scales(grouped[start : start + _ROWS], dtype, rows)
        return np.ascontiguousarray(best.T) if block else best[:, 0]

    def _choose_scales(self, groups: Floats, dtype: DType, importance: Floats | None) -> Floats:
        """(n, G, block), (G, block) -> (n, G)"""
        high, low = groups.max(axis=-1), groups.min(axis=-1)
        plain = np.maximum(high, -low) / np.float32(self.stored.largest)
        end = np.maximum(high / np.float32(self.stored.largest), low / np.float32(self.stored.smallest))  # no more than `plain`
        best, least = np.ones(end.shape, np.float32), np.full(end.shape, np.inf, np.float32)
        for wanted in (plain, *(end * np.float32(share) for share in self.stored.shares)):
            with np.errstate(over="ignore"):
                scale = np.asarray(wanted, dtype).astype(np.float32)
            scale[scale == 0] = 1  # all zeros, or too small for the type
            steps = np.clip(self._round_to_grid(groups / scale[..., None]), self.stored.smallest, self.stored.largest)
            steps *= scale[..., None]
            steps -= groups
            if importance is None:
                error = np.einsum("ngb,ngb->ng", steps, steps)
            else:
                error = np.einsum("ngb,gb->ng", np.square(steps, out=steps), importance)
            better = error < least
            best[better], least[better] = scale[better], error[better]
        return best

    def integers(self, rows: Floats, scales: Floats, first: int, block: int) -> npt.NDArray[np.int8]:
        """Rows `first` on of a [K, N] weight as integers or bits of floats; `block` is `block_for(K)`.  # (k, N) -> (k, N)"""
        scale = scales[np.arange(first, first + len(rows)) // block] if block else scales
        steps = np.clip(self._round_to_grid(rows / scale), self.stored.smallest, self.stored.largest)
        if self.stored.floating:
            return (steps + 0.0).astype(self.stored.dtype).view(np.int8)  # + 0.0: no -0.0
        result: npt.NDArray[np.int8] = steps.astype(np.int8)
        return result

    def _round_to_grid(self, values: Floats) -> Floats:
        """The nearest values that the type has."""
        if not self.stored.floating:
            return np.rint(values)
        # what lies beyond the range is clipped first: E4M3 has no infinity
        within = np.clip(values, self.stored.smallest, self.stored.largest)
        nearest: Floats = within.astype(self.stored.dtype).astype(np.float32)
        return nearest


def pack_nibbles(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two 4-bit integers a byte, the first in the low half.  # (n,) -> (ceil(n / 2),)"""
    flat: npt.NDArray[np.uint8] = np.bitwise_and(values.reshape(-1).view(np.uint8), 0xF, dtype=np.uint8)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.bitwise_or(flat[0::2], np.left_shift(flat[1::2], 4, dtype=np.uint8), dtype=np.uint8)
