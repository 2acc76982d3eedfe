"""A graph traced by transformers in the place of a template: inputs and outputs of the `cat` form around the traced nodes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from onnx import TensorProto

from maskpro_deploy.cache_forms import DEFAULT_FORM
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters.frontends.base import ForeignGraph, ForeignModel, describe_sizes, read_length
from maskpro_deploy.exporters.frontends.transformers_model import map_weights, open_model, read_sizes, trace_graph
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.cache_forms.base import declare_inputs
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import SILENT, Progress


class TransformersGraph(ForeignGraph):
    """A checkpoint's graph through transformers (see `ForeignGraph`).

    Raises:
        InputError: the model has no plain cache of keys and values, or tensors that it does not use.
        FormatError: it cannot be opened or traced, or lacks tensors.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress = SILENT) -> None:
        read_length(checkpoint.config)  # refused before the trace, which takes long
        super().__init__(checkpoint, f"transformers {version('transformers')}, torch {version('torch')}", progress)
        model = open_model(checkpoint, "fp32")
        self.weights = map_weights(checkpoint, model)
        self._sizes = read_sizes(model, checkpoint.config["model_type"])
        self._models["fp32"] = trace_graph(model, checkpoint)

    def _describe(self, dtype: str) -> ForeignModel:
        return trace_graph(open_model(self._checkpoint, dtype), self._checkpoint)

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes, from the graph and the model; what attention does stays the graph's own affair.

        Raises:
            FormatError: the config has no length.
        """
        model = self.model("fp32")
        return describe_sizes(
            config,
            model,
            hidden=self._sizes.hidden,
            layers=len(model.caches) // 2,
            heads=self._sizes.heads,
            kv_heads=model.kv_heads,
            head_dim=next(iter(model.caches.values())),
        )

    def build(self, m: Layers) -> Graph:
        """The whole graph; weights are named, not read.

        Raises:
            InputError: a form other than `cat` is asked for, or see `Translation.run`.
        """
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
