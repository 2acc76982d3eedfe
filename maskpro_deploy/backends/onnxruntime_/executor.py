"""A graph in onnxruntime on raw addresses of one device: outputs land where they are wanted, in place if need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.executor import TensorSpec
from maskpro_deploy.backends.memory import CPU_DEVICE, Device
from maskpro_deploy.backends.profiles import Profile, Shape

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}


class OnnxExecutor:
    """Runs an onnxruntime session on addresses of a device's memory; done when `run` returns. See `Executor`."""

    def __init__(self, session: Any, device: Device, profiles: Sequence[Profile] = ()) -> None:
        import onnxruntime

        self.providers: Sequence[str] = tuple(session.get_providers())
        self.profiles = profiles
        self.extra_outputs: Sequence[str] = ()  # names of further outputs of the graph that each run gives
        self.extra_values: list[npt.NDArray[Any]] = []  # these, of the last run
        self._session, self._device = session, device
        self._binding = session.io_binding()  # kept for calls that bind the same names
        self._bound: dict[str, tuple[int, Shape]] = {}  # what it was given last
        self._keeps = device.kind == CPU_DEVICE  # elsewhere onnxruntime may copy inputs where they are bound
        self._needed_only = onnxruntime.RunOptions()  # further outputs cost time only where they are asked for
        self._needed_only.only_execute_path_to_fetches = True
        tensors: dict[str, TensorSpec] = {}  # without outputs of a type that no bundle's graph has
        for values, is_input in ((session.get_inputs(), True), (session.get_outputs(), False)):
            for value in (v for v in values if v.type in _DTYPES):
                shape = tuple(d if isinstance(d, int) else -1 for d in value.shape or ())
                tensors[value.name] = TensorSpec(dtype=_DTYPES[value.type], shape=shape, is_input=is_input)
        self.tensors: Mapping[str, TensorSpec] = tensors
        self._binds = {name: (spec.is_input, np.dtype(spec.dtype)) for name, spec in tensors.items()}

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """See `Executor.run`; outputs without an address are not computed."""
        self._device.wait()  # onnxruntime has a stream of its own
        if self.extra_outputs or self._bound.keys() != addresses.keys():
            self._binding, self._bound = self._session.io_binding(), {}
        binding, kind = self._binding, self._device.kind
        wanted = {name: (address, shapes[name]) for name, address in addresses.items()}
        for name, (address, shape) in wanted.items():
            if self._keeps and self._bound.get(name) == (address, shape):
                continue  # a cache that is updated in place: half a millisecond for a hundred tensors
            is_input, dtype = self._binds[name]
            bind = binding.bind_input if is_input else binding.bind_output
            bind(name, kind, 0, dtype, shape, address)
        self._bound = {} if self.extra_outputs else wanted
        for name in self.extra_outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding, None if len(addresses) == len(self.tensors) else self._needed_only)
        if self.extra_outputs:
            self.extra_values = [value.numpy() for value in binding.get_outputs()[-len(self.extra_outputs) :]]
