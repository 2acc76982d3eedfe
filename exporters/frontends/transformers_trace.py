"""Traces a model of transformers: a call that continues a cache becomes a graph without weights, by our names.

Shapes: `B` batch, `S` new tokens, `P` past tokens, `H` key/value heads, `D` head size.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Collection, Iterator, Set
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import ForeignModel, quiet, read_settings, say_why
from maskpro_deploy.exporters.frontends.experts import take_apart, use_every_expert

_OPSET = 23  # the `cat` form's
_BATCH, _PAST, _NEW = 2, 5, 3  # of the traced call; 0 and 1 would be taken for constants
_CACHED = re.compile(r"layers\.(\d+)\.(key|value)s$")
_MOVES = ("Cast", "Constant", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # what runtimes do in bf16, too


@torch.no_grad()
def trace_graph(model: Any) -> ForeignModel:
    """The model as a graph without weights, by our names.

    Raises:
        FormatError: transformers' exporter does not trace it.
        InputError: it has no cache of keys and values, or its graph has parts that a bundle's cannot have.
    """
    use_every_expert(model)
    inputs = _sample_inputs(model)
    with quiet(), _equal_heads():
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
            why = ": which of its parts run depends on the tokens." if "data-dependent" in str(e) else say_why(e)
            raise FormatError(f"its ONNX exporter cannot trace this model{why}") from e
    return _read_graph(program.graph, parameters, model.dtype)


@contextlib.contextmanager
def _equal_heads() -> Iterator[None]:
    """One key head for all queries is repeated: torch's attention does so itself, but its translation to ONNX does not."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if key.shape[1] == 1 != query.shape[1]:
            key, value = (x.expand(-1, query.shape[1], -1, -1) for x in (key, value))
        return plain(query, key, value, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


def _sample_inputs(model: Any) -> dict[str, Any]:
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
        raise InputError(f"the model does not run with a plain cache of keys and values{say_why(e)}") from e
    if lengths != {(_PAST,)}:
        raise InputError("the model keeps something else than the keys and values of every token.")
    inputs = {"input_ids": tokens[:, _PAST:], "attention_mask": mask, name: cache, "use_cache": True}
    if "position_ids" in accepted:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _NEW).expand(_BATCH, -1)
    return inputs


def _read_graph(graph: Any, parameters: set[str], dtype: torch.dtype) -> ForeignModel:
    """The traced graph (onnx-ir), its cache by our names (InputError: it has inputs of another kind, branches or loops)."""
    import onnx_ir

    caches = _name_cache(graph)
    logits = next(value for value in graph.outputs if value.name == "logits")
    logits.name = "/logits"
    values = [] if dtype == torch.bfloat16 else [v for n in graph for v in (*n.inputs, *n.outputs) if v is not None]
    narrow = {v.name for v in values if v.dtype == onnx_ir.DataType.BFLOAT16}
    protos = [wide for node in graph for wide in widen(onnx_ir.to_proto(node), narrow)]
    if inner := next((n.op_type for n in protos for a in n.attribute if a.HasField("g")), None):
        raise InputError(f"the graph branches or loops ({inner}).")
    initializers = graph.initializers
    constants = {n: v.const_value.numpy() for n, v in initializers.items() if n not in parameters}
    shapes = {n: tuple(int(d) for d in v.shape) for n, v in initializers.items() if n in parameters}
    wide = frozenset(n for n in shapes if dtype != torch.float32 and initializers[n].dtype == onnx_ir.DataType.FLOAT)
    protos = take_apart(protos, constants, shapes)
    return ForeignModel(
        nodes=tuple(split for node in protos for split in split_gemm(node, shapes)),
        constants=constants,
        parameters=shapes,
        caches=caches,
        logits=logits.name,
        vocab_size=int(logits.shape[-1]),
        outputs=tuple(name.replace("past_key_values", "present") for name in caches),
        wide=wide,
    )


def _name_cache(graph: Any) -> dict[str, tuple[int, int]]:
    """Give past and present keys and values our names: name of the past ones -> heads and head size."""
    caches: dict[str, tuple[int, int]] = {}
    for value in graph.inputs:
        if fixed := [d for d in value.shape[: None if len(value.shape) == 2 else 1] if type(d) is int]:
            raise InputError(f"the trace fixes a size of {value.name!r} at {fixed[0]}.")
        if match := _CACHED.search(value.name):
            value.name = f"past_key_values.{match[1]}.{match[2]}"
            if any(type(d) is not int for d in (value.shape[1], value.shape[3])):
                raise InputError("the size of its keys and values is not fixed.")
            caches[value.name] = value.shape[1], value.shape[3]
        elif value.name not in ("input_ids", "attention_mask", "position_ids"):
            raise InputError(f"the graph reads {value.name!r}.")
    outputs = [value for value in graph.outputs if _CACHED.search(value.name)]
    for value in outputs:
        layer, kind = _CACHED.search(value.name).groups()  # type: ignore[union-attr]
        value.name = f"present.{layer}.{kind}"
    if len(outputs) != len(caches):
        raise InputError("the graph does not give back all of its keys and values.")
    return caches


def widen(node: onnx.NodeProto, narrow: Set[str]) -> Iterator[onnx.NodeProto]:
    """A node with bf16 values, those in `narrow`, computing in fp32 and rounding after it: CPU kernels have no bf16."""
    if node.op_type in _MOVES or narrow.isdisjoint((*node.input, *node.output)):
        yield node
        return
    for i, name in enumerate(node.input):
        if name in narrow:
            node.input[i] = f"{node.output[0]}_wide_{i}"
            yield helper.make_node("Cast", [name], [node.input[i]], name=node.input[i], to=TensorProto.FLOAT)
    rounded = [(i, name) for i, name in enumerate(node.output) if name in narrow]
    for i, name in rounded:
        node.output[i] = f"{name}_wide"
    yield node
    for i, name in rounded:
        yield helper.make_node("Cast", [node.output[i]], [name], name=f"{name}_narrow", to=TensorProto.BFLOAT16)


def split_gemm(node: onnx.NodeProto, parameters: Collection[str]) -> list[onnx.NodeProto]:
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
