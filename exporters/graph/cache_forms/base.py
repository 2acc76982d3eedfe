"""What the forms of the key/value cache have in common, and what an architecture needs of them.

Shapes: `B` batch, `S` new tokens, `H` heads, `D` head size, `L` slots of a cache of fixed length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from onnx import TensorProto

from maskpro_deploy.cache_forms import CacheForm
from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.rope_config import RopeConfig

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
        facts: its entry in the list of forms.
        flat: heads stay side by side, (B, S, H D), and are not split into (B, H, S, D).
        packed: q, k and v come as one value, and gate and up from one product: fewer and larger ones.
    """

    facts: ClassVar[CacheForm]
    flat: ClassVar[bool] = False
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
        """Whether attention applies this rotary embedding by itself; `rows` are those of its tables for the new tokens."""
        return False

    @abstractmethod
    def attend(self, graph: Graph, layer: int, q: str, k: str, v: str, name: str, *, rope: tuple[str, str] | None = None) -> str:
        """Attention of the new queries over past and new keys.  # (B, H, S, D) each -> (B, H, S, D)

        Args:
            graph: where the operators go.
            layer: its number.
            q: queries; where the form is packed, perhaps keys and values too.
            k: keys; "" if `q` holds them.
            v: values; "" if `q` holds them.
            name: path of the nodes.
            rope: cosines and sines, where the form turns q and k by itself.
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
