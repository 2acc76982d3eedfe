"""Graphs of architectures that neither a template nor mobius-onnx describes, traced by transformers' own ONNX exporter.

transformers runs the model in torch on a small batch with a cache, and torch.onnx writes down what it did, masks and positions
included. So the graph computes what transformers computes, and it has one form, that of transformers' own cache: keys and values
grow by Concat. Constants are folded, but nothing that a parameter goes into: a weight keeps its name, and its values are read
from the checkpoint and not from the model, which is let go after the trace.

The model is held in memory, in the asked float type, while it is traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from onnx import TensorProto

from maskpro_deploy.cache_forms import DEFAULT_FORM
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import (
    LENGTHS,
    ForeignGraph,
    ForeignModel,
    ForeignWeight,
    describe_sizes,
    quiet,
    say_why,
)
from maskpro_deploy.exporters.frontends.experts import split_slice
from maskpro_deploy.exporters.frontends.transformers_trace import trace_graph
from maskpro_deploy.exporters.frontends.transformers_weights import map_weights
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Dim, Graph
from maskpro_deploy.exporters.graph.cache_forms.base import declare_inputs
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TransformersGraph(ForeignGraph):
    """A checkpoint's graph through transformers (see `ForeignGraph`)."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress = SILENT) -> None:
        super().__init__(checkpoint, f"transformers {version('transformers')}, torch {version('torch')}", progress)
        model = open_model(checkpoint, "fp32")
        described = model.config.get_text_config()
        common = {name: getattr(described, name, None) for name in ("hidden_size", "num_attention_heads", *LENGTHS)}
        self._config = {name: value for name, value in common.items() if isinstance(value, int)}
        self.weights: dict[str, ForeignWeight] = map_weights(checkpoint, model)
        self._models["fp32"] = traced = trace_graph(model)
        for name in traced.parameters.keys() - self.weights.keys():
            parameter, i = split_slice(name)
            if parameter in self.weights:
                self.weights[name] = self.weights[parameter].row(i)

    def _describe(self, dtype: str) -> ForeignModel:
        return trace_graph(open_model(self._checkpoint, dtype))

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes, from the graph and the model; refuses as `read_length`. What attention computes is not described.

        Caches of layers that differ, or of keys and values that do, are as large as the largest: the rest is zero.
        """
        model = self.model("fp32")
        sizes = model.caches.values()
        kv_heads = max(heads for heads, _ in sizes)
        return describe_sizes(
            {**config, **self._config},
            model,
            hidden=self._config.get("hidden_size", 0),
            layers=len(sizes) // 2,
            heads=self._config.get("num_attention_heads", kv_heads),
            kv_heads=kv_heads,
            head_dim=max(size for _, size in sizes),
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
        model, largest = self.model(graph.dtype), (m.config.num_kv_heads, m.config.head_dim)
        translation = Translation(graph, model, self.weights, self._checkpoint.folder, m.form.facts.name)
        smaller = {name: sizes for name, sizes in model.caches.items() if sizes != largest}
        for name, (heads, size) in smaller.items():
            cut = graph.op(
                "Slice", name, graph.ints(0, 0), graph.ints(heads, size), graph.ints(1, 3), name=f"/cache/{name}/cut"
            )  # (B, H, P, D), of the largest sizes and of its own
            translation.rename(name, cut)
            translation.rename(_present(name), f"/cache/{_present(name)}")
        translation.run()
        for name, (heads, size) in smaller.items():
            rest = graph.ints(0, 0, 0, 0, 0, largest[0] - heads, 0, largest[1] - size)
            graph.op("Pad", f"/cache/{_present(name)}", rest, name=f"/cache/{_present(name)}/pad", output=_present(name))
        shape: list[Dim] = ["batch", largest[0], "total", largest[1]]
        for name in model.outputs:
            graph.output(name, graph.element_type, shape)
        return graph


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def open_model(checkpoint: Checkpoint, dtype: str) -> Any:
    """The model in torch, in a float type (FormatError: transformers cannot build it)."""
    try:
        with quiet():
            return load_causal_lm(checkpoint.folder, _DTYPES[dtype])
    except FormatError:
        raise
    except Exception as e:  # whatever a config that does not fit makes it stumble over
        raise FormatError(f"it cannot build this model{say_why(e)}") from e


def is_known(model_type: str) -> bool:
    """Whether transformers has a causal language model of this kind."""
    with quiet():
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def check_stateless(checkpoint: Checkpoint) -> None:
    """Refuse a model that remembers more than keys and values, as far as its class and its config say so (InputError)."""
    from transformers import AutoConfig, DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        with quiet():
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
            layers = DynamicCache(config=config.get_text_config()).layers
    except Exception:  # a kind or a config that transformers does not take: what the front ends say of it is better
        return
    model, kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), checkpoint.config["model_type"]
    mixed = bool(getattr(config.get_text_config(), "layer_types", None))  # a mixture may have attention in all of its layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers) or (
        getattr(model, "_is_stateful", False) and not mixed
    ):
        raise InputError(
            f"{checkpoint.folder} cannot be exported: model_type {kind!r} keeps a state (of a recurrence "
            f"or a convolution), which no form of the cache holds.\nIt can be learned, validated and evaluated."
        )
