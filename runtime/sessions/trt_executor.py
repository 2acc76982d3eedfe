"""An engine in TensorRT's own runtime, or in TensorRT-RTX's: loaded, bound to addresses, run on one stream.

The two libraries are near relatives that gain and lose names between versions: what they can do is asked of them (`hasattr`).
Each profile has an execution context of its own, so that going from prefill to decode switches nothing. Where steps repeat the
same shapes and addresses (decode with a cache of fixed length), the third one on is a CUDA graph: one launch for all kernels. A
graph has a context of its own too, because changing a context makes graphs recorded from it undefined.
"""

from __future__ import annotations

import logging
import mmap
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda_device import CudaDevice
from maskpro_deploy.errors import FormatError, MachineError
from maskpro_deploy.runtime.sessions.executor import Profile, Shape, TensorSpec
from maskpro_deploy.system.files import atomic_file

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32"}
_MOST_GRAPHS = 8

Key = tuple[Any, ...]


@dataclass(slots=True)
class _Repeated:
    """A call that repeats: its own context, whether that is bound, and the recorded graph."""

    context: Any
    bound: bool = False
    graph: Any = None


class TrtExecutor:
    """An engine, ready to run.

    Args:
        library: "tensorrt" or "tensorrt-rtx".
        file: the engine.
        device: the GPU.
        cache: file of kernels that were compiled before, where the library keeps such (TensorRT-RTX).
        graphs: record repeated calls as CUDA graphs.

    Attributes:
        version: the library's.

    Raises:
        MachineError: the library cannot be loaded, or does not run on this GPU.
        FormatError: the engine is damaged, or of another version or GPU.
    """

    def __init__(self, library: str, file: Path, device: CudaDevice, *, cache: Path | None = None, graphs: bool = True) -> None:
        self._trt = load_library(library)
        self.version = str(self._trt.__version__)
        self.name = f"{library} {self.version}"
        self._file = file
        self._device = device
        self._errors: list[str] = []
        self._logger = self._make_logger()
        self._runtime = self._make_runtime()
        self._engine = self._load(file)
        self._cache_file = cache
        self._config = self._runtime_config()
        self.tensors: Mapping[str, TensorSpec] = self._read_tensors()
        self.profiles: Sequence[Profile] = self._read_profiles()
        self._contexts: dict[int, Any] = {}  # profile -> context
        self._repeated: OrderedDict[Key, _Repeated] = OrderedDict()  # the least recently used first
        weakref.finalize(self, _discard_all, device, self._repeated).atexit = False
        self._may_record = graphs and "write_indices" in self.tensors
        self._last: Key | None = None

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """See `Executor.run`."""
        if not self._may_record:
            self._enqueue(self._context(profile), shapes, addresses)
            return
        key = (profile, tuple(sorted(shapes.items())), tuple(sorted(addresses.items())))
        if key == self._last and key not in self._repeated:  # a step like the one before: more of them will come
            self._repeated[key] = _Repeated(self._new_context(profile))
            self._forget()
        if (step := self._repeated.get(key)) is not None:
            self._repeated.move_to_end(key)
            self._repeat(step, shapes, addresses)
        else:
            self._enqueue(self._context(profile), shapes, addresses)
        self._last = key

    def save_cache(self) -> None:
        """Keep the kernels that were compiled, for the next start."""
        if self._cache_file is None or not hasattr(self._config, "get_runtime_cache"):
            return
        kernels = self._config.get_runtime_cache()
        if kernels is None:
            return
        with atomic_file(self._cache_file) as temporary:
            temporary.write_bytes(memoryview(kernels.serialize()))

    def _make_logger(self) -> Any:
        trt, errors = self._trt, self._errors

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(message)
                    log.error("%s", message)
                elif severity == trt.ILogger.WARNING:
                    log.warning("%s", message)
                else:
                    log.debug("%s", message)

        return Logger()

    def _make_runtime(self) -> Any:
        try:
            return self._trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as e:  # how the bindings say that the library gave them nothing
            raise MachineError(f"{self.name} cannot start on this machine: {self._last_error()}") from e

    def _load(self, file: Path) -> Any:
        """The engine from its file."""
        with file.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)  # read as it is copied, not held in memory besides
        self._check_validity(data)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise FormatError(
                f"{self.name} cannot load {file}: {self._last_error()}\nBuild it again on this machine with build-engine."
            )
        return engine

    def _check_validity(self, data: mmap.mmap) -> None:
        """Ask the library, where it tells, whether an engine can run here, before it is loaded.

        Raises:
            FormatError: it cannot; the message has the library's reasons.
        """
        if not hasattr(self._trt, "EngineValidity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(data[: self._runtime.engine_header_size])
        if validity == self._trt.EngineValidity.VALID:
            return
        if validity == self._trt.EngineValidity.SUBOPTIMAL:
            log.warning("%s was built for another GPU and may be slower here", self._file)
            return
        known = self._trt.EngineInvalidityDiagnostics
        reasons = []
        for name in ("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "MALFORMED_ENGINE"):
            if hasattr(known, name) and int(diagnostics) & int(getattr(known, name)):
                reasons.append(name)
        why = ", ".join(reasons).replace("_", " ").lower() or self._last_error().rstrip(".")
        raise FormatError(f"{self.name} cannot run {self._file} here: {why}.\nBuild it again with build-engine.")

    def _runtime_config(self) -> Any:
        """Settings of the contexts, with the compiled kernels of earlier runs; None where the library has no such thing."""
        if not hasattr(self._engine, "create_runtime_config"):
            return None
        config = self._engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return config
        kernels = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.is_file() and not kernels.deserialize(self._cache_file.read_bytes()):
            log.warning("%s does not fit this library or GPU: kernels are compiled again", self._cache_file)
        config.set_runtime_cache(kernels)
        return config

    def _read_tensors(self) -> dict[str, TensorSpec]:
        trt, engine = self._trt, self._engine
        found = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise FormatError(f"{self._file}: {name} has to lie in the host's memory, which no bundle's graph asks for.")
            found[name] = TensorSpec(
                dtype=self._dtype(name),
                shape=tuple(engine.get_tensor_shape(name)),
                is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
        return found

    def _dtype(self, tensor: str) -> str:
        dtype = self._engine.get_tensor_dtype(tensor)
        for name in ("FLOAT", "HALF", "BF16", "INT64", "INT32"):
            if dtype == getattr(self._trt.DataType, name):
                return _DTYPES[name]
        raise FormatError(f"{self._file}: {tensor} has a type that no bundle's graph has.")

    def _read_profiles(self) -> list[Profile]:
        engine = self._engine
        found: list[Profile] = []
        for index in range(engine.num_optimization_profiles):
            profile: dict[str, tuple[Shape, Shape, Shape]] = {}
            for name, spec in self.tensors.items():
                if spec.is_input:
                    least, best, most = engine.get_tensor_profile_shape(name, index)
                    profile[name] = (tuple(least), tuple(best), tuple(most))
            found.append(profile)
        return found

    def _context(self, profile: int) -> Any:
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._new_context(profile)
        return context

    def _new_context(self, profile: int) -> Any:
        context = (
            self._engine.create_execution_context()
            if self._config is None
            else self._engine.create_execution_context(self._config)
        )
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise MachineError(
                f"{self.name} has no room for profile {profile} of {self._file}: {self._last_error()}\n"
                f"Build an engine with smaller profiles, or free memory of the GPU."
            )
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._device.stream):
            self._may_record = False
        return context

    def _enqueue(self, context: Any, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        for name, spec in self.tensors.items():
            if spec.is_input and not context.set_input_shape(name, shapes[name]):
                raise MachineError(f"{self.name} refuses the shape {shapes[name]} of {name}: {self._last_error()}")
            if not context.set_tensor_address(name, addresses[name]):
                raise MachineError(f"{self.name} refuses the address of {name}: {self._last_error()}")
        self._start(context)

    def _start(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise MachineError(f"{self.name} could not run {self._file}: {self._last_error()}")

    def _repeat(self, step: _Repeated, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """A step that repeats: bound and run the first time (recording asks for that), recorded the second, then launched."""
        if step.graph is not None:
            self._device.launch(step.graph)
        elif not step.bound:
            self._enqueue(step.context, shapes, addresses)
            step.bound = True
        elif (graph := self._record(step.context)) is not None:
            step.graph = graph
            self._device.launch(graph)
        else:
            self._start(step.context)

    def _record(self, context: Any) -> Any:
        """The call as a CUDA graph; None, and no further try, where the library or the driver cannot."""
        graph = self._device.capture(lambda: self._start(context)) if self._may_record else None
        self._may_record = graph is not None
        return graph

    def _forget(self) -> None:
        while len(self._repeated) > _MOST_GRAPHS:
            _, step = self._repeated.popitem(last=False)
            self._device.wait()  # the context goes too
            if step.graph is not None:
                self._device.discard(step.graph)

    def _last_error(self) -> str:
        return self._errors[-1].strip() if self._errors else "it gives no reason."


def _discard_all(device: CudaDevice, repeated: OrderedDict[Key, _Repeated]) -> None:
    device.wait()
    for step in repeated.values():
        if step.graph is not None:
            device.discard(step.graph)


def load_library(name: str) -> Any:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MachineError: it cannot be imported here.
    """
    try:
        return import_module(MODULES[name])
    except (ImportError, OSError) as e:
        raise MachineError(f"{name} is installed, but cannot be loaded here: {e}") from e
