"""CUDA's libraries out of NVIDIA's Python packages, for onnxruntime.

onnxruntime's CUDA provider is linked with cuBLAS, cuRAND and the CUDA runtime, and the system's linker looks for them on the
system's own paths only. Where they came with pip (torch brings them, and so does `onnxruntime-gpu[cuda,cudnn]`), a provider
finds them only if the process has loaded them before.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

log = logging.getLogger(__name__)

_NEED_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def load_for(providers: Sequence[Any]) -> None:
    """Load what `providers` (names, or pairs of a name and options) need of CUDA, before a session is made with them.

    A library that cannot be loaded is not an error here: the system may have it elsewhere. If not, the session starts without the
    provider, which is checked where the session is made.
    """
    names = {p if isinstance(p, str) else p[0] for p in providers}
    load = getattr(import_module("onnxruntime"), "preload_dlls", None)
    if load is None or names.isdisjoint(_NEED_CUDA):
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses, and standard output belongs to the results
        load()
    for line in said.getvalue().splitlines():
        log.debug("onnxruntime: %s", line)
