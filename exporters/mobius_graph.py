"""From mobius' graph to ours: the same operators, but our cache, our mask, our names, and weights as [K, N] constants.

    MatMul(x, Transpose(W))                      MatMul(x, W')            W' [K, N], quantised where that is asked for
    Attention(q, k, v, mask, past, past)         the cache form's own     (`cat`, `static`, `gqa`)
    logits in the graph's float type             logits in fp32

So everything behind the graph, from the streamed data file to the proofs, is the same as for a template. Windows are those that
`config.json` names: mobius leaves some of them out, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.graph import DTYPES, Graph, Weight
from maskpro_deploy.exporters.layers import Layers
from maskpro_deploy.exporters.mobius_mask import is_causal
from maskpro_deploy.exporters.mobius_model import MobiusModel, MobiusSource, MobiusWeight
from maskpro_deploy.exporters.model_config import DecoderConfig, layer_types, positive, windows_of

_OPSET = 24  # mobius' own
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_SMALL = 4096  # values of a constant that lies in the graph file


class MobiusTemplate:
    """A checkpoint's graph through mobius, in the place of a template.

    Args:
        checkpoint: of an architecture without a template.

    Raises:
        InputError, FormatError: see `MobiusSource`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._source = MobiusSource(checkpoint)
        self._folder = checkpoint.folder

    @property
    def tool(self) -> str:
        """Name and version of the front end, for the manifest."""
        return self._source.tool

    @property
    def rearranged(self) -> bool:
        """Whether some weight is not its source as it is, so that the checkpoint's masks do not fit the graph's weights."""
        return not all(weight.same for weight in self._source.weights.values())

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes and kinds, from the graph's attention nodes where these say it.

        Raises:
            InputError: the graph has attention of a kind that no cache form describes.
            FormatError: the config has no length, or no window where it names one.
        """
        model = self._source.model("fp32")
        nodes = _attention(model)
        kinds = {_Kind.of(node) for node in nodes}
        if not nodes or len(kinds) > 1:
            what = "layers with attention of different kinds" if kinds else "no attention with a cache of keys and values"
            raise InputError(f"model_type {config['model_type']!r} is not supported: it has {what}.")
        for node in {node.input[3]: node for node in nodes}.values():
            causal = bool(_settings(node).get("is_causal", 0))
            if node.input[3] and not is_causal(model.nodes, model.constants, node.input[3], causal=causal, opset=_OPSET):
                raise InputError(
                    f"model_type {config['model_type']!r} is not supported: its attention adds a bias to scores, "
                    f"or hides other tokens than later ones."
                )
        (kind,) = kinds
        layers = len(nodes)
        (head_dim, *others) = {model.caches[name] for node in nodes for name in node.input[4:6]}
        if others or not kind.groups:
            raise InputError(f"model_type {config['model_type']!r} is not supported: its keys and values differ in size.")
        return DecoderConfig(
            model_type=str(config["model_type"]),
            vocab_size=model.vocab_size,
            hidden_size=positive({**config, "hidden_size": config.get("hidden_size", config.get("n_embd"))}, "hidden_size"),
            intermediate_size=0,
            num_layers=layers,
            num_heads=kind.heads,
            num_kv_heads=kind.groups,
            head_dim=head_dim,
            max_length=positive(config, next((f for f in _LENGTHS if config.get(f)), _LENGTHS[0])),
            norm_eps=0.0,
            tied=False,
            activation="",
            attention_bias=False,
            output_bias=False,
            mlp_bias=False,
            scale=kind.scale or head_dim**-0.5,
            windows=_windows(config, layers),
            ropes=(None,) * layers,
            attention_softcap=kind.softcap or None,
        )

    def build(self, m: Layers) -> Graph:
        """The whole graph; weights are named, not read.

        Raises:
            InputError: the graph has an operator that this form's version of the standard lacks.
        """
        return _Translation(m, self._source.model(m.graph.dtype), self._source.weights, self._folder).run()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What must be the same in all layers."""

    heads: int
    groups: int
    scale: float
    softcap: float

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Kind:
        found = _settings(node)
        return cls(
            int(found.get("q_num_heads", 0)),
            int(found.get("kv_num_heads", 0)),
            float(found.get("scale", 0.0)),
            float(found.get("softcap", 0.0)),
        )


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _attention(model: MobiusModel) -> list[onnx.NodeProto]:
    """The attention nodes that have a cache, layer by layer."""
    return [n for n in model.nodes if n.op_type == "Attention" and len(n.input) > 5 and n.input[4] in model.caches]


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """How far each layer looks back, by the fields that transformers reads."""
    if isinstance(config.get("layer_types"), list):
        return windows_of(config, layer_types(config, layers, ()))
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    return (positive(config, "sliding_window"),) * layers


class _Translation:
    """One graph, node by node."""

    def __init__(self, m: Layers, model: MobiusModel, weights: Mapping[str, MobiusWeight], folder: Path) -> None:
        self._m, self._graph, self._model, self._weights, self._folder = m, m.graph, model, weights, folder
        self._layer_of = {node.output[0]: i for i, node in enumerate(_attention(model))}
        # Transpose(W) -> W, for weights of two dimensions
        self._turned = {
            n.output[0]: n.input[0]
            for n in model.nodes
            if n.op_type == "Transpose" and len(model.parameters.get(n.input[0], ())) == 2
        }
        self._first_with: dict[tuple[object, ...], str] = {}  # storage -> the initializer that holds it
        self._names = {model.logits: "logits" if m.graph.dtype == "fp32" else "logits_stored"}

    def run(self) -> Graph:
        graph, live = self._graph, self._live()
        products = [node for node in live if self._factor(node) is not None]
        head = products[-1].output[0] if products else ""
        # turned weights that something else than a product reads
        read = {name for node in live if self._factor(node) is None for name in node.input}
        for node in live:
            if node.output[0] in self._layer_of:
                self._attend(node)
            elif (factor := self._factor(node)) is not None:
                self._product(node, *factor, is_head=node.output[0] == head)
            elif node.output[0] not in self._turned or node.output[0] in read:
                self._copy(node)
        if graph.dtype != "fp32":
            graph.op("Cast", "logits_stored", name="/lm_head/float", output="logits", to=TensorProto.FLOAT)
        graph.output("logits", TensorProto.FLOAT, ["batch", "new", self._m.config.vocab_size])
        self._m.form.finish(graph)
        return graph

    def _live(self) -> list[onnx.NodeProto]:
        """The nodes that logits need, once attention has a mask and a cache of ours."""
        needed, found = {self._model.logits}, []
        for node in reversed(self._model.nodes):
            if needed & set(node.output):
                needed |= set(node.input[:3] if node.output[0] in self._layer_of else node.input)
                found.append(node)
        free = needed - {output for node in found for output in node.output}
        declared = {*self._graph.inputs, *self._model.constants, *self._model.parameters, ""}
        if strange := sorted(free - declared):
            raise InputError(
                f"{self._folder}: the graph of this architecture reads {strange[0]!r} beside attention, which the "
                f"{self._m.form.name!r} form does not have.\nExport other --forms."
            )
        return found[::-1]

    def _factor(self, node: onnx.NodeProto) -> tuple[str, bool] | None:
        """The weight on the right side of a product, and whether it is stored (N, K)."""
        if node.op_type != "MatMul":
            return None
        right = node.input[1]
        if right in self._turned:
            return self._turned[right], True
        return (right, False) if len(self._model.parameters.get(right, ())) == 2 else None

    def _in(self, value: str) -> str:
        """Our name of a value; declares the weight or constant that it names."""
        if value in self._model.parameters:
            return self._plain(value)
        if value in self._model.constants:
            return self._constant(value)
        return self._names.get(value, value)

    def _product(self, node: onnx.NodeProto, name: str, turned: bool, *, is_head: bool) -> None:
        graph, x, output = self._graph, self._in(node.input[0]), self._names.get(node.output[0], node.output[0])
        path = "/lm_head" if is_head else f"/{name.removesuffix('.weight').replace('.', '/').replace('/layers/', '/layers.')}"
        quantization = graph.quantization
        if is_head and quantization is not None:
            quantization = quantization.of_head()
        held = self._first_with.get(self._weight(name).storage)
        if is_head and turned and quantization is None and held is not None:  # tied: stored once, as (N, K)
            constant = graph.op("Transpose", held, name=f"{path}/tied", perm=[1, 0])
        else:
            shape = self._model.parameters[name]
            constant = graph.matrix(self._described(name, shape[::-1] if turned else shape, turned, not is_head), quantization)
        graph.op("MatMul", x, constant, name=path, output=output)

    def _plain(self, name: str) -> str:
        """A weight as it is, stored once however many names it has."""
        held = self._first_with.setdefault(self._weight(name).storage, name)
        return self._graph.weight(self._described(held, self._model.parameters[held], False, False))

    def _described(self, name: str, shape: tuple[int, ...], turned: bool, projection: bool) -> Weight:
        weight, stored = self._weight(name), shape[::-1] if turned else shape
        if weight.rows.shape != stored:
            raise FormatError(
                f"{self._folder}: {name} has shape {weight.rows.shape}, its config.json calls for {stored}.\n"
                f"Weights and config.json belong to different models."
            )
        return Weight(
            name=name,
            shape=shape,
            source=weight.sources[0] if len(weight.sources) == 1 else "",
            transposed=turned,
            projection=projection,
            values=weight.rows,
        )

    def _weight(self, name: str) -> MobiusWeight:
        if name not in self._weights:
            raise FormatError(f"{self._folder} has no tensor for {name!r}, which its config.json calls for.")
        return self._weights[name]

    def _constant(self, name: str) -> str:
        """Small arrays and those of another type lie in the graph file, large ones in the data file."""
        values = self._model.constants[name]
        if values.size > _SMALL and values.dtype == DTYPES[self._graph.dtype][1]:
            return self._graph.values(name, values.astype(np.float64))
        return self._graph.array(name, values)

    def _attend(self, node: onnx.NodeProto) -> None:
        """Attention with the form's own cache and mask.  # q (B, S, H D), k and v (B, S, G D) -> (B, S, H D)"""
        graph, config, form, path = self._graph, self._m.config, self._m.form, f"/{node.name.rsplit('/', 1)[0]}"
        heads = []
        for value, kind, count in zip(node.input[:3], "qkv", (config.num_heads, *[config.num_kv_heads] * 2), strict=True):
            y = self._in(value)
            if not form.flat:
                y = graph.op("Reshape", y, graph.ints(0, 0, count, config.head_dim), name=f"{path}/{kind}_heads")
                y = graph.op("Transpose", y, name=f"{path}/{kind}_transpose", perm=[0, 2, 1, 3])
            heads.append(y)
        y = form.attend(graph, self._layer_of[node.output[0]], heads[0], heads[1], heads[2], path)
        if not form.flat:
            y = graph.op("Transpose", y, name=f"{path}/out_transpose", perm=[0, 2, 1, 3])
            y = graph.op("Reshape", y, graph.ints(0, 0, config.num_heads * config.head_dim), name=f"{path}/out_flat")
        self._names[node.output[0]] = y

    def _copy(self, node: onnx.NodeProto) -> None:
        opset = self._m.form.opset
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset):
            raise InputError(f"{self._folder}: this architecture needs the operator {node.op_type}, which opset {opset} lacks.")
        ours = onnx.NodeProto()
        ours.CopyFrom(node)
        del ours.metadata_props[:]
        ours.name = f"/{node.name}"
        ours.input[:] = [self._in(value) for value in node.input]
        ours.output[:] = [self._names.get(value, value) for value in node.output]
        self._graph.add(ours)
