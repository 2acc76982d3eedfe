"""A bundle's graph opened to be checked: a session as it is served, on the CPU, with a few calls that only checks make.

Shapes: `B` batch, `T` all tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.caches import Ints
from maskpro_deploy.backends.memory import HostDevice
from maskpro_deploy.backends.onnxruntime_.executor import OnnxExecutor
from maskpro_deploy.backends.onnxruntime_.sessions import REWRITE_ALL, REWRITE_BASIC, open_graph
from maskpro_deploy.backends.session import Floats, GraphSession
from maskpro_deploy.manifest import Graph, Manifest, ModelShape, safe_path

# constants are computed once, in the session's first second; nothing else of a graph with roundings is to be rewritten
_KEEP_ROUNDINGS = {"session.disable_quant_qdq": "1"}


class CheckedGraph(GraphSession):
    """A graph of a bundle in an onnxruntime session on the CPU."""

    def __init__(self, session: Any, shape: ModelShape, graph: Graph) -> None:
        device = HostDevice()
        self._onnx = OnnxExecutor(session, device)
        super().__init__(shape, graph, self._onnx, device)

    def values(self, tokens: Ints, names: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Further outputs of the graph for whole sequences.  # (B, T) -> (B, T, ...) each"""
        self._onnx.extra_outputs = tuple(names)
        try:
            self.forward(tokens)
        finally:
            self._onnx.extra_outputs = ()
        return self._onnx.extra_values

    def logits_together(self, longer: Sequence[int], shorter: Sequence[int]) -> tuple[Floats, Floats]:
        """Logits of two sequences in one padded batch, their last tokens in a second call.  # (T1, V), (T2, V)"""
        pad = len(longer) - len(shorter)
        tokens = np.asarray([list(longer), [0] * pad + list(shorter)], dtype=np.int64)
        mask = np.ones_like(tokens)
        mask[1, :pad] = 0
        head, cache = self.forward(tokens[:, :-1], None, mask[:, :-1])
        last, _ = self.forward(tokens[:, -1:], cache, mask)
        both = np.concatenate([head, last], axis=1)
        return both[0], both[1, pad:]


def open_model(bundle: Path, manifest: Manifest, graph: Graph | None = None) -> CheckedGraph:
    """Open one of a bundle's graphs; by default its own."""
    graph = graph if graph is not None else manifest.graph
    path = safe_path(bundle, graph.file)
    return model_of(str(path), path.parent, manifest, graph)


def model_of(
    model: str | bytes, folder: Path, manifest: Manifest, graph: Graph | None = None, *, rounded: bool = False
) -> CheckedGraph:
    """Open a graph given as a path or as bytes, with its data file in `folder`; `rounded`: it has roundings that must stay."""
    session = open_session(model, folder, rounded=rounded)
    return CheckedGraph(session, manifest.model, graph if graph is not None else manifest.graph)


def open_session(model: str | bytes, folder: Path | None = None, *, rounded: bool = False) -> Any:
    """An onnxruntime session on the CPU (see `model_of`); waiting threads sleep: the reference model needs the cores, too."""
    settings = dict(_KEEP_ROUNDINGS) if rounded else {}
    if isinstance(model, bytes) and folder is not None:
        settings["session.model_external_initializers_file_folder_path"] = str(folder)
    return open_graph(model, rewrite=REWRITE_BASIC if rounded else REWRITE_ALL, settings=settings)
