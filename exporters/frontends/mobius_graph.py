"""From mobius' graph to ours: attention with a cache becomes the asked form of the cache (`translation.py` does the rest).

    Attention(q, k, v, mask, past, past)         the form's own     (`cat`, `static`, `gqa`)

Windows are those that `config.json` names: mobius leaves some of them out, and says so.

Shapes: `B` batch, `S` new tokens, `T` all tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters.frontends.base import ForeignGraph, ForeignModel, ForeignWeight, describe_sizes, read_settings
from maskpro_deploy.exporters.frontends.mobius_model import build_graph, map_weights, read_graph
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_positive, read_same_windows, read_windows
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import SILENT, Progress

_OPSET = 24  # mobius' own
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_NEW, _TOTAL, _PAD = 5, 9, 3
_HIDDEN = -1e4  # what is added to a score that is hidden, at most


class MobiusGraph(ForeignGraph):
    """A checkpoint's graph through mobius (see `ForeignGraph`)."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress = SILENT) -> None:
        super().__init__(checkpoint, f"mobius-onnx {version('mobius-onnx')}", progress)
        built, module = build_graph(checkpoint, "fp32")
        self._models["fp32"] = read_graph(built)
        self.weights = map_weights(checkpoint, module, self._models["fp32"].parameters)

    def _describe(self, dtype: str) -> ForeignModel:
        return read_graph(build_graph(self._checkpoint, dtype)[0])

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes and kinds, from the graph's attention nodes where these say it."""
        model = self.model("fp32")
        nodes = _find_attention(model)
        kinds = {_describe_attention(node) for node in nodes}
        if not nodes or len(kinds) > 1:
            what = "layers with attention of different kinds" if kinds else "no attention with a cache of keys and values"
            raise InputError(f"its graph has {what}.")
        for node in {node.input[3]: node for node in nodes}.values():
            causal = bool(read_settings(node).get("is_causal", 0))
            if node.input[3] and not is_causal(model.nodes, model.constants, node.input[3], causal=causal, opset=_OPSET):
                raise InputError("its attention adds a bias to scores, or hides other tokens than later ones.")
        ((heads, groups, scale, softcap),) = kinds
        layers = len(nodes)
        (head_dim, *others) = {model.caches[name][1] for node in nodes for name in node.input[4:6]}
        if others or not groups:
            raise InputError("its keys and values differ in size.")
        hidden = read_positive({**config, "hidden_size": config.get("hidden_size", config.get("n_embd"))}, "hidden_size")
        decoder = describe_sizes(config, model, hidden=hidden, layers=layers, heads=heads, kv_heads=groups, head_dim=head_dim)
        return dataclasses.replace(
            decoder, scale=scale or decoder.scale, windows=_read_window_fields(config, layers), attention_softcap=softcap or None
        )

    def build(self, m: Layers) -> Graph:
        """The whole graph (InputError: it has an operator that this form's version of the standard lacks)."""
        _MobiusTranslation(m, self.model(m.graph.dtype), self.weights, self._checkpoint.folder).run()
        m.form.finish(m.graph)
        return m.graph


def _describe_attention(node: onnx.NodeProto) -> tuple[int, int, float, float]:
    """What must be the same in all layers: heads, key/value heads, scale, softcap; 0 where the node does not say."""
    settings = read_settings(node)
    heads, groups = (int(settings.get(name, 0)) for name in ("q_num_heads", "kv_num_heads"))
    return heads, groups, float(settings.get("scale", 0.0)), float(settings.get("softcap", 0.0))


def _find_attention(model: ForeignModel) -> list[onnx.NodeProto]:
    """The attention nodes that have a cache, layer by layer."""
    return [n for n in model.nodes if n.op_type == "Attention" and len(n.input) > 5 and n.input[4] in model.caches]


def _read_window_fields(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """How far each layer looks back, by the fields that transformers reads."""
    if isinstance(config.get("layer_types"), list):
        return read_windows(config, ["full_attention"] * layers)
    return (None,) * layers if config.get("use_sliding_window") is False else read_same_windows(config, layers)


class _MobiusTranslation(Translation):
    """One graph of mobius: attention has a mask and a cache of ours."""

    def __init__(self, m: Layers, model: ForeignModel, weights: Mapping[str, ForeignWeight], folder: Path) -> None:
        super().__init__(m.graph, model, weights, folder, m.form.facts.name)
        self._m = m
        self._layer_of = {node.output[0]: i for i, node in enumerate(_find_attention(model))}

    def _list_reads(self, node: onnx.NodeProto) -> Sequence[str]:
        return list(node.input[:3] if node.output[0] in self._layer_of else node.input)

    def _replace(self, node: onnx.NodeProto) -> bool:
        """Attention with the form's own cache and mask.  # q (B, S, H D), k and v (B, S, G D) -> (B, S, H D)"""
        if node.output[0] not in self._layer_of:
            return False
        config, path = self._m.config, f"/{node.name.rsplit('/', 1)[0]}"
        counts = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        q, k, v = (
            self._m.split_heads(self._input_name(value), count, f"{path}/{kind}")
            for value, kind, count in zip(node.input[:3], "qkv", counts, strict=True)
        )
        self._names[node.output[0]] = self._m.attend(self._layer_of[node.output[0]], q, k, v, path)
        return True


def find_ancestors(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that some values are made by, in order."""
    needed, made = set(wanted), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            made.append(node)
    return made[::-1]


def is_causal(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, npt.NDArray[Any]], mask: str, *, causal: bool, opset: int
) -> bool:
    """Whether a mask hides what comes later, padding, perhaps what lies far back, and nothing else.

    Every architecture's mask is replaced by that of the cache form. That is only right if both say the same, so the nodes that
    make it are run on small inputs. With `causal`, Attention masks later tokens on its own.
    """
    made = find_ancestors(nodes, {mask})
    free = {name for node in made for name in node.input if name} - {o for node in made for o in node.output}
    if not free <= {*_INPUTS, *constants}:
        return False  # it depends on weights or states
    attention = np.ones((2, _TOTAL), np.int64)
    attention[1, :_PAD] = 0
    positions = np.maximum(attention.cumsum(axis=1) - 1, 0)[:, -_NEW:]
    feeds = {"input_ids": np.ones((2, _NEW), np.int64), "attention_mask": attention, "position_ids": positions}
    graph = helper.make_graph(
        made,
        "mask",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [2, None]) for name in _INPUTS],
        [onnx.ValueInfoProto(name=mask)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in free],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    values = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
    if values.dtype == np.bool_:
        visible = values
    else:
        values = values.astype(np.float32)
        visible = values == 0
        if not (visible | (values <= _HIDDEN)).all():
            return False  # a bias
    slots, rows = np.arange(_TOTAL), np.arange(_TOTAL - _NEW, _TOTAL)[:, None]
    before = slots <= rows  # (S, T)
    seen = np.broadcast_to(visible & before if causal else visible, (2, 1, _NEW, _TOTAL))[:, 0]
    expected = before & (attention[:, None, :] == 1)  # (B, S, T)
    missing = expected & ~seen
    # whatever else it hides must be all that lies further back than some distance
    nearest = (rows - slots)[missing.any(axis=0)].min(initial=_TOTAL)
    return bool(np.array_equal(seen, expected & (rows - slots < nearest)))
