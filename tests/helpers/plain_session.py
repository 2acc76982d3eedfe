"""The graph of the `cat` form fed with numpy arrays in the plainest way: what sessions are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskpro_deploy.backends.onnxruntime_.sessions import open_graph
from maskpro_deploy.backends.session import positions
from maskpro_deploy.manifest import Manifest


@dataclass(frozen=True)
class PlainCache:
    """Keys and values of all layers, each `# (B, H, P, D)`."""

    values: tuple[np.ndarray, ...]

    @property
    def batch(self):
        return self.values[0].shape[0]

    @property
    def length(self):
        return self.values[0].shape[2]

    def select(self, rows, trim=0):
        return PlainCache(tuple(a[list(rows), :, trim:] for a in self.values))

    def join(self, other):
        length = max(self.length, other.length)
        padded = [[np.pad(a, ((0, 0), (0, 0), (length - a.shape[2], 0), (0, 0))) for a in c.values] for c in (self, other)]
        return PlainCache(tuple(np.concatenate(pair) for pair in zip(*padded, strict=True)))


class PlainSession:
    """Runs a bundle's own graph, one call for one call."""

    def __init__(self, bundle: Path) -> None:
        manifest = Manifest.load(bundle)
        self.shape = manifest.model
        self._session = open_graph(bundle / manifest.graph.file, threads=1)
        self._outputs = [o.name for o in self._session.get_outputs() if o.name.startswith("present.")]

    def forward(self, tokens, cache=None, attention_mask=None):
        rows, new = tokens.shape
        if cache is None:
            empty = np.zeros((rows, self.shape.num_kv_heads, 0, self.shape.head_dim), np.float32)
            cache = PlainCache((empty,) * len(self._outputs))
        mask = np.ones((rows, cache.length + new), np.int64) if attention_mask is None else attention_mask
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions(mask, new)}
        names = (name.replace("present.", "past_key_values.") for name in self._outputs)
        feeds |= dict(zip(names, cache.values, strict=True))
        logits, *present = self._session.run(["logits", *self._outputs], feeds)
        return logits, PlainCache(tuple(present))

    def logits(self, tokens):
        return self.forward(tokens)[0]

    def greedy(self, prompt, count):
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(np.array([tokens]))[0, -1].argmax()))
        return tokens[len(prompt) :]
