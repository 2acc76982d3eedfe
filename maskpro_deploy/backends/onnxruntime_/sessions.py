"""Opening an onnxruntime session: the one place for options, providers, threads and refusals.

A provider that was asked for and is not in use is an error: a silent fallback to the CPU would make every figure meaningless.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.backends.providers import AUTO, CPU, CPU_PROVIDER, CUDA, CUDA_PROVIDER, PROVIDERS, TENSORRT_PROVIDER
from maskpro_deploy.errors import FormatError, MachineError, first_line

log = logging.getLogger(__name__)

# what onnxruntime's messages begin with: its codes, and the path once more
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?(This is an invalid model\. Error: )?")
# how far onnxruntime may rewrite the graph
REWRITE_ALL, REWRITE_BASIC, REWRITE_NOTHING = "ORT_ENABLE_ALL", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL"
# rows of a weight with one scale a column that its fused kernel takes at a time. It stores that scale for each of them, and
# rounds activations again as often: with onnxruntime's 32 an int8 model takes a fifth longer, with 128 it is less exact
COLUMN_ROWS = {"session.qdq_matmulnbits_block_size": "64"}


def open_graph(
    model: str | Path | bytes,  # path or content of the ONNX file
    *,
    providers: Sequence[Any] = (CPU_PROVIDER,),  # names, or pairs of a name and options, in order of preference
    devices: Sequence[Any] = (),  # devices of one plug-in provider, in place of `providers`; the CPU takes what it cannot run
    device_options: Mapping[str, str] | None = None,  # the plug-in's options
    threads: int | None = None,  # CPU threads; None uses all cores
    spin: bool = False,  # let threads that wait for each other spin: faster on an idle machine, far slower on a shared one
    rewrite: str = REWRITE_ALL,  # how far the graph may be rewritten
    settings: Mapping[str, str] | None = None,  # further entries of the session's configuration
    log_level: int = 3,  # 0 for everything to 4; onnxruntime's warnings are about its own rewriting
    advice: str = "",  # what to do if the graph cannot be loaded, a line for the error
) -> Any:
    """An onnxruntime session on `providers`, as far as it can use them; FormatError if it cannot load the graph."""
    import onnxruntime

    load_cuda_for(providers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_level
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, rewrite)
    for key, value in {"session.intra_op.allow_spinning": str(int(spin)), **COLUMN_ROWS, **(settings or {})}.items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if devices:
        options.add_provider_for_devices(list(devices), dict(device_options or {}))
    content = model if isinstance(model, bytes) else str(model)
    try:
        # it prints why a provider fails, and standard output belongs to the results
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore", UserWarning)  # what it cannot use is checked afterwards
            return onnxruntime.InferenceSession(content, options, providers=None if devices else list(providers))
    except Exception as e:  # onnxruntime raises many types of its own; the first line says what failed
        name = "the graph" if isinstance(model, bytes) else model
        said = _PREFIX.sub("", first_line(e))
        raise FormatError(f"onnxruntime cannot load {name}: {said}" + (f"\n{advice}" if advice else "")) from e


def load_cuda_for(providers: Sequence[Any]) -> None:
    """Load what `providers` (names, or pairs of a name and options) need of CUDA, before a session is made with them.

    onnxruntime is linked with CUDA's libraries, and the system's linker looks for them on the system's own paths only: those that
    came with pip have to be loaded before. One that cannot be loaded is no error here: the system may have it elsewhere, and
    whether the provider started is checked where the session is made.
    """
    names = {p if isinstance(p, str) else p[0] for p in providers}
    load = getattr(import_module("onnxruntime"), "preload_dlls", None)
    if load is None or names.isdisjoint((CUDA_PROVIDER, TENSORRT_PROVIDER)):
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses, and standard output belongs to the results
        load()
    for line in said.getvalue().splitlines():
        log.debug("onnxruntime: %s", line)


def resolve_provider(wanted: str, available: Sequence[str]) -> str:
    """What "auto" means here; MachineError, saying what to install, if what is asked for does not exist."""
    if wanted == AUTO:
        return CUDA if CUDA_PROVIDER in available else CPU
    check_provider(wanted, available)
    return wanted


def check_provider(wanted: str, present: Sequence[str]) -> None:
    """Refuse (MachineError) a provider whose first onnxruntime provider is not among those present."""
    first = PROVIDERS[wanted].onnxruntime[0]
    if first not in present:
        raise MachineError(
            f"--provider {wanted} needs onnxruntime's {first}, which is not available here (there is: {', '.join(present)}).\n"
            f"On a machine with an NVIDIA GPU: pip uninstall onnxruntime && pip install 'maskpro-deploy[gpu]'. "
            f"Or run on the CPU: --provider {CPU}."
        )


def check_plugin_started(session: Any, provider: str) -> None:
    """Refuse (MachineError) a session that went on without the plug-in whose devices it was opened with."""
    if provider not in session.get_providers():
        raise MachineError(
            f"onnxruntime goes on without {provider}: the plug-in does not start here.\n"
            f"Look which NVIDIA driver it needs, or run on the CPU: --provider {CPU}."
        )


def check_tensorrt_started(session: Any) -> None:
    """Refuse (MachineError) a session that went on without the TensorRT provider it was opened with."""
    if TENSORRT_PROVIDER not in session.get_providers():
        linked = onnxruntime_tensorrt()
        raise MachineError(
            f"onnxruntime's TensorRT provider does not start: it lacks TensorRT {linked or ''} or CUDA.\n"
            f"Install them: pip install 'maskpro-deploy[tensorrt]' 'tensorrt<{(linked or 10) + 1}'"
        )
