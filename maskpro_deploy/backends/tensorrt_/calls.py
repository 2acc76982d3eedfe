"""One call of an engine at fixed shapes and addresses, which becomes a single launch once it repeats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.profiles import Shape
from maskpro_deploy.errors import MachineError


class BoundCall:
    """A call whose context belongs to it alone: bound once, run, recorded as a CUDA graph the second time, launched from then on.

    Recording asks for a run with the same shapes and addresses before, and changing a context makes graphs recorded from it
    undefined; so nothing else may use the context.

    Args:
        context: an execution context that has taken its profile.
        inputs: names of all inputs.
        shapes, addresses: of all inputs at least, and of all inputs and outputs.
        device: the GPU.
        why: gives the library's last error.
        can_record: the library lets its calls be recorded.

    Attributes:
        can_record: as given; False once the driver could not record it, and it is enqueued each time then.

    Raises:
        MachineError: the engine does not take the shapes or addresses.
    """

    def __init__(
        self,
        context: Any,
        inputs: Sequence[str],
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        device: CudaDevice,
        why: Callable[[], str],
        can_record: bool = True,
    ) -> None:
        self._context, self._device, self._why = context, device, why
        self._ran = False
        self._graph: Any = None
        self.can_record = can_record
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
