"""The data file of a graph: every weight once, aligned, written in tiles.

`model.onnx.data` holds the raw little-endian values of each initializer, one after another. Tensors of 1 MB and more begin at
multiples of 64 KiB, so that a runtime can map them; small ones are packed at 64 bytes. A (N, K) tensor of the checkpoint is
transposed to [K, N] in tiles read from the mapped file: memory is bounded by one tile, not by the model or a tensor.
Equal checkpoints give equal bytes. -0.0 becomes +0.0: some sparse kernels take -0.0 for a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.graph import DTYPES, Weight
from maskpro_deploy.progress import SILENT, Progress

_LARGE_BYTES = 1 << 20
_LARGE_ALIGNMENT = 64 << 10
_SMALL_ALIGNMENT = 64
_TILE_BYTES = 8 << 20
_TILE_ROWS_MULTIPLE = 16  # columns of the source are read in runs of at least this many elements
_SOURCE_DTYPES = ("F64", "F32", "F16", "BF16")
_BITS: dict[int, np.dtype[np.unsignedinteger[Any]]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where a weight lies in the data file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A written data file: initializer name -> where it lies, and the file's size and hash."""

    path: Path
    regions: dict[str, Region]
    bytes: int
    sha256: str

    def tensors(self, dtype: str) -> list[onnx.TensorProto]:
        """Initializers that point into the file."""
        protos = []
        for name, region in self.regions.items():
            proto = onnx.TensorProto(name=name, data_type=DTYPES[dtype][0], dims=region.shape)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", self.path.name), ("offset", region.offset), ("length", region.bytes)):
                proto.external_data.add(key=key, value=str(value))
            protos.append(proto)
        return protos


def bits(values: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The same memory as unsigned integers, so that -0.0 differs from +0.0."""
    return values.view(_BITS[values.dtype.itemsize])


def check_weights(weights: Iterable[Weight], checkpoint: Checkpoint, ignored: Iterable[str]) -> None:
    """Compare what the graph needs with what the checkpoint has, before anything is written.

    Args:
        weights: the graph's weights.
        checkpoint: where they come from.
        ignored: tensors of the checkpoint that may stay unused.

    Raises:
        FormatError: a tensor is missing, has another shape or a type that is no plain float.
        InputError: the checkpoint has a tensor that the graph would leave out.
    """
    used = set()
    for weight in (w for w in weights if w.source):
        used.add(weight.source)
        expected = weight.shape[::-1] if weight.transposed else weight.shape
        if (found := checkpoint.shapes.get(weight.source)) is None:
            raise FormatError(f"{checkpoint.folder} has no tensor {weight.source!r}, which its config.json calls for.")
        if found != expected:
            raise FormatError(
                f"{checkpoint.folder}: {weight.source} has shape {found}, its config.json calls for {expected}.\n"
                f"Weights and config.json belong to different models."
            )
        if (kind := checkpoint.slices(weight.source).get_dtype()) not in _SOURCE_DTYPES:
            raise FormatError(
                f"{checkpoint.folder}: {weight.source} is of type {kind}; only {', '.join(_SOURCE_DTYPES)} are read."
            )
    if unused := sorted(set(checkpoint.names) - used - set(ignored)):
        raise InputError(
            f"{checkpoint.folder} has {len(unused)} tensors that the graph of this architecture does not use, "
            f"such as {unused[0]!r}.\nIt is a variant that the export does not know."
        )


def write_weights(weights: Iterable[Weight], checkpoint: Checkpoint, path: Path, dtype: str, progress: Progress = SILENT) -> Blob:
    """Write the data file.

    Args:
        weights: in the order in which they will lie.
        checkpoint: where they come from.
        path: the file to make.
        dtype: "fp32", "fp16" or "bf16".
        progress: told the bytes written.

    Raises:
        FormatError: a weight holds NaN, infinity or, after the cast, values beyond the range of `dtype`.
    """
    target = DTYPES[dtype][1]
    regions = _layout(weights := list(weights), target)
    total = max((r.offset + r.bytes for r in regions.values()), default=0)
    digest, position = hashlib.sha256(), 0
    with path.open("wb") as file:
        for weight in weights:
            gap = regions[weight.name].offset - position
            position += _put(file, digest, b"\0" * gap)
            for tile in _tiles(weight, checkpoint, target):
                position += _put(file, digest, tile.data if dtype != "bf16" else bits(tile).data)
                progress.update(position, total)
    return Blob(path=path, regions=regions, bytes=position, sha256=digest.hexdigest())


def _put(file: BinaryIO, digest: Any, data: bytes | memoryview) -> int:
    file.write(data)
    digest.update(data)
    return len(data) if isinstance(data, bytes) else data.nbytes


def _layout(weights: Iterable[Weight], dtype: np.dtype[np.generic]) -> dict[str, Region]:
    regions, end = {}, 0
    for weight in weights:
        region = Region(offset=0, shape=weight.shape, dtype=dtype)
        alignment = _LARGE_ALIGNMENT if region.bytes >= _LARGE_BYTES else _SMALL_ALIGNMENT
        region = Region(offset=-(-end // alignment) * alignment, shape=weight.shape, dtype=dtype)
        regions[weight.name], end = region, region.offset + region.bytes
    return regions


def _tiles(weight: Weight, checkpoint: Checkpoint, dtype: np.dtype[np.generic]) -> Iterator[npt.NDArray[Any]]:
    """The weight in its final form, some rows of the graph's shape at a time."""
    for start, stop in row_tiles(weight.shape, dtype.itemsize):
        if weight.values is not None:
            tile: npt.NDArray[Any] = weight.values[start:stop]
        elif weight.transposed:
            tile = checkpoint.slices(weight.source)[:, start:stop].T
        else:
            tile = checkpoint.slices(weight.source)[start:stop]
        with np.errstate(over="ignore", invalid="ignore"):
            # a copy with rows along memory, in the target's byte order
            tile = np.array(tile, dtype=dtype, order="C")
        if not np.isfinite(tile).all():
            raise FormatError(
                f"{checkpoint.folder}: {weight.name} has values that {dtype.name} cannot hold (too large, NaN or infinite).\n"
                f"If the checkpoint itself is sound, export it with --dtype fp32."
            )
        plain = bits(tile)
        plain[plain == 1 << (8 * dtype.itemsize - 1)] = 0  # -0.0
        yield tile


def row_tiles(shape: tuple[int, ...], itemsize: int, multiple: int = _TILE_ROWS_MULTIPLE) -> Iterator[tuple[int, int]]:
    """Cut the first axis into runs of about `_TILE_BYTES`, each but the last a multiple of `multiple` rows."""
    row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    step = max(1, _TILE_BYTES // row_bytes // multiple) * multiple
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
