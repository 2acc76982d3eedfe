"""The builder's flags, set in whatever library is loaded.

A flag counts as taken only if the library has its name and gives back what was set: one of the libraries has the name of a
setting, and drops the value. What it lacks is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters.engines.builder_flags import TILING


def apply_flags(trt: Any, config: Any, flags: Mapping[str, Any]) -> None:
    """Set what is asked for.

    Args:
        trt: the library's module.
        config: the build's IBuilderConfig.
        flags: the fields of `BuilderFlags`.

    Raises:
        ConfigError: the library does not take a flag.
    """
    if (level := flags["optimization_level"]) is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise _lacking(trt, "--optimization-level")
        config.builder_optimization_level = level
        _check(trt, config.builder_optimization_level == level, f"--optimization-level {level}")
    if (streams := flags["aux_streams"]) is not None:
        if not hasattr(config, "max_aux_streams"):
            raise _lacking(trt, "--aux-streams")
        config.max_aux_streams = streams
        _check(trt, config.max_aux_streams == streams, f"--aux-streams {streams}")
    if (size := flags["workspace_bytes"]) is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
        _check(trt, config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == size, f"--workspace {size}")
    if (tiling := flags["tiling"]) is not None:
        if not hasattr(config, "tiling_optimization_level"):
            raise _lacking(trt, "--tiling")
        levels = [getattr(trt.TilingOptimizationLevel, name) for name in ("NONE", "FAST", "MODERATE", "FULL")]
        wanted = levels[TILING.index(tiling)]
        config.tiling_optimization_level = wanted
        _check(trt, config.tiling_optimization_level == wanted, f"--tiling {tiling}")
    if (hardware := flags["hardware_compatible"]) is not None:
        if not hasattr(config, "hardware_compatibility_level"):
            raise _lacking(trt, "--hardware-compatible")
        if hardware == "ampere+":
            others = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        else:
            others = getattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None)
        if others is None:
            raise _lacking(trt, f"--hardware-compatible {hardware}")
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
    if flag is None:
        raise _lacking(trt, name)
    config.set_flag(flag)
    _check(trt, config.get_flag(flag), name)


def _check(trt: Any, taken: bool, name: str) -> None:
    if not taken:
        raise _lacking(trt, name)


def _lacking(trt: Any, name: str) -> ConfigError:
    library = f"{trt.__name__} {trt.__version__}"
    return ConfigError(f"{name}: {library} does not take it.\nLeave it out, or build with another library.")
