"""The data file of a graph: every weight once, aligned, written in tiles.

`model.onnx.data` holds the raw little-endian values of each initializer, one after another. Tensors of 1 MB and more begin at
multiples of 64 KiB, so that a runtime can map them; small ones are packed at 64 bytes. A (N, K) tensor of the checkpoint is
transposed to [K, N] in tiles read from the mapped file: memory is bounded by one tile, not by the model or a tensor. A quantised
weight is read twice, first for its scales, which lie before it. Equal checkpoints give equal bytes. -0.0 becomes +0.0: some
sparse kernels take -0.0 for a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.graph.builder import DTYPES, Rows, Weight
from maskpro_deploy.exporters.graph.quantization import Quantization, pack_nibbles
from maskpro_deploy.exporters.graph.weight_kinds import WEIGHT_KINDS, DType, Floats
from maskpro_deploy.exporters.graph.weight_tiles import TILE_BYTES, Underflow, read_columns, read_tiles, split_rows, view_bits
from maskpro_deploy.system.progress import SILENT, Progress

_LARGE_BYTES = 1 << 20
_LARGE_ALIGNMENT = 64 << 10
_SMALL_ALIGNMENT = 64
_SOURCE_DTYPES = ("F64", "F32", "F16", "BF16")
INT4 = np.dtype(ml_dtypes.int4)
# numpy dtype of what is stored -> ONNX element type
ELEMENT_TYPES = {dtype: element for element, dtype in DTYPES.values()} | {
    kind.dtype: helper.np_dtype_to_tensor_dtype(kind.dtype) for kind in WEIGHT_KINDS.values()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where a weight lies in the data file; 4-bit integers lie there two a byte."""

    offset: int
    shape: tuple[int, ...]
    dtype: DType

    @property
    def bytes(self) -> int:
        values = int(np.prod(self.shape, dtype=np.int64))
        return -(-values // 2) if self.dtype == INT4 else values * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A weight quantised beforehand, by a method that needs more than the weight: integers [K, N], and scales."""

    integers: Rows
    scales: Floats


class _SideBySide:
    """Matrices of equal height as one, read in runs of rows."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self.shape: tuple[int, ...] = (parts[0].shape[0], sum(part.shape[1] for part in parts))

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        return np.concatenate([part[rows] for part in self._parts], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A written data file; `regions` tells where each initializer lies, `underflow` what the cast of the weights lost."""

    path: Path
    regions: dict[str, Region]
    bytes: int
    sha256: str
    underflow: Underflow

    def tensors(self) -> list[onnx.TensorProto]:
        """Initializers that point into the file."""
        protos = []
        for name, region in self.regions.items():
            proto = onnx.TensorProto(name=name, data_type=ELEMENT_TYPES[region.dtype], dims=region.shape)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", self.path.name), ("offset", region.offset), ("length", region.bytes)):
                proto.external_data.add(key=key, value=str(value))
            protos.append(proto)
        return protos


def check_weights(weights: Iterable[Weight], checkpoint: Checkpoint, ignored: Iterable[str]) -> None:
    """Compare what the graph needs with what the checkpoint has, but for tensors `ignored`, before anything is written.

    Raises:
        FormatError: a tensor is missing, has another shape or a type that is not a plain float.
        InputError: the checkpoint has a tensor that the graph would leave out.
    """
    used = set()
    for weight in (piece for w in weights for piece in w.pieces if piece.source):
        used.add(weight.source)
        if weight.values is not None:  # a front end has looked at it
            continue
        expected = weight.source_shape
        if (shape := checkpoint.shapes.get(weight.source)) is None:
            raise FormatError(f"{checkpoint.folder} has no tensor {weight.source!r}, which its config.json calls for.")
        if shape != expected and not (weight.longer and shape[0] > expected[0] and shape[1:] == expected[1:]):
            raise FormatError(
                f"{checkpoint.folder}: {weight.source} has shape {shape}, its config.json calls for {expected}.\n"
                f"Weights and config.json belong to different models."
            )
        if (kind := checkpoint.slices(weight.source).get_dtype()) not in _SOURCE_DTYPES:
            raise FormatError(
                f"{checkpoint.folder}: {weight.source} is of type {kind}; only {', '.join(_SOURCE_DTYPES)} are read."
            )
    check_unused(checkpoint, sorted(set(checkpoint.names) - used - set(ignored)), "the graph")


def check_unused(checkpoint: Checkpoint, unused: Sequence[str], graph: str) -> None:
    """Refuse a checkpoint with tensors that a graph would leave out (InputError: naming one)."""
    if unused:
        raise InputError(
            f"{checkpoint.folder} has {len(unused)} tensors that {graph} of this architecture does not use, "
            f"such as {unused[0]!r}.\nIt is a variant that the export does not know."
        )


def write_weights(
    weights: Iterable[Weight],
    checkpoint: Checkpoint,
    path: Path,
    dtype: str,
    progress: Progress = SILENT,
    quantised: Mapping[str, Quantised] | None = None,
) -> Blob:
    """Write the data file, with the weights in their order.

    `dtype` is the float type of what is not quantised, and of scales. Weights in `quantised` were quantised beforehand; others
    with a `quantization` are rounded to nearest here.

    Raises:
        FormatError: a weight holds NaN, infinity or, after the cast, values beyond the range of `dtype`.
    """
    target = DTYPES[dtype][1]
    regions = _lay_out(weights := list(weights), target)
    total = max((r.offset + r.bytes for r in regions.values()), default=0)
    digest, position, lost = hashlib.sha256(), 0, Underflow(dtype)
    with path.open("wb") as file:
        for weight in weights:
            for name, data in _encode_weight(weight, checkpoint, target, _find_quantised(weight, quantised or {}), lost):
                if name:  # the first piece of an initializer
                    position += _write(file, digest, b"\0" * (regions[name].offset - position))
                position += _write(file, digest, data)
                progress.update(position, total)
    return Blob(path=path, regions=regions, bytes=position, sha256=digest.hexdigest(), underflow=lost)


def _find_quantised(weight: Weight, quantised: Mapping[str, Quantised]) -> Quantised | None:
    """A weight as it was quantised beforehand, if it was: itself, or all of its parts."""
    if not all(piece.name in quantised for piece in weight.pieces):
        return None
    parts = [quantised[piece.name] for piece in weight.pieces]
    scales = np.concatenate([part.scales for part in parts], axis=-1)
    return Quantised(integers=_SideBySide([part.integers for part in parts]), scales=scales)


def _write(file: BinaryIO, digest: Any, data: bytes | memoryview) -> int:
    file.write(data)
    digest.update(data)
    return len(data) if isinstance(data, bytes) else data.nbytes


def _lay_out(weights: Iterable[Weight], dtype: DType) -> dict[str, Region]:
    regions: dict[str, Region] = {}
    end = 0

    def place(name: str, shape: tuple[int, ...], stored: DType) -> None:
        nonlocal end
        size = Region(offset=0, shape=shape, dtype=stored).bytes
        alignment = _LARGE_ALIGNMENT if size >= _LARGE_BYTES else _SMALL_ALIGNMENT
        regions[name] = Region(offset=-(-end // alignment) * alignment, shape=shape, dtype=stored)
        end = regions[name].offset + size

    for weight in weights:
        if weight.quantization is None:
            place(weight.name, weight.shape, dtype)
        else:
            k, n = weight.shape
            block = weight.quantization.block_for(k)
            place(weight.scale_name, (k // block, n) if block else (n,), dtype)
            place(weight.name, weight.shape, weight.quantization.stored.dtype)
    return regions


def _encode_weight(
    weight: Weight, checkpoint: Checkpoint, dtype: DType, quantised: Quantised | None, lost: Underflow
) -> Iterator[tuple[str, memoryview]]:
    """The bytes of a weight and its scales, in file order; each initializer's name comes with its first piece."""
    if weight.quantization is None:
        name = weight.name
        for tile in read_tiles(weight, checkpoint, dtype, lost):
            yield name, view_bits(tile).data
            name = ""
        return
    scales = quantised.scales if quantised is not None else _compute_scales(weight, weight.quantization, checkpoint, dtype)
    stored = np.ascontiguousarray(scales, dtype)
    yield weight.scale_name, view_bits(stored).data
    name = weight.name
    for integers in _integer_tiles(weight, weight.quantization, checkpoint, stored.astype(np.float32), quantised):
        packed = pack_nibbles(integers) if weight.quantization.stored.bits < 8 else integers.view(np.uint8)
        yield name, np.ascontiguousarray(packed).data
        name = ""


def _compute_scales(weight: Weight, quantization: Quantization, checkpoint: Checkpoint, dtype: DType) -> Floats:
    """Scales of a weight, read some whole columns at a time."""
    if weight.parts:
        return np.concatenate([_compute_scales(p, quantization, checkpoint, dtype) for p in weight.parts], axis=-1)
    k, n = weight.shape
    step = max(1, TILE_BYTES // (4 * k))
    scales = [quantization.scales(read_columns(weight, checkpoint, at, min(at + step, n)), dtype) for at in range(0, n, step)]
    return np.concatenate(scales, axis=-1)


def _integer_tiles(
    weight: Weight, quantization: Quantization, checkpoint: Checkpoint, scales: Floats, quantised: Quantised | None
) -> Iterator[npt.NDArray[np.int8]]:
    """The integers, some rows at a time."""
    if quantised is not None:
        # an even number of rows ends at a whole byte
        for start, stop in split_rows(weight.shape, 1):
            yield np.ascontiguousarray(quantised.integers[start:stop])
        return
    row, block = 0, quantization.block_for(weight.shape[0])
    for tile in read_tiles(weight, checkpoint, np.dtype(np.float32)):
        yield quantization.integers(tile, scales, row, block)
        row += len(tile)
