"""What a user may tell the builder library beyond shapes and sparsity. A library that lacks one refuses it; none is ignored.

Sparse weights and refitting: an engine that can take any weights later may be given dense ones, which its sparse kernels would
misread, so a sparse engine can only be refitted with identical weights.

A flag counts as taken only if the library has its name and gives back what was set: one of the libraries has the name of a
setting, and drops the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import ConfigError, check_known, check_range

HARDWARE = ("ampere+", "same-cc")
REFIT = ("identical", "all")
TILING = ("none", "fast", "moderate", "full")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderFlags:
    """Flags of the builder; None and False leave the library's default.

    Raises:
        ConfigError: a flag is out of its range.
    """

    optimization_level: int | None = None  # 0 (quick build) to 5 (longest search)
    workspace_bytes: int | None = None  # most scratch memory of a kernel on the GPU
    aux_streams: int | None = None  # further streams that an engine may use at once
    version_compatible: bool = False  # the engine runs in later versions of the library too
    # "ampere+": it runs on every GPU from Ampere on; "same-cc": on others of the same compute capability
    hardware_compatible: str | None = None
    weight_streaming: bool = False  # weights may stay in the host's memory
    refit: str | None = None  # its weights may be exchanged: for "identical" ones, or "all"
    # leave the refittable weights out of the file; whoever loads it brings them. Implies "identical".
    strip_weights: bool = False
    tiling: str | None = None  # how far kernels are tiled across layers
    strict_nans: bool = False  # NaN and infinity times a pruned weight stay NaN, with the sparse kernels that can

    def __post_init__(self) -> None:
        check_range("--optimization-level", self.optimization_level, least=0, most=5)
        check_range("--workspace", self.workspace_bytes, least=1)
        check_range("--aux-streams", self.aux_streams, least=0)
        check_known("--hardware-compatible", self.hardware_compatible, HARDWARE)
        check_known("--refit", self.refit, REFIT)
        check_known("--tiling", self.tiling, TILING)

    def check_sparse(self) -> None:
        """Refuse what cannot go with sparse weights.

        Raises:
            ConfigError: the engine could be refitted with dense weights.
        """
        if self.refit == "all":
            raise ConfigError(
                "--refit all: a sparse engine must not be refitted with other weights, which may be dense.\n"
                "Give --refit identical, or build a dense engine with --dense."
            )


def parse_bytes(text: str, flag: str) -> int:
    """Read a size such as 512MB, 4GB or 2GiB.

    Raises:
        ConfigError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is not a size.\nGive a number and a unit, for example 512MB or 4GB.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def apply_flags(trt: Any, config: Any, flags: Mapping[str, Any]) -> None:
    """Set what is asked for (`flags`: the fields of `BuilderFlags`) in a build's IBuilderConfig.

    Raises:
        ConfigError: the library does not take a flag.
    """
    if (level := flags["optimization_level"]) is not None:
        _check(trt, hasattr(config, "builder_optimization_level"), "--optimization-level")
        config.builder_optimization_level = level
        _check(trt, config.builder_optimization_level == level, f"--optimization-level {level}")
    if (streams := flags["aux_streams"]) is not None:
        _check(trt, hasattr(config, "max_aux_streams"), "--aux-streams")
        config.max_aux_streams = streams
        _check(trt, config.max_aux_streams == streams, f"--aux-streams {streams}")
    if (size := flags["workspace_bytes"]) is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        _check(trt, config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == size, f"--workspace {size}")
    if (tiling := flags["tiling"]) is not None:
        _check(trt, hasattr(config, "tiling_optimization_level"), "--tiling")
        levels = [getattr(trt.TilingOptimizationLevel, name) for name in ("NONE", "FAST", "MODERATE", "FULL")]
        wanted = levels[TILING.index(tiling)]
        config.tiling_optimization_level = wanted
        _check(trt, config.tiling_optimization_level == wanted, f"--tiling {tiling}")
    if (hardware := flags["hardware_compatible"]) is not None:
        _check(trt, hasattr(config, "hardware_compatibility_level"), "--hardware-compatible")
        if hardware == "ampere+":
            others = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        else:
            others = getattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None)
        _check(trt, others is not None, f"--hardware-compatible {hardware}")
        config.hardware_compatibility_level = others
        _check(trt, config.hardware_compatibility_level == others, f"--hardware-compatible {hardware}")
    _apply_switches(trt, config, flags)


def _apply_switches(trt: Any, config: Any, flags: Mapping[str, Any]) -> None:
    if flags["version_compatible"]:
        _switch(trt, config, getattr(trt.BuilderFlag, "VERSION_COMPATIBLE", None), "--version-compatible")
    if flags["weight_streaming"]:
        _switch(trt, config, getattr(trt.BuilderFlag, "WEIGHT_STREAMING", None), "--weight-streaming")
    if flags["strict_nans"]:
        _switch(trt, config, getattr(trt.BuilderFlag, "STRICT_NANS", None), "--strict-nans")
    if flags["refit"] == "all":
        _switch(trt, config, getattr(trt.BuilderFlag, "REFIT", None), "--refit all")
    elif flags["refit"] == "identical" or flags["strip_weights"]:
        _switch(trt, config, getattr(trt.BuilderFlag, "REFIT_IDENTICAL", None), "--refit identical")
    if flags["strip_weights"]:
        _switch(trt, config, getattr(trt.BuilderFlag, "STRIP_PLAN", None), "--strip-weights")


def _switch(trt: Any, config: Any, flag: Any, name: str) -> None:
    _check(trt, flag is not None, name)
    config.set_flag(flag)
    _check(trt, config.get_flag(flag), name)


def _check(trt: Any, taken: bool, name: str) -> None:
    if not taken:
        library = f"{trt.__name__} {trt.__version__}"
        raise ConfigError(f"{name}: {library} does not take it.\nLeave it out, or build with another library.")
