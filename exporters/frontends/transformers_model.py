"""Graphs of architectures that neither a template nor mobius-onnx describes, traced by transformers' own ONNX exporter.

transformers runs the model in torch on a small batch with a cache, and torch.onnx writes down what it did, masks and positions
included. So the graph computes what transformers computes, and it has one form, that of transformers' own cache: keys and values
grow by Concat. Constants are folded, but nothing that a parameter goes into: a weight keeps its name, and its values are read
from the checkpoint and not from the model, which is let go after the trace.

The model is held in memory, in the asked float type, while it is traced.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from maskpro_deploy.cache_forms import DEFAULT_FORM
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import (
    ForeignGraph,
    ForeignModel,
    ForeignWeight,
    check_all_used,
    describe_sizes,
    one_line,
    place_of,
    quiet,
    read_length,
    read_settings,
)
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.cache_forms.base import declare_inputs
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm

_OPSET = 23  # the `cat` form's
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCH, _PAST, _NEW = 2, 5, 3  # of the traced call; 0 and 1 would be taken for constants
_CACHED = re.compile(r"layers\.(\d+)\.(key|value)s$")


class TransformersGraph(ForeignGraph):
    """A checkpoint's graph through transformers (see `ForeignGraph`)."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress = SILENT) -> None:
        read_length(checkpoint.config)  # refused before the trace, which takes long
        super().__init__(checkpoint, f"transformers {version('transformers')}, torch {version('torch')}", progress)
        model = open_model(checkpoint, "fp32")
        self.weights = map_weights(checkpoint, model)
        self._hidden, self._heads = read_sizes(model, checkpoint.config["model_type"])
        self._models["fp32"] = trace_graph(model, checkpoint)

    def _describe(self, dtype: str) -> ForeignModel:
        return trace_graph(open_model(self._checkpoint, dtype), self._checkpoint)

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes, from the graph and the model; refuses as `read_length`. What attention does stays the graph's own affair."""
        model = self.model("fp32")
        return describe_sizes(
            config,
            model,
            hidden=self._hidden,
            layers=len(model.caches) // 2,
            heads=self._heads,
            kv_heads=model.kv_heads,
            head_dim=next(iter(model.caches.values())),
        )

    def build(self, m: Layers) -> Graph:
        """The whole graph (InputError: a form other than `cat` is asked for, or see `Translation.run`)."""
        if m.form.facts.name != DEFAULT_FORM:
            raise InputError(
                f"{self._checkpoint.folder}: the form {m.form.facts.name!r} is not made of this architecture. transformers' "
                f"exporter traces its own cache, which grows by Concat.\nExport it with --forms {DEFAULT_FORM}."
            )
        # a graph of its own: the masks that the form has put into the other one are transformers' own here
        graph = Graph(m.graph.dtype, m.form.facts.opset, m.graph.quantization)
        graph.input("input_ids", TensorProto.INT64, ["batch", "new"])
        declare_inputs(graph, m.config, m.form.facts, 0)
        model = self.model(graph.dtype)
        Translation(graph, model, self.weights, self._checkpoint.folder, m.form.facts.name).run()
        for name in model.outputs:
            graph.output(name, graph.element_type, ["batch", m.config.num_kv_heads, "total", m.config.head_dim])
        return graph


def open_model(checkpoint: Checkpoint, dtype: str) -> Any:
    """The model in torch, in a float type (FormatError: transformers cannot build it)."""
    try:
        with quiet():
            return load_causal_lm(checkpoint.folder, _DTYPES[dtype])
    except FormatError:
        raise
    except Exception as e:  # whatever a config that does not fit makes it stumble over
        raise FormatError(f"{checkpoint.folder}: transformers cannot build this model: {one_line(e)}.") from e


def is_known(model_type: str) -> bool:
    """Whether transformers has a causal language model of this kind."""
    with quiet():
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def read_sizes(model: Any, kind: str) -> tuple[int, int]:
    """Hidden size and number of heads, whatever `config.json` calls them (InputError: layers differ in heads)."""
    config = model.config.get_text_config()
    hidden, heads = (getattr(config, field, None) for field in ("hidden_size", "num_attention_heads"))
    if not isinstance(hidden, int) or not isinstance(heads, int):
        raise InputError(f"model_type {kind!r} is not supported: in transformers it has no single number of attention heads.")
    return hidden, heads


def map_weights(checkpoint: Checkpoint, model: Any) -> dict[str, ForeignWeight]:
    """The checkpoint's tensor of each parameter; those that are tied have one, under whichever of their names is stored."""
    tensors = checkpoint.map_torch()
    prefix = f"{model.base_model_prefix}."  # which some checkpoints leave out
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[tuple[object, ...], list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(place_of(parameter), []).append(name)
    weights = {}
    used = {name for name, _ in model.named_buffers()} | set(parameters)
    used |= {name.removeprefix(prefix) for name in used}
    for name, parameter in parameters.items():
        aliases = [alias for n in names[place_of(parameter)] for alias in (n, n.removeprefix(prefix))]
        if (source := next((alias for alias in aliases if alias in tensors), None)) is None:
            raise FormatError(
                f"{checkpoint.folder} has no tensor for {name!r}, which transformers' model of this config.json calls for."
            )
        weights[name] = ForeignWeight.of(tensors[source], (source,), same=True)
    check_all_used(checkpoint, used, "transformers")
    return weights


@torch.no_grad()
def trace_graph(model: Any, checkpoint: Checkpoint) -> ForeignModel:
    """The model as a graph without weights, by our names."""
    kind = checkpoint.config["model_type"]
    inputs = _sample_inputs(model, kind)
    with quiet():
        from onnxscript.optimizer import optimize_ir
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        auto = torch.export.Dim.AUTO
        shapes: dict[str, Any] = {name: {0: auto, 1: auto} for name in inputs if name != "use_cache"}
        cache = next(name for name in inputs if name in ("cache", "past_key_values"))
        shapes[cache] = [{0: auto, 2: auto}] * (2 * len(inputs[cache].layers))
        try:
            config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=_OPSET, optimize=False)
            program = OnnxExporter().export(model, inputs, config=config).program
            optimize_ir(program, should_fold=lambda node: False if any(v and v.name in parameters for v in node.inputs) else None)
        except Exception as e:  # a foreign tracer: what it cannot follow shows in any exception
            raise FormatError(f"{checkpoint.folder}: transformers' ONNX exporter cannot trace this model: {one_line(e)}.") from e
    return _read_graph(program.graph, parameters, kind)


def _sample_inputs(model: Any, kind: str) -> dict[str, Any]:
    """Inputs of a call that continues a cache; every layer must keep keys and values."""
    from transformers import DynamicCache

    accepted = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"  # the name changed within transformers 5
    # without the config every layer keeps all it has seen, so that all caches have one length; masks keep windows
    cache: Any = DynamicCache()
    tokens = torch.arange(_BATCH * (_PAST + _NEW)).reshape(_BATCH, -1) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(tokens)
    try:
        with quiet():
            model(tokens[:, :_PAST], attention_mask=mask[:, :_PAST], use_cache=True, **{name: cache})
        lengths = {tuple(states.shape[2:3]) for layer in cache.layers for states in (layer.keys, layer.values)}
    except Exception as e:
        raise InputError(f"model_type {kind!r} does not run with a plain cache in transformers: {one_line(e)}.") from e
    if lengths != {(_PAST,)}:
        raise InputError(f"model_type {kind!r} keeps no plain cache of keys and values in transformers.")
    inputs = {"input_ids": tokens[:, _PAST:], "attention_mask": mask, name: cache, "use_cache": True}
    if "position_ids" in accepted:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _NEW).expand(_BATCH, -1)
    return inputs


def _read_graph(graph: Any, parameters: set[str], kind: str) -> ForeignModel:
    """The traced graph (onnx-ir), its cache by our names (InputError: it has inputs of another kind)."""
    import onnx_ir

    caches, outputs = {}, []
    for value in graph.inputs:
        if fixed := [d for d in value.shape[: None if len(value.shape) == 2 else 1] if type(d) is int]:
            raise InputError(f"model_type {kind!r} is not supported: the trace fixes a size of {value.name!r} at {fixed[0]}.")
        if match := _CACHED.search(value.name):
            value.name = f"past_key_values.{match[1]}.{match[2]}"
            caches[value.name] = value
        elif value.name not in ("input_ids", "attention_mask", "position_ids"):
            raise InputError(f"model_type {kind!r} is not supported: its graph reads {value.name!r}.")
    for value in graph.outputs:
        if match := _CACHED.search(value.name):
            value.name = f"present.{match[1]}.{match[2]}"
            outputs.append(value.name)
    logits = next(value for value in graph.outputs if value.name == "logits")
    sizes = {(value.shape[1], value.shape[3]) for value in caches.values()}
    if len(sizes) != 1 or len(outputs) != len(caches) or any(type(d) is not int for d in next(iter(sizes))):
        raise InputError(f"model_type {kind!r} is not supported: its keys and values differ in size.")
    ((kv_heads, head_dim),) = sizes
    logits.name = "/logits"
    nodes = [split for node in graph for split in split_gemm(onnx_ir.to_proto(node), parameters)]
    if inner := next((n.op_type for n in nodes for a in n.attribute if a.HasField("g")), None):
        raise InputError(f"model_type {kind!r} is not supported: its graph branches or loops ({inner}).")
    initializers = graph.initializers
    return ForeignModel(
        nodes=tuple(nodes),
        constants={n: v.const_value.numpy() for n, v in initializers.items() if n not in parameters},
        parameters={n: tuple(int(d) for d in v.shape) for n, v in initializers.items() if n in parameters},
        caches=dict.fromkeys(caches, head_dim),
        kv_heads=kv_heads,
        logits=logits.name,
        vocab_size=int(logits.shape[-1]),
        outputs=tuple(outputs),
    )


def split_gemm(node: onnx.NodeProto, parameters: set[str]) -> list[onnx.NodeProto]:
    """A Gemm with a weight as the product and the sum that it is; another node as it is."""
    settings = read_settings(node)
    plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
    if node.op_type != "Gemm" or node.input[1] not in parameters or not plain:
        return [node]
    x, weight, *bias = [name for name in node.input if name]
    made, output = [], node.output[0]
    if settings.get("transB", 0):
        made.append(helper.make_node("Transpose", [weight], [f"{output}_turned"], name=f"{node.name}_turned", perm=[1, 0]))
        weight = f"{output}_turned"
    product = f"{output}_product" if bias else output
    made.append(helper.make_node("MatMul", [x, weight], [product], name=f"{node.name}_product"))
    if bias:
        made.append(helper.make_node("Add", [product, bias[0]], [output], name=node.name))
    return made
