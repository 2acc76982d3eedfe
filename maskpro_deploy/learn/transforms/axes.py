"""Which channels of a model can change places together: those of the residual stream, of every MLP, of every key/value head.

They are found by what layers are called, as every architecture of transformers calls them; what a name says is proved by the
logits later (see `search`), so that a name that means something else costs an attempt and no result.

Shapes: `O` outputs, `C` inputs of a layer; `K` parts of `D` channels, see `maskpro_deploy.transform`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from maskpro_deploy.learn.model.model import LearningModel

# what a layer reads from the residual stream or writes to it, by the last part of its name
_READERS = frozenset({
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "q_a_proj", "kv_a_proj_with_mqa", "gate_proj",
    "up_proj", "gate_up_proj", "fc1", "c_fc", "fc_in", "dense_h_to_4h", "w1", "w3", "gate", "router", "shared_expert_gate",
    "project_out",
})  # fmt: skip
_WRITERS = frozenset({
    "o_proj", "out_proj", "dense", "down_proj", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "w2", "project_in",
})  # fmt: skip
_NORMS_OF_HEADS = frozenset({"q_norm", "k_norm", "q_layernorm", "k_layernorm", "v_norm"})
_MLPS: tuple[tuple[tuple[str, ...], str], ...] = (  # what writes an MLP's hidden channels, and what reads them
    (("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"), (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"), (("fc1",), "fc2"), (("c_fc",), "c_proj"), (("fc_in",), "fc_out"), (("dense_h_to_4h",), "dense_4h_to_h"),
)  # fmt: skip
_ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Channels that can change places, `parts` (K) times `size` (D) of them."""

    name: str
    parts: int
    size: int
    places: tuple[tuple[str, int], ...]  # parameters of the model, with the axis of these channels in it
    readers: tuple[str, ...]  # weights (O, C) whose inputs they are


def find_residual(model: LearningModel) -> list[Axis]:
    """The residual stream; none where some layer is not known to read or write it."""
    head = model.model.get_output_embeddings()
    places: list[tuple[str, int]] = []
    for name, module in model.model.named_modules():
        own = _list_residual(name, module, head)
        if own is None:
            return []
        places += own
    readers = tuple(name for name, axis in places if axis == 1)
    return [Axis(name="residual", parts=1, size=head.in_features, places=tuple(places), readers=readers)]


def _list_residual(name: str, module: nn.Module, head: nn.Linear) -> list[tuple[str, int]] | None:
    """Where a module's own parameters have the channels of the residual stream; None where that is not known."""
    leaf, width = name.rpartition(".")[2], head.in_features
    if isinstance(module, nn.Linear):
        if width not in module.weight.shape:
            return []
        reads = module is head or leaf in _READERS
        if not reads and leaf not in _WRITERS:
            return None
        if module.weight.shape[1 if reads else 0] != width:
            return []
        return [(f"{name}.weight", 1)] if reads else list(_list_outputs(name, module))
    if isinstance(module, nn.Embedding):
        return [(f"{name}.weight", 1)] if module.embedding_dim == width else []
    own = {n: p for n, p in module.named_parameters(recurse=False) if width in p.shape}
    if leaf in _NORMS_OF_HEADS:
        return []
    if leaf in _READERS:  # a router
        return [(f"{name}.{n}", p.dim() - 1) for n, p in own.items()]
    return [(f"{name}.{n}", 0) for n in own] if all(p.dim() == 1 for p in own.values()) else None


def find_mlps(model: LearningModel) -> list[Axis]:
    """The hidden channels of every MLP, and of every expert."""
    found = []
    for name, module in model.model.named_modules():
        for writers, reader in _MLPS:
            first = [child for w in writers if (child := _find_layer(module, w)) is not None]
            last = _find_layer(module, reader)
            if last is None or len(first) != len(writers) or any(y.out_features % last.in_features for y in first):
                continue
            places = [place for w, y in zip(writers, first, strict=True) for place in _list_outputs(f"{name}.{w}", y)]
            weight = f"{name}.{reader}.weight"
            axis = Axis(name=f"mlp.{name}", parts=1, size=last.in_features, places=(*places, (weight, 1)), readers=(weight,))
            found.append(axis)
            break
    return found


def find_heads(model: LearningModel) -> list[Axis]:
    """The channels of every key/value head between the value and the output projection."""
    config = model.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    found = []
    for name, module in model.model.named_modules():
        value = _find_layer(module, "v_proj")
        for leaf in _ATTENTION_OUTPUTS:
            output = _find_layer(module, leaf)
            if value is None or output is None or not heads or value.out_features % heads:
                continue
            if output.in_features % value.out_features:
                continue
            weight = f"{name}.{leaf}.weight"
            places = (*_list_outputs(f"{name}.v_proj", value), (weight, 1))
            size = value.out_features // heads
            found.append(Axis(name=f"heads.{name}", parts=heads, size=size, places=places, readers=(weight,)))
            break
    return found


def _find_layer(module: nn.Module, name: str) -> nn.Linear | None:
    child = getattr(module, name, None)
    return child if isinstance(child, nn.Linear) else None


def _list_outputs(name: str, layer: nn.Linear) -> Iterator[tuple[str, int]]:
    """Where the outputs of a layer are."""
    yield f"{name}.weight", 0
    if layer.bias is not None:
        yield f"{name}.bias", 0
