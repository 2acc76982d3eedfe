"""A bundle's graph run by onnxruntime in the plainest way, to check it: no batching, no buffers kept, no sampling.

Each form of the cache wants its own inputs; `open_model` gives the class that feeds them.

Shapes: `B` batch, `S` new tokens, `T` all tokens, `L` slots of a cache of fixed length, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.graph.builder import DTYPES
from maskpro_deploy.manifest import Graph, Manifest, ModelShape, safe_path

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class State:
    """What sequences in progress remember.

    Attributes:
        mask: 1 where a token so far counts.  # (B, T)
        cache: the cache inputs of the next call.
    """

    mask: Ints
    cache: dict[str, npt.NDArray[np.generic]]


class OrtModel:
    """A graph with a growing cache and padding on the left (`cat`), in an onnxruntime session on the CPU.

    Args:
        session: the session.
        shape: the model's sizes.
        graph: the graph's entry in the manifest.
        dtype: float type of its cache.
    """

    def __init__(self, session: Any, shape: ModelShape, graph: Graph, dtype: str) -> None:
        import onnxruntime

        self._session, self._shape, self._graph = session, shape, graph
        self._dtype = DTYPES[dtype][1]
        named = [output.name for output in session.get_outputs()]
        self._outputs = [name for name in named if name == "logits" or name.startswith("present.")]
        self._needed_only = onnxruntime.RunOptions()  # further outputs cost time only where they are asked for
        self._needed_only.only_execute_path_to_fetches = True

    def start(self, batch: int) -> State:
        """An empty cache for `batch` sequences."""
        shape = (batch, self._shape.num_kv_heads, self._graph.length or 0, self._shape.head_dim)
        layers = range(self._shape.num_layers)
        cache = {f"past_key_values.{i}.{kind}": np.zeros(shape, self._dtype) for i in layers for kind in ("key", "value")}
        return State(mask=np.zeros((batch, 0), np.int64), cache=cache)

    def run(self, tokens: Ints, state: State, mask: Ints | None = None) -> Floats:
        """Feed new tokens and advance `state`.  # (B, S) -> (B, S, V)

        Args:
            tokens: (B, S).
            state: changed in place.
            mask: (B, T) over past and new tokens; by default all new ones count.
        """
        state.mask = mask if mask is not None else np.concatenate([state.mask, np.ones_like(tokens)], axis=1)
        return self._call({"input_ids": tokens, **self._inputs(tokens.shape[1], state), **state.cache}, state)

    def _inputs(self, new: int, state: State) -> dict[str, Ints]:
        """What the form wants beside tokens and cache."""
        positions = np.maximum(state.mask.cumsum(axis=1) - 1, 0)[:, -new:]
        return {"attention_mask": state.mask, "position_ids": positions}

    def _call(self, feeds: dict[str, npt.NDArray[Any]], state: State) -> Floats:
        results = dict(zip(self._outputs, self._session.run(self._outputs, feeds, self._needed_only), strict=True))
        logits: Floats = results.pop("logits")
        state.cache = {name.replace("present.", "past_key_values."): value for name, value in results.items()}
        return logits

    def values(self, tokens: Ints, names: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Further outputs of the graph for whole sequences.  # (B, T) -> (B, T, ...) each"""
        state = self.start(len(tokens))
        state.mask = np.ones_like(tokens)
        feeds = {"input_ids": tokens, **self._inputs(tokens.shape[1], state), **state.cache}
        found: list[npt.NDArray[Any]] = self._session.run(list(names), feeds, self._needed_only)
        return found

    def logits(self, tokens: Ints) -> Floats:
        """Logits of whole sequences.  # (B, T) -> (B, T, V)"""
        return self.run(tokens, self.start(len(tokens)))

    def pair(self, longer: Sequence[int], shorter: Sequence[int]) -> tuple[Floats, Floats]:
        """Logits of two sequences in one padded batch, their last tokens in a second call.  # (T1, V), (T2, V)"""
        pad = len(longer) - len(shorter)
        tokens = np.asarray([list(longer), [0] * pad + list(shorter)], dtype=np.int64)
        mask = np.ones_like(tokens)
        mask[1, :pad] = 0
        state = self.start(2)
        first = self.run(tokens[:, :-1], state, mask[:, :-1])
        both = np.concatenate([first, self.run(tokens[:, -1:], state, mask)], axis=1)
        return both[0], both[1, pad:]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, one after another."""
        state, step, tokens = self.start(1), np.asarray([list(prompt)], dtype=np.int64), []
        for _ in range(count):
            tokens.append(int(self.run(step, state)[0, -1].argmax()))
            step = np.asarray([[tokens[-1]]], dtype=np.int64)
        return tokens


class RightPadded(OrtModel):
    """A graph whose rows begin at slot 0 and are padded on the right (`gqa`)."""

    def _inputs(self, new: int, state: State) -> dict[str, Ints]:
        counted = state.mask.sum(axis=1, keepdims=True)  # (B, 1)
        fresh = state.mask.shape[1] == new
        positions = np.arange(new)[None] + (np.zeros_like(counted) if fresh else counted - new)
        return {"attention_mask": state.mask, "position_ids": positions}

    def pair(self, longer: Sequence[int], shorter: Sequence[int]) -> tuple[Floats, Floats]:
        pad = len(longer) - len(shorter)
        head = np.asarray([list(longer[:-1]), list(shorter[:-1]) + [0] * pad], dtype=np.int64)
        mask = np.ones((2, len(longer)), np.int64)
        mask[1, len(shorter) :] = 0
        prompt_mask = np.ones_like(head)
        prompt_mask[1, len(shorter) - 1 :] = 0
        state = self.start(2)
        first = self.run(head, state, prompt_mask)
        last = self.run(np.asarray([[longer[-1]], [shorter[-1]]], dtype=np.int64), state, mask)
        return np.concatenate([first[0], last[0]]), np.concatenate([first[1, : len(shorter) - 1], last[1]])


class FixedCache(RightPadded):
    """A graph with a cache of fixed length that is written at given slots (`static`)."""

    def _inputs(self, new: int, state: State) -> dict[str, Ints]:
        positions = super()._inputs(new, state)["position_ids"]
        return {"position_ids": positions, "write_indices": np.ascontiguousarray(positions[:, 0])}


_CLASSES = {"cat": OrtModel, "gqa": RightPadded, "static": FixedCache}


def open_model(bundle: Path, manifest: Manifest, graph: Graph | None = None) -> OrtModel:
    """Open a graph of a bundle.

    Args:
        bundle: the bundle's folder.
        manifest: its manifest.
        graph: one of its graphs; by default its own.
    """
    graph = graph if graph is not None else manifest.graph
    path = safe_path(bundle, graph.file)
    return model_of(str(path), path.parent, manifest, graph)


def model_of(
    model: str | bytes, folder: Path, manifest: Manifest, graph: Graph | None = None, *, rounded: bool = False
) -> OrtModel:
    """Open a graph given as a path or as bytes.

    Args:
        model: path or content of the ONNX file.
        folder: where the data file lies.
        manifest: the bundle's manifest.
        graph: the graph's entry in it; by default the bundle's own.
        rounded: it was rewritten to fp32 with roundings (`half_precision`), which have to stay.
    """
    graph = graph if graph is not None else manifest.graph
    session = open_session(model, folder, rounded=rounded)
    return _CLASSES[graph.form](session, manifest.model, graph, "fp32" if rounded else graph.dtype)


def open_session(model: str | bytes, folder: Path | None = None, *, rounded: bool = False) -> Any:
    """An onnxruntime session on the CPU (see `model_of`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if isinstance(model, bytes) and folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.log_severity_level = 3  # its warnings are about its own graph rewriting
    # waiting threads sleep: a comparison shares the machine with the reference model
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if rounded:  # constants are computed once, in the session's first second; nothing else is to be rewritten
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
