"""Settings of the process for the time of learning: fast elementwise work on a CPU, the same bits every time on a GPU.

glibc gives blocks of some megabytes back to the kernel the moment they are freed; the next operation then pays for fresh zeroed
pages. A learning step allocates thousands of such blocks, and measured on its sampling alone this costs a factor of 3 to 4. So
freed blocks stay with the process, also afterwards. Denormal numbers (tiny probabilities times tiny gradients) are flushed to
zero: they carry no information here and are slow on many CPUs. That changes arithmetic, so it ends with the learning.

On a GPU some operations (the backward pass of attention above all) add numbers in whatever order their threads arrive. A resumed
run would then not come to the bits of an uninterrupted one, so torch is asked for its deterministic algorithms; in the backward
pass it has to refuse all others (`deterministic_or_error`): when it only warns, attention keeps to its own order.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1


@contextmanager
def tuned_process(device: str = "cpu") -> Iterator[None]:
    """All settings for as long as the `with` block lasts; freed blocks stay with the process where there is glibc."""
    _keep_freed_blocks()
    torch.set_flush_denormal(True)
    try:
        with nullcontext() if device == "cpu" else _same_bits():
            yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _same_bits() -> Iterator[None]:
    """Deterministic algorithms on a GPU, where there are any."""
    import torch.utils.deterministic

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first product
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    attention = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention stays as it is when nothing but warnings is asked for
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every tensor made here is written before it is read
    try:
        with _deterministic(warn_only=True):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(attention)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def deterministic_or_error() -> Iterator[None]:
    """Torch's deterministic algorithms, and an error instead of a warning where there is none.

    Attention's backward pass takes its deterministic form in this mode alone. It is not the mode of a whole run: what runs
    outside of the backward pass needs no order, and a warning is enough for what some model might bring.
    """
    with _deterministic(warn_only=False):
        yield


@contextmanager
def _deterministic(*, warn_only: bool) -> Iterator[None]:
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _keep_freed_blocks() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.info("no mallopt here: elementwise work will be slower")
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
