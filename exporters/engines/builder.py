"""Building an engine with `tensorrt` or `tensorrt_rtx`: one adapter over both. It runs in the worker process only.

A flag counts as taken only if the library has its name and gives back what was set: one of the libraries has the name of a
setting, and drops the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.backends.tensorrt_.library import layer_information, load_library, log_of, logger_of
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError
from maskpro_deploy.exporters.engines.config import TILING
from maskpro_deploy.system.files import atomic_file

# warnings that a part of the graph is left out, so that the engine would compute something else
_DROPPED = re.compile(r"unused input", re.I)
_DROPPED_IN_PARSING = re.compile(r"unused input|ignored|ignoring|not supported|unsupported|dropp", re.I)
_SHOWN_ERRORS = 3


class EngineBuilder:
    """A builder library ("tensorrt" or "tensorrt-rtx") and its log; MachineError if it cannot be imported here."""

    def __init__(self, name: str) -> None:
        self._trt: Any = load_library(name)
        self.name = name
        self.log = log_of(self._trt)  # all that it says in this process
        self.log.keep_all = True
        self._last_error = self.log.last_error
        self._logger = logger_of(self._trt)

    @property
    def version(self) -> str:
        return str(self._trt.__version__)

    def build(
        self,
        graph: Path,  # the ONNX file; weights are in the same folder
        profiles: Sequence[Profile],
        *,
        sparse: bool,  # let the builder use sparse kernels
        targets: Sequence[str],  # compute capabilities such as "sm89"; the library's default if empty
        timing_cache: Path | None,  # measured kernel times to read and to extend, where the library keeps such
        on_step: Callable[[float, str], None],  # takes the share that is done and the phase, where the library reports them
        flags: Mapping[str, Any] | None = None,  # the fields of `BuilderFlags`
    ) -> memoryview:
        """Parse a graph and build an engine; its bytes.

        Raises:
            CheckFailed: the library refuses the graph, or would drop a part of it; the message names the node.
            ConfigError: a target is unknown to the library, or it does not take a flag.
            MachineError: the build needs what this machine lacks.
        """
        trt = self._trt
        try:
            builder = trt.Builder(self._logger)
        except TypeError as e:  # how the bindings say that the library gave them nothing
            raise MachineError(f"{self.name} {self.version} cannot start on this machine: {self._last_error()}") from e
        self._check_supported(builder, graph)
        network = builder.create_network(self._network_flags())
        self._parse(network, graph)
        config = builder.create_builder_config()
        if hasattr(config, "profiling_verbosity"):
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names in the log and the inspector
        if sparse and hasattr(trt.BuilderFlag, "SPARSE_WEIGHTS"):
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if flags is not None:
            apply_flags(trt, config, flags)
        for profile in profiles:
            self._add_profile(builder, config, profile)
        self._set_targets(config, targets)
        cache = self._load_timing_cache(config, timing_cache)
        if hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"):
            config.progress_monitor = self._monitor(on_step)
        engine = builder.build_serialized_network(network, config)
        self._refuse_dropped(_DROPPED)
        if engine is None:
            raise CheckFailed(f"{self.name} {self.version} could not build the engine: {self._last_error()}{_hint(flags)}")
        if cache is not None and timing_cache is not None:
            with atomic_file(timing_cache) as temporary:
                temporary.write_bytes(memoryview(cache.serialize()))
        return memoryview(engine)

    def _network_flags(self) -> int:
        """Precision lives in the graph: strongly typed, which later versions always are."""
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def _check_supported(self, builder: Any, graph: Path) -> None:
        """Ask for every node at once; parsing ends at the first that the library refuses."""
        network = builder.create_network(self._network_flags())  # it has to outlive its parser
        parser = self._trt.OnnxParser(network, self._logger)
        if not hasattr(parser, "supports_model_v2") or parser.supports_model_v2(_decomposable(graph), str(graph)):
            return
        raise self._refusal(parser)

    def _parse(self, network: Any, graph: Path) -> None:
        parser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse(_decomposable(graph), str(graph)) or parser.num_errors:
            raise self._refusal(parser)
        self._refuse_dropped(_DROPPED_IN_PARSING)

    def _refusal(self, parser: Any) -> CheckFailed:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        shown = "\n".join(dict.fromkeys(_describe(e) for e in errors[:_SHOWN_ERRORS]))
        more = f"\nand {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        return CheckFailed(f"{self.name} {self.version} refuses the graph: {shown or self._last_error()}{more}")

    def _refuse_dropped(self, pattern: re.Pattern[str]) -> None:
        if dropped := [w for w in self.log.warnings if pattern.search(w)]:
            raise CheckFailed(f"{self.name} {self.version} would leave out a part of the graph: {dropped[0].strip()}")

    def _add_profile(self, builder: Any, config: Any, shapes: Profile) -> None:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(best), tuple(most))
        if config.add_optimization_profile(profile) < 0:
            raise CheckFailed(f"{self.name} {self.version} refuses an optimisation profile: {self._last_error()}")

    def _set_targets(self, config: Any, targets: Sequence[str]) -> None:
        if not targets:
            return
        if not hasattr(config, "set_compute_capability"):
            raise ConfigError(
                f"--target: {self.name} {self.version} builds for the GPU of this machine only. Leave --target out."
            )
        members = self._trt.ComputeCapability
        known = sorted((n.lower() for n in dir(members) if re.fullmatch(r"SM\d+", n)), key=lambda n: int(n[2:]))
        for unknown in (t for t in targets if t not in known):
            raise ConfigError(f"--target {unknown}: {self.name} {self.version} does not know it. Known: {', '.join(known)}.")
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(getattr(members, target.upper()), i)

    def _load_timing_cache(self, config: Any, path: Path | None) -> Any:
        """The cache in use, or None. TensorRT-RTX times nothing ahead of time; its cache calls only look for a GPU."""
        if path is None or self.name == "tensorrt-rtx" or not hasattr(config, "create_timing_cache"):
            return None
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        self.log.warnings.append(f"{path} holds kernel times of another library or GPU: it is neither used nor changed")
        return None

    def _monitor(self, on_step: Callable[[float, str], None]) -> Any:
        trt, phases = self._trt, _Phases()

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                phases.start(phase_name, parent_phase, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                phases.finish(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                phases.step(phase_name, step)
                on_step(phases.share(), phase_name)
                return True

        return Monitor()

    def check_engine(self, engine: memoryview) -> None:
        """Refuse (CheckFailed) an engine that the library calls malformed, where it can be asked without a GPU."""
        trt, runtime = self._trt, self._trt.Runtime(self._logger)
        if not hasattr(runtime, "get_engine_validity") or not hasattr(trt, "EngineInvalidityDiagnostics"):
            return
        _, diagnostics = runtime.get_engine_validity(bytes(engine[: runtime.engine_header_size]))
        if int(diagnostics) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
            raise CheckFailed(f"{self.name} {self.version} does not take its own engine: it is malformed.")

    def inspect(self, engine: memoryview) -> str:
        """The engine's layers as the library's JSON; "" where that cannot be had, as on a machine without a GPU."""
        runtime = self._trt.Runtime(self._logger)
        loaded = runtime.deserialize_cuda_engine(engine)
        return "" if loaded is None else layer_information(self._trt, loaded)


class _Phases:
    """The library's phases within phases, as one share of the whole that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # name -> (parent, steps, steps done)
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, index: int) -> None:
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, min(index + 1, steps))

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def share(self) -> float:
        roots = [self._of(name) for name, (parent, _, _) in self._open.items() if parent not in self._open]
        self._share = max([self._share, *roots])
        return self._share

    def _of(self, name: str) -> float:
        _, steps, done = self._open[name]
        inner = max((self._of(n) for n, (parent, _, _) in self._open.items() if parent == name), default=0.0)
        return min(1.0, (done + inner) / steps)


def apply_flags(trt: Any, config: Any, flags: Mapping[str, Any]) -> None:
    """Set the fields of `BuilderFlags` in a build's IBuilderConfig; ConfigError if the library does not take one."""
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


def _hint(flags: Mapping[str, Any] | None) -> str:
    """What to try first after a failed build, as far as flags are known to need something."""
    asked = flags if flags is not None else {}
    if asked.get("version_compatible"):
        return "\n--version-compatible needs the library's lean runtime; leave it out where the package does not bring that."
    if asked.get("refit") or asked.get("strip_weights"):
        return "\n--refit and --strip-weights may need a GPU while building; leave them out on a machine without one."
    return ""


def _decomposable(graph: Path) -> bytes:
    """The graph's bytes with its Attention nodes marked as ones that may be split where no fused kernel fits.

    The mark is TensorRT's own and no part of ONNX, so it is set here and not in the file.
    """
    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    return bytes(model.SerializeToString())


def _describe(error: Any) -> str:
    where = " ".join(str(getattr(error, part)()) for part in ("node_name", "node_operator") if hasattr(error, part))
    return f"node {where.strip() or 'unknown'}: {error.desc()}"
