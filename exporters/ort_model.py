"""A bundle run by onnxruntime in the plainest way, to check it: no batching, no buffers kept, no sampling.

Shapes: `B` batch, `S` new tokens, `T` all tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.graph import DTYPES
from maskpro_deploy.manifest import Manifest, safe_path


@dataclass(slots=True)
class State:
    """What a sequence in progress remembers: the attention mask and the keys and values so far."""

    mask: npt.NDArray[np.int64]
    cache: dict[str, npt.NDArray[np.generic]]


class OrtModel:
    """A bundle's graph in an onnxruntime session on the CPU.

    Args:
        bundle: the bundle's folder.
        manifest: its manifest.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        import onnxruntime

        self._shape, self._dtype = manifest.model, DTYPES[manifest.graph.dtype][1]
        path = safe_path(bundle, manifest.graph.file)
        options = onnxruntime.SessionOptions()
        # waiting threads sleep: a comparison shares the machine with the reference model
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def start(self, batch: int) -> State:
        """An empty cache for `batch` sequences."""
        shape = (batch, self._shape.num_kv_heads, 0, self._shape.head_dim)
        layers = range(self._shape.num_layers)
        cache = {f"past_key_values.{i}.{kind}": np.zeros(shape, self._dtype) for i in layers for kind in ("key", "value")}
        return State(mask=np.zeros((batch, 0), np.int64), cache=cache)

    def run(
        self, tokens: npt.NDArray[np.int64], state: State, mask: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Feed new tokens and advance `state`.  # (B, S) -> (B, S, V)

        Args:
            tokens: (B, S).
            state: changed in place.
            mask: (B, T) over past and new tokens; by default all new ones count.
        """
        state.mask = mask if mask is not None else np.concatenate([state.mask, np.ones_like(tokens)], axis=1)
        positions = np.maximum(state.mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :]
        feeds = {"input_ids": tokens, "attention_mask": state.mask, "position_ids": positions, **state.cache}
        results = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        logits: npt.NDArray[np.float32] = results.pop("logits")
        state.cache = {name.replace("present.", "past_key_values."): value for name, value in results.items()}
        return logits

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits of whole sequences.  # (B, T) -> (B, T, V)"""
        return self.run(tokens, self.start(len(tokens)))

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, one after another."""
        state, step, tokens = self.start(1), np.asarray([list(prompt)], dtype=np.int64), []
        for _ in range(count):
            tokens.append(int(self.run(step, state)[0, -1].argmax()))
            step = np.asarray([[tokens[-1]]], dtype=np.int64)
        return tokens
