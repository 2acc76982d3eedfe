"""What the forms of the key/value cache have in common, and what an architecture needs of them.

Shapes: `B` batch, `S` new tokens, `H` heads, `D` head size.
"""

from __future__ import annotations

from typing import Protocol

from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.rope_config import RopeConfig


class Plain:
    """Forms of standard operators: attention gets turned heads, one product each."""

    flat = False
    packed = False

    def turns(self, config: DecoderConfig, rope: RopeConfig | None, rows: str) -> bool:
        return False

    def finish(self, graph: Graph) -> None:
        pass


class KVForm(Protocol):
    """What a template needs of a cache form.

    Attributes:
        name: its name in `--forms` and the manifest.
        opset: the version of the standard operators that it needs.
        flat: heads stay side by side, (B, S, H D), and are not split into (B, H, S, D).
        packed: q, k and v come as one value, and gate and up from one product: fewer and larger ones.
    """

    name: str
    opset: int
    flat: bool
    packed: bool

    def begin(self, graph: Graph, config: DecoderConfig) -> None:
        """Declare what all layers share: position ids, the cache inputs and the masks."""

    def turns(self, config: DecoderConfig, rope: RopeConfig | None, rows: str) -> bool:
        """Whether attention applies this rotary embedding by itself; `rows` are those of its tables for the new tokens."""

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

    def finish(self, graph: Graph) -> None:
        """What is left to do once all nodes are there."""


def declare_cache(graph: Graph, config: DecoderConfig, length: Dim) -> None:
    """The cache inputs of all layers."""
    shape: list[Dim] = ["batch", config.num_kv_heads, length, config.head_dim]
    for layer in range(config.num_layers):
        for kind in ("key", "value"):
            graph.input(f"past_key_values.{layer}.{kind}", graph.element_type, shape)


def within(graph: Graph, causal: str, slots: str, column: str, window: int) -> str:
    """`causal`, but only as far back as the window: t > s - window."""
    path = f"/mask/window_{window}"
    first = graph.op("Sub", column, graph.scalar(window), name=f"{path}/first")
    near = graph.op("Greater", slots, first, name=f"{path}/near")
    return graph.op("And", causal, near, name=f"{path}/and")
