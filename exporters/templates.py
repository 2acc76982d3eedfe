"""Which architecture builds which graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.exporters import gemma, gpt2, llama, opt, phi3, qwen, smollm3
from maskpro_deploy.exporters.graph import Graph
from maskpro_deploy.exporters.layers import Layers
from maskpro_deploy.exporters.model_config import DecoderConfig, supported


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One architecture.

    Attributes:
        read: its `config.json` as a `DecoderConfig`.
        build: the graph from its parts.
        prefix: the first part of its tensors' names, which some checkpoints leave out.
    """

    read: Callable[[Mapping[str, Any]], DecoderConfig]
    build: Callable[[Layers], Graph]
    prefix: str = "model."


# model_type of config.json -> its template
TEMPLATES = {
    "llama": Template(read=llama.read, build=llama.build),
    "mistral": Template(read=llama.read_mistral, build=llama.build),
    "qwen2": Template(read=qwen.read_qwen2, build=qwen.build_qwen2),
    "qwen3": Template(read=qwen.read_qwen3, build=qwen.build_qwen3),
    "smollm3": Template(read=smollm3.read, build=llama.build),
    "gemma2": Template(read=gemma.read_gemma2, build=gemma.build_gemma2),
    "gemma3_text": Template(read=gemma.read_gemma3, build=gemma.build_gemma3),
    "phi3": Template(read=phi3.read, build=phi3.build),
    "gpt2": Template(read=gpt2.read, build=gpt2.build, prefix="transformer."),
    "opt": Template(read=opt.read, build=opt.build),
}


def template_for(config: Mapping[str, Any]) -> Template:
    """The template of a checkpoint.

    Raises:
        InputError: there is none for its architecture.
    """
    model_type = str(config.get("model_type", "none"))
    supported("model_type", model_type, TEMPLATES)
    return TEMPLATES[model_type]
