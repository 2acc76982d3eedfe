"""Runs a loaded engine at given shapes: its inputs and outputs on the device, a CUDA graph of one call, times.

Both engines of a comparison use the same buffers. Tokens are random, so that the multiplied values are those of a model and not
zeros, which cost a GPU less power and so run at higher clocks; the cache is empty but for zeros, which touch attention only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.cuda_device import OutOfDeviceMemory
from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters.engines.report import read_kernels
from maskpro_deploy.exporters.engines.timing import Kernel, Point


class Gpu(Protocol):
    """What `cuda_device.CudaDevice` gives."""

    stream: int

    def allocate(self, nbytes: int) -> int: ...

    def upload(self, address: int, array: npt.NDArray[Any]) -> None: ...

    def zero(self, address: int, nbytes: int) -> None: ...

    def wait(self) -> None: ...

    def time_ms(self, work: Callable[[], None]) -> float: ...

    def capture(self, work: Callable[[], None]) -> Any: ...

    def launch(self, graph: Any) -> None: ...

    def discard(self, graph: Any) -> None: ...


class Loaded(Protocol):
    """What `trt_execution.Execution` gives."""

    layers: dict[str, float]

    def tensors(self) -> dict[str, tuple[bool, int]]: ...

    def use(self, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: int) -> dict[str, tuple[int, ...]]: ...

    def bind(self, addresses: Mapping[str, int]) -> None: ...

    def enqueue(self, stream: int) -> None: ...

    def enqueue_profiled(self, stream: int) -> None: ...

    def inspection(self) -> str: ...


def input_values(point: Point, vocabulary: int) -> dict[str, npt.NDArray[np.int64]]:
    """The small inputs of a call; caches stay zero."""
    positions = np.arange(point.past, point.past + point.new)
    values = {
        "input_ids": np.random.default_rng(0).integers(vocabulary, size=(point.batch, point.new)),
        "position_ids": np.broadcast_to(positions, (point.batch, point.new)),
        "attention_mask": np.ones((point.batch, point.new + point.past), np.int64),
        "write_indices": np.full(point.batch, point.past),
    }
    return {name: np.ascontiguousarray(value, np.int64) for name, value in values.items() if name in point.shapes}


class Buffers:
    """Blocks of the device by tensor name; one grows where a point needs more, and is used by all engines.

    Args:
        gpu: the device.
        vocabulary: how many tokens there are.
    """

    def __init__(self, gpu: Gpu, vocabulary: int) -> None:
        self._gpu, self._vocabulary = gpu, vocabulary
        self._blocks: dict[str, tuple[int, int]] = {}

    def place(self, point: Point, sizes: Mapping[str, int], in_place: Mapping[str, str]) -> dict[str, int]:
        """Addresses of all tensors, with the inputs' values uploaded.

        Args:
            point: gives the inputs.
            sizes: bytes of every tensor.
            in_place: output -> the input whose memory it shares.
        """
        for name, value in input_values(point, self._vocabulary).items():
            self._gpu.upload(self._block(name, sizes[name]), value)
        return {name: self._block(in_place.get(name, name), size) for name, size in sizes.items()}

    def _block(self, name: str, size: int) -> int:
        address, held = self._blocks.get(name, (0, 0))
        if held < max(size, 1):  # the smaller block stays: another engine may still be bound to it
            address, held = self._allocated(max(size, 1)), max(size, 1)
            self._gpu.zero(address, held)
            self._blocks[name] = address, held
        return address

    def _allocated(self, size: int) -> int:
        try:
            return self._gpu.allocate(size)
        except OutOfDeviceMemory:
            raise MachineError(
                f"the GPU has no memory left for {size / 1e6:.0f} MB of inputs and outputs, so the engines cannot be timed.\n"
                f"Give smaller --profiles."
            ) from None


class EngineRunner:
    """One engine as `engine_timing` wants it.

    Args:
        loaded: the engine.
        gpu: the device.
        buffers: shared by all engines of a comparison.
    """

    def __init__(self, loaded: Loaded, gpu: Gpu, buffers: Buffers) -> None:
        self._loaded, self._gpu, self._buffers = loaded, gpu, buffers
        self._graph: Any = None
        self._kernels = read_kernels(loaded.inspection()) or []

    def _enqueue(self) -> None:
        self._loaded.enqueue(self._gpu.stream)

    def prepare(self, point: Point) -> None:
        """Take the point's shapes, place its tensors, and record a call as a graph, so that launching costs nothing."""
        outputs = self._loaded.use(point.profile, point.shapes, self._gpu.stream)
        shapes = {**point.shapes, **outputs}
        item = {name: size for name, (_, size) in self._loaded.tensors().items()}
        sizes = {name: math.prod(shape) * item[name] for name, shape in shapes.items()}
        fixed = "write_indices" in point.shapes  # a cache of fixed length is updated where it lies
        in_place = {n: n.replace("present.", "past_key_values.") for n in outputs if n.startswith("present.")} if fixed else {}
        self._loaded.bind(self._buffers.place(point, sizes, in_place))
        self._enqueue()  # the first call at new shapes prepares things that cannot be recorded
        self._gpu.wait()
        if self._graph is not None:
            self._gpu.discard(self._graph)
        self._graph = self._gpu.capture(self._enqueue)
        self._gpu.wait()

    def _run(self) -> None:
        """One call; of an engine that cannot be recorded as it would be served then, without a graph."""
        if self._graph is None:
            self._enqueue()
        else:
            self._gpu.launch(self._graph)

    def time_ms(self) -> float:
        """Run once; milliseconds on the device."""
        return self._gpu.time_ms(self._run)

    def layers_ms(self) -> dict[str, float]:
        """Run once with a profiler; layer name -> milliseconds."""
        self._loaded.enqueue_profiled(self._gpu.stream)
        self._gpu.wait()
        return dict(self._loaded.layers)

    def kernels(self) -> Sequence[Kernel]:
        """The engine's layers."""
        return self._kernels
