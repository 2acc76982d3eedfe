"""The TensorRT-RTX provider, which onnxruntime loads as a plug-in: its devices, its options, its version.

The plug-in and TensorRT-RTX itself come in one package, next to any onnxruntime from 1.24 on, the CPU's too. It builds an engine
of a graph when a session is opened, and compiles kernels as they are needed; what was compiled is kept in a folder. It reads
EPContext files, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.backends.providers import CPU, RTX, RTX_PROVIDER
from maskpro_deploy.errors import MachineError, first_line
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import cache_folder

EXTRA = "tensorrt-rtx-plugin"
_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"


def find_devices() -> Sequence[Any]:
    """The GPUs that the plug-in can use, for `open_graph`; loads it first.

    Raises:
        MissingExtraError: it is not installed.
        MachineError: it cannot be loaded, or has no GPU.
    """
    require(EXTRA, "running a bundle in TensorRT-RTX's plug-in")
    import onnxruntime

    _register()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX_PROVIDER]
    if not devices:
        raise MachineError(f"--provider {RTX}: the plug-in finds no GPU that it can use.\nRun on the CPU: --provider {CPU}.")
    return devices[:1]


@cache  # a process registers it once
def _register() -> None:
    import onnxruntime

    try:
        plugin = import_module(_MODULE)  # loads its own libraries
        onnxruntime.register_execution_provider_library(RTX_PROVIDER, plugin.get_library_path())
    except Exception as e:  # what a library says that does not load
        reason = str(e).rpartition("with error: ")[2]  # what the system's loader said
        raise MachineError(
            f"onnxruntime cannot load TensorRT-RTX's plug-in: {first_line(RuntimeError(reason))}\n"
            f"Look which NVIDIA driver it needs, or run on the CPU: --provider {CPU}."
        ) from e


def make_options(profile: Profile | None, kept: Path) -> dict[str, str]:
    """Options for a session: the shapes that a graph is built for (None for an engine), and where compiled kernels are kept."""
    options = {"nv_runtime_cache_path": str(kept)}
    if profile is not None:
        for i, which in enumerate(("min", "opt", "max")):
            shapes = ((name, at[i]) for name, at in profile.items())
            options[f"nv_profile_{which}_shapes"] = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes)
    return options


def locate_kernels() -> Path:
    """Where compiled kernels are kept."""
    return cache_folder() / "onnxruntime-tensorrt-rtx"


def read_library_version() -> str | None:
    """The version of TensorRT-RTX in the plug-in's package, from the name of its library; None if there is none."""
    spec = find_spec(_MODULE)
    if spec is None or spec.origin is None:
        return None
    names = (path.name for path in Path(spec.origin).parent.iterdir())
    found = (re.fullmatch(r"libtensorrt_rtx\.so\.(\d+(?:\.\d+)+)|tensorrt_rtx_(\d+(?:_\d+)+)\.dll", name) for name in names)
    return next(((match[1] or match[2]).replace("_", ".") for match in found if match), None)
