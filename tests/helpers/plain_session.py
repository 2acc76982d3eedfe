"""The graph of the `cat` form fed with numpy arrays in the plainest way: what sessions are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskpro_deploy.backends.caches import Ints
from maskpro_deploy.backends.onnxruntime_.sessions import open_graph
from maskpro_deploy.backends.session import Floats, positions
from maskpro_deploy.manifest import Manifest


@dataclass(frozen=True)
class PlainCache:
    """Keys and values of all layers, each `# (B, H, P, D)`."""

    values: tuple[Floats, ...]

    @property
    def batch(self) -> int:
        return int(self.values[0].shape[0])

    @property
    def length(self) -> int:
        return int(self.values[0].shape[2])

    def select(self, rows: Sequence[int], trim: int = 0) -> PlainCache:
        return PlainCache(tuple(a[list(rows), :, trim:] for a in self.values))

    def join(self, other: PlainCache) -> PlainCache:
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

    def forward(
        self, tokens: Ints, cache: PlainCache | None = None, attention_mask: Ints | None = None
    ) -> tuple[Floats, PlainCache]:
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

    def logits(self, tokens: Ints) -> Floats:
        return self.forward(tokens)[0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(np.array([tokens]))[0, -1].argmax()))
        return tokens[len(prompt) :]
