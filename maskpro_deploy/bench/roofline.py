"""What a step cannot beat: bytes over memory bandwidth, and operations over the speed of a large matrix product.

Both ceilings are measured in the same run, and the longer of the two times is the floor (Williams, Waterman and Patterson,
Roofline, CACM 52(4), 2009). A decode step of a small batch reads every weight once and does little arithmetic with each: its
floor is memory. Prefill reuses each weight for many tokens: its floor is arithmetic.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from maskpro_deploy.bench.environment import affinity, last_level_cache_bytes

_MIN_BUFFER_BYTES = 64 << 20
_REPEATS = 5
GEMM_SIZE = 1024
MEMORY, ARITHMETIC = "memory", "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Memory bandwidth of this machine."""

    # the best of `read_bytes_per_s` and `copy_bytes_per_s`, or None where there was no memory to measure it
    bytes_per_s: float | None
    read_bytes_per_s: float | None
    copy_bytes_per_s: float | None
    threads: int
    buffer_bytes: int
    method: str  # how it was measured, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How fast this machine multiplies matrices."""

    operations_per_s: float  # multiplications and additions a second, fp32
    method: str  # how it was measured, in words


def measure_bandwidth(threads: int | None = None, buffer_bytes: int | None = None) -> Bandwidth:
    """Measure read and copy bandwidth over two buffers far larger than the caches (about a second).

    All cores work at once by default, and a buffer is four times as large as the last-level cache, 64 MiB at least.
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
        bytes_per_s=max(read, copy), read_bytes_per_s=read, copy_bytes_per_s=copy, threads=count, buffer_bytes=size, method=method
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


def measure_arithmetic(
    threads: int | None = None, multiply: Callable[[], object] | None = None, *, size: int = GEMM_SIZE, method: str = ""
) -> Arithmetic:
    """Measure how many operations a second a large fp32 matrix product reaches (a fraction of a second).

    `multiply` multiplies two square matrices of `size`, and `method` says what it is; by default numpy does, on `threads` cores.
    """
    if multiply is None:
        a, b = (np.random.default_rng(i).standard_normal((size, size), dtype=np.float32) for i in range(2))
        out = np.empty_like(a)
        multiply, method = lambda: np.matmul(a, b, out=out), "numpy"
    multiply()
    best = math.inf
    for _ in range(_REPEATS):
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    cores = f" on {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return Arithmetic(
        operations_per_s=2 * size**3 / best, method=f"{method}{cores}, fp32 matrices of {size} x {size}, best of {_REPEATS}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a unit of work has to do at least."""

    bytes: float | None  # to read; None if not known
    # multiplications and additions; None if not known, or of a kind that the measured ceiling is not for
    operations: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least time of a unit of work, and what sets it."""

    seconds: float  # the larger of both
    bound: str  # `MEMORY` or `ARITHMETIC`


def compute_floor(loads: Sequence[Load], bandwidth: Bandwidth, arithmetic: Arithmetic | None) -> Floor | None:
    """The least time of parts that run one after the other, or None where something is not known.

    Each part takes the longer of reading its bytes and computing its operations; the bound is the one that sets most of the time.
    """
    seconds = {MEMORY: 0.0, ARITHMETIC: 0.0}
    for load in loads:
        if load.bytes is None or bandwidth.bytes_per_s is None:
            return None
        memory_s, compute_s = load.bytes / bandwidth.bytes_per_s, 0.0
        if load.operations is not None and arithmetic is not None:
            compute_s = load.operations / arithmetic.operations_per_s
        seconds[MEMORY if memory_s >= compute_s else ARITHMETIC] += max(memory_s, compute_s)
    bound = max(seconds, key=lambda name: seconds[name])
    return Floor(seconds=sum(seconds.values()), bound=bound)
