"""Memory, events and graphs of the first GPU through the NVIDIA driver's own library: what timing an engine takes, no more.

The driver is there wherever a GPU is, so no CUDA package is needed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import MachineError

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: the library may allocate while it is recorded
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class Cuda:
    """The first GPU's primary context, which CUDA's runtime shares, with one stream. Use it as a context manager.

    Attributes:
        stream: handle of the stream in which everything runs.

    Raises:
        MachineError: there is no driver or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError as e:
            raise MachineError("there is no NVIDIA driver on this machine, so no engine can be timed.") from e
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self._device, self._stream = device, stream
        self._blocks: list[int] = []
        self._events = (self._event(), self._event())

    @property
    def stream(self) -> int:
        return int(self._stream.value or 0)

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:  # after an error calls would only fail again; the process ends, and its memory with it
            for address in self._blocks:
                self._call("cuMemFree_v2", ctypes.c_uint64(address))
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the driver.

        Raises:
            MachineError: naming the call and the driver's reason.
        """
        if code := getattr(self._lib, name)(*arguments):
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {code}"
            raise MachineError(f"the NVIDIA driver refuses {name}: {reason}")

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        return event

    def allocate(self, size: int) -> int:
        """Address of a new block, all zero, freed at the end.

        Raises:
            MachineError: there is not enough memory.
        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._blocks.append(address.value)
        self._call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(max(size, 1)))
        return address.value

    def upload(self, address: int, values: npt.NDArray[Any]) -> None:
        """Copy an array to the device."""
        values = np.ascontiguousarray(values)
        pointer = values.ctypes.data_as(ctypes.c_void_p)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), pointer, ctypes.c_size_t(values.nbytes))

    def wait(self) -> None:
        """Wait until the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def time_ms(self, work: Callable[[], None]) -> float:
        """Milliseconds that the device takes for what `work` puts into the stream."""
        begin, end = self._events
        self._call("cuEventRecord", begin, self._stream)
        work()
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
        return float(elapsed.value)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts into the stream as a CUDA graph; the result launches it.

        Raises:
            MachineError: it cannot be recorded.
        """
        graph, launchable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_RELAXED))
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(launchable), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return lambda: self._call("cuGraphLaunch", launchable, self._stream)
