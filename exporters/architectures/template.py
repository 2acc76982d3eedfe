"""What a family of models gives: how its `config.json` is read, and how its layers follow each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One architecture.

    Attributes:
        read: its `config.json` as a `DecoderConfig`.
        build: the graph from its parts.
        models, special: the models that have it, and what it does otherwise than LLaMA, for people.
        prefix: the first part of its tensors' names, which some checkpoints leave out.
        tool: the front end that stands behind it, and that has seen to it that no tensor is left out; "" for our own.
        as_stored: weights lie in the graph as they do in the checkpoint, or transposed, so that masks fit both.
    """

    read: Callable[[Mapping[str, Any]], DecoderConfig]
    build: Callable[[Layers], Graph]
    models: str = ""
    special: str = ""
    prefix: str = "model."
    tool: str = ""
    as_stored: bool = True
