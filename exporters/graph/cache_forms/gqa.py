"""The `gqa` form: onnxruntime's own GroupQueryAttention, its fast form for long contexts.

The operator reads how many tokens of each row count from the attention mask, as onnxruntime-genai feeds it: 1 for every token
so far, 0 behind them. Rows of different lengths are padded on the right, and the next token of a row is written behind its
own last one. The cache may grow, or past and present may be one buffer (`past_present_share_buffer`).

The graph is for onnxruntime alone, so it takes what onnxruntime has: rotary embedding inside attention, the sum of a residual
and the norm behind it in one node, and, where no other form reads the same weights, one product for q, k and v and one for gate
and up.

Shapes: `B` batch, `S` new tokens, `P` past slots, `T` slots, `H` heads, `D` head size.
"""

from __future__ import annotations

from onnx import TensorProto, helper

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters.graph.builder import CONTRIB, Attribute, Dim, Graph
from maskpro_deploy.exporters.graph.cache_forms.base import KVForm
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.rope import RopeConfig

_HEAD_MULTIPLE = 8


class Form(KVForm):
    """The cache belongs to GroupQueryAttention."""

    facts = CACHE_FORMS["gqa"]
    flat = True

    def __init__(self, length: int, *, alone: bool = False) -> None:
        super().__init__(length, alone=alone)
        self.packed = alone

    def applies_rope(self, config: DecoderConfig, rope: RopeConfig | None, rows: str) -> bool:
        """The operator counts positions by itself, and takes tables of a multiple of 8 columns."""
        pairs = (rope.dim or config.head_dim) // 2 if rope is not None else 0
        return rows == "position_ids" and pairs > 0 and pairs % _HEAD_MULTIPLE == 0

    def finish(self, graph: Graph) -> None:
        join_sums_and_norms(graph)

    def _prepare(self, graph: Graph, config: DecoderConfig) -> None:
        if config.head_dim % _HEAD_MULTIPLE:
            raise InputError(
                f"--forms gqa: onnxruntime's operator takes heads of a multiple of {_HEAD_MULTIPLE}; "
                f"this model's have {config.head_dim}.\nExport the other forms."
            )
        self._present: list[Dim] = ["batch", config.num_kv_heads, "present", config.head_dim]
        counted = graph.op("ReduceSum", "attention_mask", graph.ints(1), name="/mask/counted", keepdims=0)  # (B,)
        last = graph.op("Sub", counted, graph.scalar(1), name="/mask/last")
        self._last = graph.op("Cast", last, name="/mask/last_int32", to=TensorProto.INT32)
        total = graph.op("Shape", "attention_mask", name="/mask/total", start=1, end=2)
        total = graph.op("Squeeze", total, graph.ints(0), name="/mask/total_scalar")
        self._total = graph.op("Cast", total, name="/mask/total_int32", to=TensorProto.INT32)

    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str, *, rope: tuple[str, str] | None = None) -> str:
        """(B, S, H D) each -> (B, S, H D)"""
        config = self._config
        past, present = ([f"{side}.{layer}.{kind}" for kind in ("key", "value")] for side in ("past_key_values", "present"))
        for output in present:
            graph.output(output, graph.element_type, self._present)
        settings: dict[str, Attribute] = {
            "num_heads": config.num_heads,
            "kv_num_heads": config.num_kv_heads,
            "scale": config.scale,
        }
        if (window := config.windows[layer]) is not None:
            settings["local_window_size"] = window
        if config.attention_softcap is not None:
            settings["softcap"] = config.attention_softcap
        if rope is not None:
            settings["do_rotary"] = 1
        inputs = (q, k, v, *past, self._last, self._total, *(rope or ()))
        return graph.op(
            "GroupQueryAttention", *inputs, name=f"{name}/attention", more_outputs=present, domain=CONTRIB, settings=settings
        )


def join_sums_and_norms(graph: Graph) -> None:
    """Each sum that a norm reads becomes one node with it: onnxruntime has a kernel for the two."""
    sums = {node.output[0]: node for node in graph.nodes if node.op_type == "Add" and not set(node.input) & graph.weights.keys()}
    joined = []
    for node in graph.nodes:
        if node.op_type != "RMSNormalization" or node.input[1] not in graph.weights:
            continue
        if (added := sums.pop(node.input[0], None)) is None:
            continue
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        inputs, outputs = [*added.input, node.input[1]], [node.output[0], "", "", added.output[0]]
        # where the sum was, because whatever reads it comes later
        added.CopyFrom(
            helper.make_node("SkipSimplifiedLayerNormalization", inputs, outputs, name=node.name, domain=CONTRIB, epsilon=epsilon)
        )
        joined.append(node)
    graph.nodes[:] = [node for node in graph.nodes if not any(node is gone for gone in joined)]
