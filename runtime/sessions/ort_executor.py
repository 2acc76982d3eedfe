"""A graph in onnxruntime on raw addresses of this machine's memory: outputs land where they are wanted, in place if need be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskpro_deploy.runtime.sessions.executor import Profile, Shape, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}


class OrtExecutor:
    """Runs a session of onnxruntime's CPU provider.

    Args:
        session: the session.
    """

    profiles: Sequence[Profile] = ()

    def __init__(self, session: Any) -> None:
        self.name = str(session.get_providers()[0])
        self._session = session
        tensors: dict[str, TensorSpec] = {}
        for values, is_input in ((session.get_inputs(), True), (session.get_outputs(), False)):
            for value in values:
                shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
                tensors[value.name] = TensorSpec(dtype=_DTYPES[value.type], shape=shape, is_input=is_input)
        self.tensors: Mapping[str, TensorSpec] = tensors

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """See `Executor.run`; done when it returns."""
        binding = self._session.io_binding()
        for name, spec in self.tensors.items():
            bind = binding.bind_input if spec.is_input else binding.bind_output
            bind(name, "cpu", 0, np.dtype(spec.dtype), shapes[name], addresses[name])
        self._session.run_with_iobinding(binding)
