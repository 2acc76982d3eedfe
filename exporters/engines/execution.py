"""A loaded engine that can be run on a GPU, with and without a profiler: all of the library's interface that this takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.errors import MachineError


class Execution:
    """One engine, loaded for timing: a context to run at full speed and one to run under the profiler.

    Args:
        trt: the library's module.
        logger: the library's logger of this process.
        plan: the engine's bytes.
        why: tells the library's last error.

    Raises:
        MachineError: the engine cannot be loaded here.
    """

    def __init__(self, trt: Any, logger: Any, plan: bytes, why: Any) -> None:
        self._trt, self._why = trt, why
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise MachineError(
                f"{trt.__name__} {trt.__version__} cannot load the engine: {why()}\n"
                f"It belongs to another GPU or version, or is damaged: build it again on this machine."
            )
        self._context = self._engine.create_execution_context()
        self._profiled = self._engine.create_execution_context()
        if self._context is None or self._profiled is None:
            raise MachineError(f"{trt.__name__} {trt.__version__} cannot run the engine: {why()}")
        self.layers: dict[str, float] = {}
        self._profiler = self._make_profiler(self.layers)
        self._profiled.profiler = self._profiler

    def _make_profiler(self, layers: dict[str, float]) -> Any:
        trt = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                layers[layer_name] = layers.get(layer_name, 0.0) + ms

        return Profiler()

    def tensors(self) -> dict[str, tuple[bool, int]]:
        """Name -> (is an input, bytes of an element)."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [self._is_input(name) for name in names]
        sizes = [self._item_bytes(name) for name in names]
        return dict(zip(names, zip(inputs, sizes, strict=True), strict=True))

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _item_bytes(self, name: str) -> int:
        return int(self._engine.get_tensor_dtype(name).itemsize)

    def use(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> dict[str, tuple[int, ...]]:
        """Take a profile and shapes of the inputs.

        Returns:
            shapes of the outputs.

        Raises:
            MachineError: the engine does not take them.
        """
        self._shape(self._context, profile, shapes, stream)
        self._shape(self._profiled, profile, shapes, stream)
        outputs = [name for name, (is_input, _) in self.tensors().items() if not is_input]
        found = [tuple(self._context.get_tensor_shape(name)) for name in outputs]
        return dict(zip(outputs, found, strict=True))

    def _shape(self, context: Any, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> None:
        taken = context.set_optimization_profile_async(profile, stream)
        for name, shape in shapes.items():
            taken = context.set_input_shape(name, tuple(shape)) and taken
        if not taken:
            raise MachineError(f"the engine does not take the shapes of profile {profile}: {self._why()}")

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Tell where inputs and outputs are on the device."""
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
            self._profiled.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        """Put one run into the stream.

        Raises:
            MachineError: the library refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise MachineError(f"the engine does not run: {self._why()}")

    def enqueue_profiled(self, stream: int) -> None:
        """Run once under the profiler; `layers` has the times once the stream is done.

        Raises:
            MachineError: the library refuses.
        """
        self.layers.clear()
        if not self._profiled.execute_async_v3(stream):
            raise MachineError(f"the engine does not run: {self._why()}")

    def inspection(self) -> str:
        """The engine's layers as the library's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
