"""What a step cannot beat: the bytes it must read, over memory bandwidth measured in the same run.

A decode step of a small batch reads every weight once and does little arithmetic with each, so weights over bandwidth is its
floor; the key/value cache adds to it with the context. Prefill reuses each weight for many tokens: its floor is arithmetic, and
the bytes say little.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskpro_deploy.bench.environment import affinity, last_level_cache_bytes
from maskpro_deploy.errors import FormatError

_MIN_BUFFER_BYTES = 64 << 20
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Memory bandwidth of this machine.

    Attributes:
        bytes_per_s: the best of `read_bytes_per_s` and `copy_bytes_per_s`, or None where there was no memory to measure it.
        method: how it was measured, in words.
    """

    bytes_per_s: float | None
    read_bytes_per_s: float | None
    copy_bytes_per_s: float | None
    threads: int
    buffer_bytes: int
    method: str


def measure_bandwidth(threads: int | None = None, buffer_bytes: int | None = None) -> Bandwidth:
    """Measure read and copy bandwidth over buffers far larger than the caches (about a second).

    Args:
        threads: cores that work at once; all by default.
        buffer_bytes: size of each of two buffers; by default four times the last-level cache, 64 MiB at least.
    """
    count = threads or len(affinity() or ()) or os.cpu_count() or 1
    size = buffer_bytes or max(_MIN_BUFFER_BYTES, 4 * (last_level_cache_bytes() or 0))
    method = (
        f"numpy on {count} thread{'s' if count > 1 else ''} over buffers of {size >> 20} MiB, best of {_REPEATS}: "
        "maximum of float32 (read), copy (bytes read plus bytes written)"
    )
    try:
        read, copy = _best_rates(count, size)
    except MemoryError:
        return Bandwidth(
            bytes_per_s=None,
            read_bytes_per_s=None,
            copy_bytes_per_s=None,
            threads=count,
            buffer_bytes=size,
            method="not measured: not enough memory for the buffers",
        )
    return Bandwidth(
        bytes_per_s=max(read, copy),
        read_bytes_per_s=read,
        copy_bytes_per_s=copy,
        threads=count,
        buffer_bytes=size,
        method=method,
    )


def _best_rates(threads: int, size: int) -> tuple[float, float]:
    source = np.ones(size // 4, dtype=np.float32)
    target = np.zeros_like(source)  # written below before it is timed: untouched pages would be mapped while timing
    sources, targets = np.array_split(source, threads), np.array_split(target, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.copyto, targets, sources))
        reads, copies = [], []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            list(pool.map(np.max, sources))
            middle = time.perf_counter()
            list(pool.map(np.copyto, targets, sources))
            reads.append(middle - start)
            copies.append(time.perf_counter() - middle)
    return source.nbytes / min(reads), 2 * source.nbytes / min(copies)


def weight_bytes(model: Path) -> int:
    """Bytes of the weights that one step of an ONNX model reads whole: all initializers except those that are only looked up.

    Args:
        model: the `.onnx` file; external data is not read.

    Raises:
        FormatError: it is no ONNX file.
    """
    import onnx

    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except Exception as e:  # the protobuf library raises its own kinds
        raise FormatError(f"{model} is no ONNX file: {e}") from e
    read_whole = {name for node in graph.node for i, name in enumerate(node.input) if not (node.op_type == "Gather" and i == 0)}
    read_whole |= {output.name for output in graph.output}
    return sum(_tensor_bytes(t) for t in graph.initializer if t.name in read_whole)


def _tensor_bytes(tensor: object) -> int:
    """Stored size of an initializer, from its shape and type (4-bit types are packed two to a byte)."""
    from onnx import TensorProto, helper

    assert isinstance(tensor, TensorProto)
    count = 1
    for dim in tensor.dims:
        count *= dim
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def floor_s(weights: int | None, kv: int | None, bandwidth: Bandwidth) -> float | None:
    """Seconds that reading `weights` and `kv` bytes takes at the measured bandwidth, or None where something is not known."""
    if weights is None or bandwidth.bytes_per_s is None:
        return None
    return (weights + (kv or 0)) / bandwidth.bytes_per_s
