"""An NVIDIA GPU's memory and one stream on it, through the CUDA driver's own interface.

The driver's interface is the one that every driver TensorRT runs on has, whatever CUDA runtime TensorRT brings. Everything goes
to one stream; only a download waits for it, and uploads of ordinary memory are staged by the driver before they return.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.memory import OutOfDeviceMemory
from maskpro_deploy.errors import MachineError

log = logging.getLogger(__name__)


class CudaDevice:
    """The first GPU; a `memory.Device` with a stream, events and graphs, too. MachineError without a driver or a GPU."""

    kind = "cuda"

    def __init__(self) -> None:
        self._cuda: Any = import_module("cuda.bindings.driver")
        self._current = threading.local()
        try:
            self._call(self._cuda.cuInit, 0)
            device = self._call(self._cuda.cuDeviceGet, 0)
        except MachineError as e:
            raise MachineError(f"there is no NVIDIA GPU here that CUDA can use: {e}") from e
        except Exception as e:  # the bindings' own errors where there is no driver
            raise MachineError("there is no NVIDIA driver here.\nRun on the CPU: --provider cpu.") from e
        self._context = self._call(self._cuda.cuDevicePrimaryCtxRetain, device)
        self._enter()
        name = self._call(self._cuda.cuDeviceGetName, 256, device)
        self.name = name.split(b"\0")[0].decode("utf-8", "replace")
        attributes = self._cuda.CUdevice_attribute
        major = self._call(self._cuda.cuDeviceGetAttribute, attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call(self._cuda.cuDeviceGetAttribute, attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        self.compute_capability = f"sm{major}{minor}"  # such as "sm89"
        self._stream = self._call(self._cuda.cuStreamCreate, self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.stream = int(self._stream)
        self._events: tuple[Any, Any] | None = None  # around what is timed
        self._pinned = (0, 0)  # address and size of page-locked memory for downloads
        weakref.finalize(self, self._cuda.cuStreamDestroy, self._stream).atexit = False

    def allocate(self, nbytes: int) -> int:
        return int(self._run(self._cuda.cuMemAlloc, nbytes))

    def free(self, address: int) -> None:
        self._run(self._cuda.cuMemFree, address)

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        contiguous = np.ascontiguousarray(array)
        self._run(self._cuda.cuMemcpyHtoDAsync, address, contiguous.ctypes.data, contiguous.nbytes, self._stream)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        if array.nbytes > self._pinned[1]:
            self._pinned = (0, 0)
            self._pinned = (int(self._run(self._cuda.cuMemAllocHost, array.nbytes)), array.nbytes)
            weakref.finalize(self, self._cuda.cuMemFreeHost, self._pinned[0]).atexit = False
        self._run(self._cuda.cuMemcpyDtoHAsync, self._pinned[0], address, array.nbytes, self._stream)
        self.wait()
        ctypes.memmove(array.ctypes.data, self._pinned[0], array.nbytes)

    def address_of(self, array: npt.NDArray[Any]) -> int | None:
        return None

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        if not (width and height):
            return
        pieces = self._cuda.CUDA_MEMCPY2D()
        pieces.srcMemoryType = pieces.dstMemoryType = self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        pieces.srcDevice, pieces.srcPitch = source, source_pitch
        pieces.dstDevice, pieces.dstPitch = target, target_pitch
        pieces.WidthInBytes, pieces.Height = width, height
        self._run(self._cuda.cuMemcpy2DAsync, pieces, self._stream)

    def zero(self, address: int, nbytes: int) -> None:
        self._run(self._cuda.cuMemsetD8Async, address, 0, nbytes, self._stream)

    def wait(self) -> None:
        self._run(self._cuda.cuStreamSynchronize, self._stream)

    def time_ms(self, work: Callable[[], None]) -> float:
        """Milliseconds that the device takes for what `work` enqueues."""
        if self._events is None:
            self._events = (self._run(self._cuda.cuEventCreate, 0), self._run(self._cuda.cuEventCreate, 0))
        begin, end = self._events
        self._run(self._cuda.cuEventRecord, begin, self._stream)
        work()
        self._run(self._cuda.cuEventRecord, end, self._stream)
        self._run(self._cuda.cuEventSynchronize, end)
        return float(self._run(self._cuda.cuEventElapsedTime, begin, end))

    def free_bytes(self) -> int | None:
        free, _ = self._run(self._cuda.cuMemGetInfo)
        return int(free)

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` enqueues as a CUDA graph, without running it; None where it cannot be recorded."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # the library may allocate
        try:
            self._run(self._cuda.cuStreamBeginCapture, self._stream, mode)
            try:
                work()
            finally:
                recorded = self._run(self._cuda.cuStreamEndCapture, self._stream)
            graph = self._run(self._cuda.cuGraphInstantiate, recorded, 0)
            self._run(self._cuda.cuGraphDestroy, recorded)
        except MachineError as e:
            log.warning("calls run without a CUDA graph: %s", e)
            return None
        return graph

    def launch(self, graph: Any) -> None:
        """Enqueue a recorded graph."""
        self._run(self._cuda.cuGraphLaunch, graph, self._stream)

    def discard(self, graph: Any) -> None:
        """Give a recorded graph up."""
        self._run(self._cuda.cuGraphExecDestroy, graph)

    def _enter(self) -> None:
        """Make the GPU's context this thread's: a session may be made in one thread and used in another."""
        if not getattr(self._current, "set", False):
            self._call(self._cuda.cuCtxSetCurrent, self._context)
            self._current.set = True

    def _run(self, function: Any, *arguments: Any) -> Any:
        self._enter()
        return self._call(function, *arguments)

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call the driver: what it returns behind its error code."""
        code, *values = function(*arguments)
        if code == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfDeviceMemory
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            _, text = self._cuda.cuGetErrorString(code)
            reason = text.decode() if text else str(code)
            raise MachineError(f"{getattr(function, '__name__', 'CUDA')} failed: {reason}")
        return values[0] if len(values) == 1 else tuple(values)
