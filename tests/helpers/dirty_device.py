"""Sessions whose memory is full of NaN at first: what is read before it was written shows in every logit."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from maskpro_deploy.backends.memory import HostDevice
from maskpro_deploy.backends.onnxruntime_.executor import OnnxExecutor
from maskpro_deploy.backends.onnxruntime_.sessions import open_graph
from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.manifest import Manifest


class DirtyDevice(HostDevice):
    """New memory is full of NaN, as memory may be."""

    def allocate(self, nbytes: int) -> int:
        address = super().allocate(nbytes)
        ctypes.memset(address, 0xFF, nbytes)
        return address


def device_session(bundle: Path, form: str, profiles: Sequence[Profile] = (), memory: HostDevice | None = None) -> GraphSession:
    """A bundle's graph of a form in dirty memory."""
    manifest = Manifest.load(bundle)
    graph = next(g for g in (manifest.graph, *manifest.siblings) if g.form == form)
    memory = memory or DirtyDevice()
    executor = OnnxExecutor(open_graph(bundle / graph.file, threads=1), memory, profiles)
    return GraphSession(manifest.model, graph, executor, memory)
