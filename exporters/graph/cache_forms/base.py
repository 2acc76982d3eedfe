"""What the forms of the key/value cache have in common, and what an architecture needs of them.

Shapes: `B` batch, `S` new tokens, `T` slots of the cache, `L` those of one of fixed length, `H` heads, `G` key/value heads,
`D` head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import ClassVar

from onnx import TensorProto

from maskpro_deploy.cache_forms import CACHE_FORMS, CacheForm
from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.rope import RopeConfig

_INPUT_SHAPES: dict[str, list[Dim]] = {
    "attention_mask": ["batch", "total"],
    "position_ids": ["batch", "new"],
    "write_indices": ["batch"],
}


class KVForm(ABC):
    """The operators of one form of the cache in one graph.

    Args:
        length: `L`, for forms that fix it.
        alone: no other form reads the same data file, so weights may be stored as this form likes them best.

    Attributes:
        packed: q, k and v come as one value, and gate and up from one product: fewer and larger ones.
    """

    facts: ClassVar[CacheForm]  # its entry in the list of forms
    flat: ClassVar[bool] = False  # heads stay side by side, (B, S, H D), and are not split into (B, H, S, D)
    packed = False

    def __init__(self, length: int, *, alone: bool = False) -> None:
        self._length = length

    def begin(self, graph: Graph, config: DecoderConfig) -> None:
        """Declare what all layers share: position ids, the cache inputs and the masks."""
        self._config = config
        declare_inputs(graph, config, self.facts, self._length)
        self._prepare(graph, config)

    @abstractmethod
    def _prepare(self, graph: Graph, config: DecoderConfig) -> None:
        """Make the values that attention reads in all layers, such as masks."""

    def applies_rope(self, config: DecoderConfig, rope: RopeConfig | None, rows: str) -> bool:
        """Whether attention applies this rotary embedding itself; `rows` are those of its tables for the new tokens."""
        return False

    @abstractmethod
    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str, *, rope: tuple[str, str] | None = None) -> str:
        """Attention of the new queries over past and new keys.  # (B, H, S, D) each -> (B, H, S, D)

        Nodes go into `graph` under the path `name`. Where the form is packed, `q` may hold keys and values too; `k` and `v` are
        then empty. `rope` holds cosines and sines, where the form rotates q and k itself.
        """

    def finish(self, graph: Graph) -> None:  # noqa: B027 (most forms have nothing left to do)
        """What is left to do once all nodes are there."""


def declare_inputs(graph: Graph, config: DecoderConfig, form: CacheForm, length: int) -> None:
    """The inputs of a form besides the tokens: its own, and the cache of all layers."""
    for name in form.inputs:
        graph.input(name, TensorProto.INT64, _INPUT_SHAPES[name])
    shape: list[Dim] = ["batch", config.num_kv_heads, "past" if form.grows else length, config.head_dim]
    for layer in range(config.num_layers):
        for kind in ("key", "value"):
            graph.input(f"past_key_values.{layer}.{kind}", graph.element_type, shape)


def limit_to_window(graph: Graph, causal: str, slots: str, column: str, window: int) -> str:
    """`causal`, but only as far back as the window: t > s - window."""
    path = f"/mask/window_{window}"
    first = graph.op("Sub", column, graph.scalar(window), name=f"{path}/first")
    near = graph.op("Greater", slots, first, name=f"{path}/near")
    return graph.op("And", causal, near, name=f"{path}/and")


def add_attention(graph: Graph, config: DecoderConfig, q: str, k: str, v: str, mask: str, name: str) -> str:
    """Attention under a mask that is a part of the graph.  # (B, H, S, D), (B, G, T, D) twice -> (B, H, S, D)

    One Attention node where runtimes have a kernel for it. With a softcap it is spelled out: TensorRT and onnxruntime's CUDA
    kernels refuse the attribute. The mask is true where a token may look, (B, 1, S, T).
    """
    if config.attention_softcap is None:
        return graph.op("Attention", q, k, v, mask, name=f"{name}/attention", is_causal=0, scale=config.scale)
    heads, groups, cap = config.num_heads, config.num_kv_heads, config.attention_softcap
    # the queries that share a key head lie one below the other: one product for all of them, no copies of the keys
    folded = graph.op("Reshape", q, graph.ints(0, groups, -1, config.head_dim), name=f"{name}/fold")  # (B, G, H/G S, D)
    turned = graph.op("Transpose", k, name=f"{name}/keys", perm=[0, 1, 3, 2])  # (B, G, D, T)
    scores = graph.op("MatMul", folded, turned, name=f"{name}/scores")
    scores = graph.op("Mul", scores, graph.real(config.scale / cap), name=f"{name}/scale")
    scores = graph.op("Mul", graph.op("Tanh", scores, name=f"{name}/tanh"), graph.real(cap), name=f"{name}/cap")
    scores = graph.op("Reshape", scores, graph.ints(0, heads, -1, 0), name=f"{name}/by_head")  # (B, H, S, T)
    scores = graph.op("Where", mask, scores, graph.lowest(), name=f"{name}/masked")
    shares = graph.op("Softmax", scores, name=f"{name}/softmax", axis=-1)
    shares = graph.op("Reshape", shares, graph.ints(0, groups, -1, 0), name=f"{name}/by_group")
    mixed = graph.op("MatMul", shares, v, name=f"{name}/mix")  # (B, G, H/G S, D)
    return graph.op("Reshape", mixed, graph.ints(0, heads, -1, config.head_dim), name=f"{name}/unfold")


def make_form(name: str, length: int, *, alone: bool = False) -> KVForm:
    """The operators of a form, for one graph (see `KVForm`): class `Form` of the file of its name in this room."""
    form: KVForm = import_module(f"{__package__}.{CACHE_FORMS[name].name}").Form(length, alone=alone)
    return form
