"""Memory of a device, seen through addresses, and blocks of it that are used again once nobody holds them.

A session that works on raw addresses (an engine in TensorRT's own runtime, a graph whose cache is updated in place) needs few
things of a device: memory, copies, and one queue in which everything happens in order. `HostDevice` is this machine's memory.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import MachineError

CPU_DEVICE = "cpu"  # `kind` of this machine's memory
_ALIGNMENT = 256  # bytes; what GPUs' allocators give, and more than vector instructions ask for


class OutOfDeviceMemory(Exception):
    """The device has no such block left."""


class Device(Protocol):
    """Memory and a queue of work on it. What is enqueued runs in order; `download` and `wait` wait for it."""

    name: str  # for messages
    kind: str  # "cpu" or "cuda"

    def allocate(self, nbytes: int) -> int:
        """The address of a new block; OutOfDeviceMemory if there is none of this size."""

    def free(self, address: int) -> None:
        """Give a block back, after the work that uses it."""

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy an array to the device; the array may change as soon as this returns."""

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the device, and wait for it."""

    def address_of(self, array: npt.NDArray[Any]) -> int | None:
        """The address of an array, if the device can write there and has done so when a call returns; else None."""

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copy `height` pieces of `width` bytes, each `pitch` bytes after the one before. The two places do not overlap."""

    def zero(self, address: int, nbytes: int) -> None:
        """Set bytes to 0."""

    def wait(self) -> None:
        """Wait until everything enqueued is done."""

    def free_bytes(self) -> int | None:
        """Memory that is free, where the device reports it."""


class HostDevice:
    """This machine's memory. Everything is done when the call returns."""

    name = "CPU"
    kind = CPU_DEVICE

    def __init__(self) -> None:
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}

    def allocate(self, nbytes: int) -> int:
        try:
            block = np.empty(nbytes + _ALIGNMENT, np.uint8)
        except MemoryError as e:
            raise OutOfDeviceMemory from e
        address = -(-block.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        del self._blocks[address]

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        contiguous = np.ascontiguousarray(array)
        ctypes.memmove(address, contiguous.ctypes.data, contiguous.nbytes)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def address_of(self, array: npt.NDArray[Any]) -> int | None:
        return int(array.ctypes.data)

    def copy(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        if width and height:
            _bytes_at(target, target_pitch, width, height)[:] = _bytes_at(source, source_pitch, width, height)

    def zero(self, address: int, nbytes: int) -> None:
        ctypes.memset(address, 0, nbytes)

    def wait(self) -> None:
        """Nothing is ever pending."""

    def free_bytes(self) -> int | None:
        return None


def _bytes_at(address: int, pitch: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Memory as an array.  # (height, width) bytes"""
    span = (ctypes.c_uint8 * ((height - 1) * pitch + width)).from_address(address)
    return np.ndarray((height, width), np.uint8, buffer=memoryview(span), strides=(pitch, 1))


class Block:
    """A piece of device memory of at least the size asked for, given back to its `Memory` once this object is gone."""

    __slots__ = ("__weakref__", "address", "nbytes")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes


class Memory:
    """Blocks of a device's memory.

    A block that nobody holds is kept and handed out again: two caches that take turns cost two allocations in all. Work is done
    in order, so a block may be used again before the work on it has run. Idle blocks go when they have been outgrown or memory is
    short.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._idle: dict[int, list[int]] = {}  # size -> addresses
        # gives back blocks that can be done without, before there is an error; held weakly, so that its owner may go
        self.on_shortage: weakref.WeakMethod[Callable[[], None]] | None = None
        weakref.finalize(self, _free_all, device, self._idle).atexit = False

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`, its content undefined; MachineError if the device does not have so much memory."""
        size = block_size(nbytes)
        if idle := self._idle.get(size):
            address = idle.pop()
        else:
            self._free_idle(lambda other: other < size)
            address = self._allocate(size)
        block = Block(address, size)
        weakref.finalize(block, self._give_back, address, size).atexit = False
        return block

    def _allocate(self, size: int) -> int:
        try:
            return self.device.allocate(size)
        except OutOfDeviceMemory:
            if self.on_shortage is not None and (give_back := self.on_shortage()) is not None:
                give_back()
            self._free_idle(lambda other: True)
        try:
            return self.device.allocate(size)
        except OutOfDeviceMemory:
            raise MachineError(
                f"the {self.device.name} has no memory left for {size / 1e6:.0f} MB of key/value cache and logits.\n"
                f"Give a smaller --max-num-seqs, --max-model-len or --max-cache-tokens."
            ) from None

    def _free_idle(self, which: Callable[[int], bool]) -> None:
        for size in [s for s in self._idle if which(s)]:
            for address in self._idle.pop(size):
                self.device.free(address)

    def _give_back(self, address: int, size: int) -> None:
        self._idle.setdefault(size, []).append(address)


def _free_all(device: Device, idle: dict[int, list[int]]) -> None:
    for addresses in idle.values():
        for address in addresses:
            device.free(address)


def block_size(nbytes: int) -> int:
    """The size of the block that holds `nbytes`: at most a quarter more, so that neighbouring sizes share blocks."""
    step = max(_ALIGNMENT, 1 << max(0, nbytes.bit_length() - 3))
    return max(1, -(-nbytes // step)) * step
