"""Forms of the key/value cache in the graph.

The transformer is described once (`llama.py`); how it remembers the past is a form. So far there is `cat`: past keys and
values come in, new ones are appended with Concat and go out, and Attention sees them under an explicit boolean mask. This is
the form that onnxruntime and onnxruntime-genai run and that TensorRT parses (it refuses Attention with a cache of its own).

Shapes: `B` batch, `S` new tokens, `P` past tokens, `T = P + S`, `H` heads, `D` head size.
"""

from __future__ import annotations

from typing import Protocol

from onnx import TensorProto

from maskpro_deploy.exporters.graph import Dim, Graph
from maskpro_deploy.exporters.model_config import DecoderConfig


class KVForm(Protocol):
    """What a template needs of a cache form."""

    name: str
    opset: int

    def begin(self, graph: Graph, config: DecoderConfig) -> None:
        """Declare what all layers share: the cache inputs and the mask."""

    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str) -> str:
        """Attention of the new queries over past and new keys.  # (B, H, S, D) each -> (B, H, S, D)"""


class Cat:
    """The cache grows by Concat."""

    name = "cat"
    opset = 23
    _MASK = "mask"

    def begin(self, graph: Graph, config: DecoderConfig) -> None:
        kv: list[Dim] = ["batch", config.num_kv_heads, "past", config.head_dim]
        for layer in range(config.num_layers):
            graph.input(f"past_key_values.{layer}.key", graph.element_type, kv)
            graph.input(f"past_key_values.{layer}.value", graph.element_type, kv)
        self._mask(graph)
        self._present: list[Dim] = ["batch", config.num_kv_heads, "total", config.head_dim]

    def _mask(self, graph: Graph) -> None:
        """Who sees whom, as bool (B, 1, S, T): the new token in slot s sees slot t if t <= s and t is no padding.

        A token always sees itself, padding too: what Attention yields for a row without any visible slot is not defined
        (NaN in some runtimes), and it would reach the real tokens through the cache.
        """
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
        graph.op("And", visible, causal, name="/mask/and", output=self._MASK)

    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str) -> str:
        present = []
        for kind, new in (("key", k), ("value", v)):
            joined = f"present.{layer}.{kind}"
            graph.op("Concat", f"past_key_values.{layer}.{kind}", new, name=f"{name}/cat_{kind}", output=joined, axis=2)
            graph.output(joined, graph.element_type, self._present)
            present.append(joined)
        return graph.op("Attention", q, *present, self._MASK, name=f"{name}/attention", is_causal=0)


FORMS: dict[str, type[KVForm]] = {"cat": Cat}
