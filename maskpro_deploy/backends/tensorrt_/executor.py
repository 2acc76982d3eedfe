"""An engine in TensorRT's own runtime, or in TensorRT-RTX's: loaded, bound to addresses, run on one stream.

Each profile has an execution context of its own, so that going from prefill to decode switches nothing. Where steps repeat the
same shapes and addresses (decode with a cache of fixed length), the third one on is a CUDA graph: one launch for all kernels.
"""

from __future__ import annotations

import logging
import mmap
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.executor import TensorSpec
from maskpro_deploy.backends.profiles import Profile, Shape
from maskpro_deploy.backends.tensorrt_.library import layer_information, load_library, log_of, logger_of
from maskpro_deploy.errors import FormatError, MachineError
from maskpro_deploy.system.files import atomic_file

log = logging.getLogger(__name__)

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32"}
_MOST_GRAPHS = 8

Key = tuple[Any, ...]


class BoundCall:
    """A call whose context belongs to it alone: bound once, run, recorded as a CUDA graph the second time, launched from then on.

    Recording asks for a run with the same shapes and addresses before, and changing a context makes graphs recorded from it
    undefined; so nothing else may use the context. MachineError if the engine does not take the shapes or addresses.
    """

    def __init__(
        self,
        context: Any,  # it has taken its profile
        inputs: Sequence[str],  # names of all inputs
        shapes: Mapping[str, Shape],  # of all inputs at least
        addresses: Mapping[str, int],  # of all inputs and outputs
        device: CudaDevice,
        why: Callable[[], str],  # gives the library's last error
        can_record: bool = True,  # the library lets its calls be recorded
    ) -> None:
        self._context, self._device, self._why = context, device, why
        self._ran = False
        self._graph: Any = None
        self.can_record = can_record  # False once the driver could not record it; it is enqueued each time then
        bind_context(context, inputs, shapes, addresses, why)

    def run(self) -> None:
        """Enqueue the call."""
        if self._graph is None and self._ran and self.can_record:
            self._graph = self._device.capture(self.enqueue)
            self.can_record = self._graph is not None
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            self.enqueue()
            self._ran = True

    def enqueue(self) -> None:
        """Enqueue the call without a graph; see `run`."""
        start_context(self._context, self._device, self._why)

    def close(self) -> None:
        """Give the recorded graph up, after the work that uses it and the context."""
        self._device.wait()
        if self._graph is not None:
            self._device.discard(self._graph)
            self._graph = None


def bind_context(
    context: Any, inputs: Sequence[str], shapes: Mapping[str, Shape], addresses: Mapping[str, int], why: Callable[[], str]
) -> None:
    """Give a context the shapes of its inputs and the addresses of all tensors."""
    for name in inputs:
        if not context.set_input_shape(name, shapes[name]):
            raise MachineError(f"the engine does not take the shape {shapes[name]} of {name}: {why()}")
    for name, address in addresses.items():
        if not context.set_tensor_address(name, address):
            raise MachineError(f"the engine does not take the address of {name}: {why()}")


def start_context(context: Any, device: CudaDevice, why: Callable[[], str]) -> None:
    """Enqueue a bound context."""
    if not context.execute_async_v3(device.stream):
        raise MachineError(f"the engine does not run: {why()}")


class EngineExecutor:
    """An engine of "tensorrt" or "tensorrt-rtx", ready to run; see `Executor`.

    `cache` is a file of kernels that were compiled before, where the library keeps such (TensorRT-RTX); `graphs` lets repeated
    calls be recorded as CUDA graphs.

    Raises:
        MachineError: the library cannot be loaded, or does not run on this GPU.
        FormatError: the engine is damaged, or of another version or GPU.
    """

    def __init__(self, library: str, file: Path, device: CudaDevice, *, cache: Path | None = None, graphs: bool = True) -> None:
        self._trt = load_library(library)
        self._name = f"{library} {self._trt.__version__}"
        self.providers: Sequence[str] = (self._name,)
        self._file = file
        self._device = device
        self._last_error = log_of(self._trt).last_error
        self._runtime = self._make_runtime()
        self._engine = self._load(file)
        self._cache_file = cache
        self._config = self._runtime_config()
        self.tensors: Mapping[str, TensorSpec] = self._read_tensors()
        self._inputs = [name for name, spec in self.tensors.items() if spec.is_input]
        self.profiles: Sequence[Profile] = self._read_profiles()
        self._contexts: dict[int, Any] = {}  # profile -> context
        self._repeated: OrderedDict[Key, BoundCall] = OrderedDict()  # the least recently used first
        weakref.finalize(self, _close_all, device, self._repeated).atexit = False
        self._may_record = graphs and "write_indices" in self.tensors
        self._last: Key | None = None

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """See `Executor.run`."""
        key = (profile, tuple(sorted(shapes.items())), tuple(sorted(addresses.items()))) if self._may_record else None
        if key is not None and key == self._last and key not in self._repeated:  # like the step before: more of them will come
            self._repeated[key] = self.bind(profile, shapes, addresses)
            self._forget()
        self._last = key
        if key is None or (call := self._repeated.get(key)) is None:
            context = self._context(profile)
            bind_context(context, self._inputs, shapes, addresses, self._last_error)
            start_context(context, self._device, self._last_error)
        else:
            self._repeated.move_to_end(key)
            call.run()
            self._may_record = call.can_record  # where one cannot be recorded, none can

    def bind(
        self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int], layer_times: dict[str, float] | None = None
    ) -> BoundCall:
        """A call that will repeat, in a context of its own; see `run`, of the shapes those of the inputs count.

        `layer_times` takes layer name -> milliseconds whenever a call was enqueued and is done; a profiler slows it down, and it
        cannot be recorded.
        """
        context = self._new_context(profile)
        if layer_times is not None:
            context.profiler = self._profiler(layer_times)
        capturable = not hasattr(context, "is_stream_capturable") or context.is_stream_capturable(self._device.stream)
        return BoundCall(context, self._inputs, shapes, addresses, self._device, self._last_error, capturable)

    def inspect_layers(self) -> str:
        """The engine's layers as the library's JSON."""
        return layer_information(self._trt, self._engine)

    def save_cache(self) -> None:
        """Keep the kernels that were compiled, for the next start."""
        if self._cache_file is None or not hasattr(self._config, "get_runtime_cache"):
            return
        if (kernels := self._config.get_runtime_cache()) is not None:
            with atomic_file(self._cache_file) as temporary:
                temporary.write_bytes(memoryview(kernels.serialize()))

    def _make_runtime(self) -> Any:
        try:
            return self._trt.Runtime(logger_of(self._trt))
        except (TypeError, RuntimeError) as e:  # how the bindings say that the library gave them nothing
            raise MachineError(f"{self._name} cannot start on this machine: {self._last_error()}") from e

    def _load(self, file: Path) -> Any:
        """The engine from its file."""
        with file.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)  # read as it is copied, not held in memory, too
        self._check_validity(data)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise FormatError(
                f"{self._name} cannot load {file}: {self._last_error()}\nBuild it again on this machine with build-engine."
            )
        return engine

    def _check_validity(self, data: mmap.mmap) -> None:
        """Ask the library, where it has an answer, whether an engine can run here, before it is loaded."""
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
        raise FormatError(f"{self._name} cannot run {self._file} here: {why}.\nBuild it again with build-engine.")

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
        tensors = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise FormatError(f"{self._file}: {name} has to lie in the host's memory, which no bundle's graph asks for.")
            tensors[name] = TensorSpec(
                dtype=self._dtype(name),
                shape=tuple(engine.get_tensor_shape(name)),
                is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
        return tensors

    def _dtype(self, tensor: str) -> str:
        dtype = self._engine.get_tensor_dtype(tensor)
        for name in ("FLOAT", "HALF", "BF16", "INT64", "INT32"):
            if dtype == getattr(self._trt.DataType, name):
                return _DTYPES[name]
        raise FormatError(f"{self._file}: {tensor} has a type that no bundle's graph has.")

    def _read_profiles(self) -> list[Profile]:
        engine = self._engine
        profiles: list[Profile] = []
        for index in range(engine.num_optimization_profiles):
            profile: dict[str, tuple[Shape, Shape, Shape]] = {}
            for name in self._inputs:
                least, best, most = engine.get_tensor_profile_shape(name, index)
                profile[name] = (tuple(least), tuple(best), tuple(most))
            profiles.append(profile)
        return profiles

    def _context(self, profile: int) -> Any:
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._new_context(profile)
        return context

    def _new_context(self, profile: int) -> Any:
        settings = () if self._config is None else (self._config,)
        context = self._engine.create_execution_context(*settings)
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
            raise MachineError(
                f"{self._name} has no room for profile {profile} of {self._file}: {self._last_error()}\n"
                f"Build an engine with smaller profiles, or free memory of the GPU."
            )
        return context

    def _profiler(self, layer_times: dict[str, float]) -> Any:
        trt = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                layer_times[layer_name] = layer_times.get(layer_name, 0.0) + ms

        return Profiler()

    def _forget(self) -> None:
        while len(self._repeated) > _MOST_GRAPHS:
            _, call = self._repeated.popitem(last=False)
            call.close()  # its context goes, too


def _close_all(device: CudaDevice, repeated: OrderedDict[Key, BoundCall]) -> None:
    device.wait()
    for call in repeated.values():
        call.close()
