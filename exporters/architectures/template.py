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
    """One architecture."""

    read: Callable[[Mapping[str, Any]], DecoderConfig]  # its `config.json` as a `DecoderConfig`
    build: Callable[[Layers], Graph]  # the graph from its parts
    models: str = ""  # the models that have it, and what it does otherwise than LLaMA, for people
    special: str = ""
    prefix: str = "model."  # the first part of its tensors' names, which some checkpoints leave out
    tool: str = ""  # the front end that stands behind it, and that has seen to it that no tensor is left out; "" for our own
    as_stored: bool = True  # weights lie in the graph as they do in the checkpoint, or transposed, so that masks fit both
