"""The `static` form: a cache of fixed length that comes in and goes out whole, with new tokens written at `write_indices`.

A runtime can bind one buffer as input and output and update it in place; TensorRT does (its KV cache layer), and every step
has the same shapes, as CUDA graphs want. Each row begins at slot 0 and writes at its own index, so rows of different lengths
need no padding between their tokens. A token sees the slots up to its own position: what lies behind, from padding at the end
of a short prompt, is overwritten before anything can see it.

The mask is additive, in the graph's float type: TensorRT makes two kernels of Attention with it and ten with a boolean one. It
is explicit, because `is_causal` and `nonpad_kv_seqlen` mean other things in other runtimes once there is a cache.

Shapes: `B` batch, `S` new tokens, `L` slots of the cache, `H` heads, `D` head size.
"""

from __future__ import annotations

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.cache_forms.base import KVForm, add_attention, limit_to_window
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig


class Form(KVForm):
    """The cache has a fixed length."""

    facts = CACHE_FORMS["static"]

    def _prepare(self, graph: Graph, config: DecoderConfig) -> None:
        self._shape: list[Dim] = ["batch", config.num_kv_heads, self._length, config.head_dim]
        rows = graph.op("Unsqueeze", "position_ids", graph.ints(1, 3), name="/mask/rows")  # (B, 1, S, 1)
        slots = graph.op("Range", *(graph.scalar(i) for i in (0, self._length, 1)), name="/mask/slots")  # (L,)
        causal = graph.op("LessOrEqual", slots, rows, name="/mask/causal")  # (B, 1, S, L)
        self._masks = {}
        for window in dict.fromkeys(config.windows):
            near = causal if window is None else limit_to_window(graph, causal, slots, rows, window)
            if config.attention_softcap is None:
                path = f"/mask/additive_{window or 'all'}"
                near = graph.op("Where", near, graph.real(0.0), graph.lowest(), name=path)
            self._masks[window] = near

    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str, *, rope: tuple[str, str] | None = None) -> str:
        present = []
        for kind, new in (("key", k), ("value", v)):
            past, written = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            graph.op("TensorScatter", past, new, "write_indices", name=f"{name}/write_{kind}", output=written, axis=2)
            graph.output(written, graph.element_type, self._shape)
            present.append(written)
        return add_attention(graph, self._config, q, present[0], present[1], self._masks[self._config.windows[layer]], name)
