"""Runs a loaded engine at given shapes: its inputs and outputs on the device, a call that is launched as one, times.

Both engines of a comparison use the same buffers. Tokens are random, so that the multiplied values are those of a model and not
zeros, which cost a GPU less power and so run at higher clocks; the cache is empty but for zeros, which touch attention only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.executor import output_shapes
from maskpro_deploy.backends.memory import OutOfDeviceMemory
from maskpro_deploy.backends.tensorrt_.executor import BoundCall, EngineExecutor
from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters.engines.kernels import Kernel, read_kernels
from maskpro_deploy.exporters.engines.timing.results import Point


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
    """Blocks of the device by tensor name; one grows where a point needs more, and is used by all engines."""

    def __init__(self, gpu: CudaDevice, vocabulary: int) -> None:
        self._gpu, self._vocabulary = gpu, vocabulary
        self._blocks: dict[str, tuple[int, int]] = {}

    def place(self, point: Point, sizes: Mapping[str, int], in_place: Mapping[str, str]) -> dict[str, int]:
        """Addresses of all tensors (`sizes`: bytes of each), with the point's inputs uploaded.

        `in_place` maps an output to the input whose memory it shares.
        """
        for name, value in input_values(point, self._vocabulary).items():
            self._gpu.upload(self._block(name, sizes[name]), value)
        return {name: self._block(in_place.get(name, name), size) for name, size in sizes.items()}

    def _block(self, name: str, size: int) -> int:
        address, held = self._blocks.get(name, (0, 0))
        if held < max(size, 1):  # the smaller block stays: another engine may still be bound to it
            address, held = self._allocate(max(size, 1)), max(size, 1)
            self._gpu.zero(address, held)
            self._blocks[name] = address, held
        return address

    def _allocate(self, size: int) -> int:
        try:
            return self._gpu.allocate(size)
        except OutOfDeviceMemory:
            raise MachineError(
                f"the GPU has no memory left for {size / 1e6:.0f} MB of inputs and outputs, so the engines cannot be timed.\n"
                f"Give smaller --profiles."
            ) from None


class EngineRunner:
    """One engine as `measure` wants it; its buffers are shared by all engines of a comparison."""

    def __init__(self, engine: EngineExecutor, gpu: CudaDevice, buffers: Buffers) -> None:
        self._engine, self._gpu, self._buffers = engine, gpu, buffers
        self._call: BoundCall | None = None
        self._profiled: BoundCall | None = None
        self._layer_times: dict[str, float] = {}
        self._kernels = read_kernels(engine.inspect_layers()) or []

    def prepare(self, point: Point) -> None:
        """Take the point's shapes, place its tensors, and have a call recorded as a graph, so that launching costs nothing."""
        if self._call is not None:
            self._call.close()
        self._call = self._profiled = None  # their memory is for the next
        outputs = output_shapes(self._engine.tensors, point.shapes)
        shapes = {**point.shapes, **outputs}
        sizes = {name: math.prod(shape) * self._engine.tensors[name].item_bytes for name, shape in shapes.items()}
        fixed = "write_indices" in point.shapes  # a cache of fixed length is updated where it is
        in_place = {n: n.replace("present.", "past_key_values.") for n in outputs if n.startswith("present.")} if fixed else {}
        addresses = self._buffers.place(point, sizes, in_place)
        self._call = self._engine.bind(point.profile, point.shapes, addresses)
        self._profiled = self._engine.bind(point.profile, point.shapes, addresses, self._layer_times)
        for _ in range(2):  # the first call at new shapes prepares things that cannot be recorded, the second is recorded
            self._call.run()
            self._gpu.wait()

    def time_ms(self) -> float:
        """Run once; milliseconds on the device."""
        assert self._call is not None
        return self._gpu.time_ms(self._call.run)

    def layers_ms(self) -> dict[str, float]:
        """Run once with a profiler; layer name -> milliseconds."""
        assert self._profiled is not None
        self._layer_times.clear()
        self._profiled.enqueue()
        self._gpu.wait()
        return dict(self._layer_times)

    def kernels(self) -> Sequence[Kernel]:
        """The engine's layers."""
        return self._kernels
