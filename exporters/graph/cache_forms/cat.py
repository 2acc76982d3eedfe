"""The `cat` form: past keys and values come in, new ones are appended with Concat and go out.

Attention sees them under an explicit boolean mask. This is the form that onnxruntime and onnxruntime-genai run and that
TensorRT parses (it refuses Attention with a cache of its own). Rows of different lengths are padded on the left.

Shapes: `B` batch, `S` new tokens, `P` past tokens, `T = P + S`, `H` heads, `D` head size.
"""

from __future__ import annotations

from onnx import TensorProto

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.cache_forms.base import KVForm, add_attention, limit_to_window
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig


class Form(KVForm):
    """The cache grows by Concat."""

    facts = CACHE_FORMS["cat"]

    def _prepare(self, graph: Graph, config: DecoderConfig) -> None:
        """Who sees whom, as bool (B, 1, S, T), for each window.

        The new token in slot s sees slot t if t <= s, t > s - window and t is no padding.
        A token always sees itself, padding too: what Attention yields for a row without any visible slot is not defined
        (NaN in some runtimes), and it would reach the real tokens through the cache.
        """
        self._present: list[Dim] = ["batch", config.num_kv_heads, "total", config.head_dim]
        new = graph.op("Shape", "input_ids", name="/mask/new", start=1, end=2)  # [S]
        total = graph.op("Shape", "attention_mask", name="/mask/total", start=1, end=2)  # [T]
        new, total = (graph.op("Squeeze", x, graph.ints(0), name=f"{x.removesuffix('/out')}_scalar") for x in (new, total))
        past = graph.op("Sub", total, new, name="/mask/past")
        one = graph.scalar(1)
        slots = graph.op("Range", graph.scalar(0), total, one, name="/mask/slots")  # (T,)
        rows = graph.op("Range", past, total, one, name="/mask/rows")  # (S,)
        column = graph.op("Unsqueeze", rows, graph.ints(1), name="/mask/column")  # (S, 1)
        causal = graph.op("LessOrEqual", slots, column, name="/mask/causal")  # (S, T)
        itself = graph.op("Equal", slots, column, name="/mask/itself")  # (S, T)
        counts = graph.op("Cast", "attention_mask", name="/mask/counts", to=TensorProto.BOOL)  # (B, T)
        counts = graph.op("Unsqueeze", counts, graph.ints(1, 2), name="/mask/counts_4d")  # (B, 1, 1, T)
        visible = graph.op("Or", counts, itself, name="/mask/visible")  # (B, 1, S, T)
        self._masks = {}
        for window in dict.fromkeys(config.windows):
            near = causal if window is None else limit_to_window(graph, causal, slots, column, window)
            name = "mask" if window is None else f"mask_{window}"
            self._masks[window] = graph.op("And", visible, near, name=f"/mask/and_{window or 'all'}", output=name)

    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str, *, rope: tuple[str, str] | None = None) -> str:
        present = []
        for kind, new in (("key", k), ("value", v)):
            joined = f"present.{layer}.{kind}"
            graph.op("Concat", f"past_key_values.{layer}.{kind}", new, name=f"{name}/cat_{kind}", output=joined, axis=2)
            graph.output(joined, graph.element_type, self._present)
            present.append(joined)
        return add_attention(graph, self._config, q, present[0], present[1], self._masks[self._config.windows[layer]], name)
