"""A graph traced by transformers in the place of a template: inputs and outputs of the `cat` form around the traced nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import TensorProto

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters.frontends.base import longest, sizes
from maskpro_deploy.exporters.frontends.transformers_model import TransformersSource
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.cache_forms.common import declare_cache
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import SILENT, Progress


class TransformersTemplate:
    """A checkpoint's graph through transformers.

    Args:
        checkpoint: of an architecture that transformers knows.
        progress: see `TransformersSource`.

    Raises:
        InputError, FormatError: see `TransformersSource`.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress = SILENT) -> None:
        longest(checkpoint.config)  # told before the trace, which takes long
        self._source = TransformersSource(checkpoint, progress)
        self._folder = checkpoint.folder

    @property
    def tool(self) -> str:
        """Names and versions of the front end, for the manifest."""
        return self._source.tool

    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Sizes, from the graph and the model; what attention does stays the graph's own affair.

        Raises:
            FormatError: the config has no length.
        """
        model, told = self._source.model("fp32"), self._source.sizes
        return sizes(
            config,
            model,
            hidden=told.hidden,
            layers=len(model.caches) // 2,
            heads=told.heads,
            kv_heads=model.kv_heads,
            head_dim=next(iter(model.caches.values())),
        )

    def build(self, m: Layers) -> Graph:
        """The whole graph; weights are named, not read.

        Raises:
            InputError: a form other than `cat` is asked for, or see `Translation.run`.
        """
        if m.form.name != "cat":
            raise InputError(
                f"{self._folder}: the form {m.form.name!r} is not made of this architecture. transformers' exporter traces its "
                f"own cache, which grows by Concat.\nExport it with --forms cat."
            )
        # a graph of its own: the masks that the form has put into the other one are transformers' own here
        graph = Graph(m.graph.dtype, m.form.opset, m.graph.quantization)
        graph.input("input_ids", TensorProto.INT64, ["batch", "new"])
        graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        graph.input("position_ids", TensorProto.INT64, ["batch", "new"])
        declare_cache(graph, m.config, "past")
        model = self._source.model(graph.dtype)
        Translation(graph, model, self._source.weights, self._folder, m.form.name).run()
        for name in model.outputs:
            graph.output(name, graph.element_type, ["batch", m.config.num_kv_heads, "total", m.config.head_dim])
        return graph
