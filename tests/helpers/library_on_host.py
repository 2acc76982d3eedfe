"""A stand-in for TensorRT that runs the bundle's graph in onnxruntime: its "engine" is the path of a graph, with profiles.

It keeps TensorRT's rules, so that a session that breaks one fails here: a context needs its profile, all shapes and all addresses
before it runs; shapes have to lie in the profile; a recorded graph dies when the context it came from is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from maskpro_deploy.backends.executor import output_shapes
from maskpro_deploy.backends.memory import HostDevice
from maskpro_deploy.backends.onnxruntime_.executor import OnnxExecutor
from maskpro_deploy.backends.onnxruntime_.sessions import open_graph

VERSION = "11.4.0.106"
GPU = "sm90"


class Names:
    """An enumeration."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, name)


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING, INFO = "ERROR", "INTERNAL_ERROR", "WARNING", "INFO"


DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}


class Library:
    """What the name `tensorrt` stands for."""

    __version__ = VERSION
    ILogger = ILogger
    DataType = Names("FLOAT", "HALF", "BF16", "INT64", "INT32")
    TensorIOMode = Names("INPUT", "OUTPUT")
    TensorLocation = Names("DEVICE", "HOST")

    @staticmethod
    def Runtime(logger: Any) -> Runtime:
        return Runtime(logger)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        try:
            described = json.loads(bytes(data))
        except ValueError:
            self.logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        return Engine(described)


class Engine:
    def __init__(self, described: dict[str, Any]) -> None:
        self.executor = OnnxExecutor(open_graph(described["graph"], threads=1), HostDevice())
        self.shapes = described["profiles"]
        self.names = list(self.executor.tensors)
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.shapes)
        self.contexts: list[Context] = []

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.executor.tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> str:
        return DTYPES[self.executor.tensors[name].dtype]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if self.executor.tensors[name].is_input else "OUTPUT"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        profile: dict[str, list[list[int]]] = self.shapes[index]
        return profile["past_key_values.0.key" if name.startswith("past") else name]  # alike for all layers

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, Any] = {}
        self.addresses: dict[str, int] = {}
        self.changes = 0
        self.ran = -1  # changes before the last run

    def set_optimization_profile_async(self, index: int, stream: object) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        assert self.profile is not None, "a profile comes first"
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
            return False
        if self.shapes.get(name) != shape:
            self.changes += 1
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.addresses.get(name) != address:
            self.changes += 1
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: object) -> bool:
        tensors = self.engine.executor.tensors
        if (
            self.profile is None
            or set(self.addresses) != set(tensors)
            or any(s.is_input and n not in self.shapes for n, s in tensors.items())
        ):
            return False
        if isinstance(stream, Stream) and stream.recording is not None:
            assert self.ran == self.changes, "recording asks for a run with the same shapes and addresses before"
            stream.recording.append((self, self.changes))
        else:
            self.execute()
            self.ran = self.changes
        return True

    def execute(self) -> None:
        tensors = self.engine.executor.tensors
        self.engine.executor.run(0, {**self.shapes, **output_shapes(tensors, self.shapes)}, self.addresses)


class Stream:
    def __init__(self) -> None:
        self.recording: Recorded | None = None


Recorded = list[tuple[Context, int]]  # contexts, each with the number of its changes when it was recorded


class HostGpu(HostDevice):
    """The host's memory with what a GPU has besides: a stream, and graphs recorded from it."""

    name = "host"
    compute_capability = GPU

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.recorded = self.launched = self.discarded = 0

    def address_of(self, array: npt.NDArray[Any]) -> int | None:
        return None  # as on a GPU

    def capture(self, work: Callable[[], object]) -> Recorded:
        self.stream.recording = []
        work()
        graph, self.stream.recording = self.stream.recording, None
        assert graph is not None
        self.recorded += 1
        return graph

    def launch(self, graph: Recorded) -> None:
        self.launched += 1
        for context, changes in graph:
            assert context.changes == changes, "the context was changed after its graph was recorded"
            context.execute()

    def discard(self, graph: Recorded) -> None:
        self.discarded += 1


def write_engine(file: Path, graph: Path, profiles: list[dict[str, Any]]) -> None:
    """An engine that the stand-in loads."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
