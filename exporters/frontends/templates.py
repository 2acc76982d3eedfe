"""Which architecture builds which graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError, in_one_line
from maskpro_deploy.exporters.architectures import gemma, gpt2, llama, opt, phi3, qwen, smollm3
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import SILENT, Progress, waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One architecture.

    Attributes:
        read: its `config.json` as a `DecoderConfig`.
        build: the graph from its parts.
        prefix: the first part of its tensors' names, which some checkpoints leave out.
        tool: the front end that stands behind it, and that has seen to it that no tensor is left out; "" for our own.
        as_stored: weights lie in the graph as they do in the checkpoint, or transposed, so that masks fit both.
    """

    read: Callable[[Mapping[str, Any]], DecoderConfig]
    build: Callable[[Layers], Graph]
    prefix: str = "model."
    tool: str = ""
    as_stored: bool = True


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


# what mobius-onnx builds otherwise than transformers, as comparisons have shown (0.1.0): heads turned in pairs, norms
MOBIUS_DIFFERS = frozenset({"cohere", "ernie4_5", "gemma"})


def template_for(source: Checkpoint, progress: Progress = SILENT) -> Template:
    """What builds the graph of a checkpoint: a template of ours, else the first front end that can.

    Args:
        source: the checkpoint.
        progress: told how long a front end takes, now and when it builds the graph in another float type.

    Raises:
        InputError: none knows its architecture; the message says what each one said.
        MissingExtraError: there is no template, and the front ends are not installed.
        FormatError: no front end can take it.
    """
    model_type = str(source.config.get("model_type", "none"))
    if model_type in TEMPLATES:
        return TEMPLATES[model_type]
    ours = f"Templates: {', '.join(TEMPLATES)}"
    if "model_type" not in source.config:
        raise InputError(f"{source.folder}: config.json names no model_type. {ours}.")
    require("architectures", f"exporting model_type {model_type!r}, which has no template here,")
    refusals = []
    for name, front_end in (("mobius-onnx", _through_mobius), ("transformers", _through_transformers)):
        try:
            with waiting(progress, name):
                return front_end(source, model_type, progress)
        except (InputError, FormatError) as e:
            refusals.append(e)
    said = "\n".join(in_one_line(e) for e in refusals)
    kind = FormatError if all(isinstance(e, FormatError) for e in refusals) else InputError
    raise kind(f"config.json: model_type {model_type!r} is not supported. {ours}.\n{said}") from refusals[-1]


def _through_mobius(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.mobius_graph import MobiusTemplate
    from maskpro_deploy.exporters.frontends.mobius_model import known

    if model_type in MOBIUS_DIFFERS:
        raise InputError("mobius-onnx builds it otherwise than transformers.")
    if not known(model_type):
        raise InputError("mobius-onnx does not know it as a text generator.")
    found = MobiusTemplate(source, progress)
    found.read(source.config)  # refuses attention that it cannot translate
    return Template(read=found.read, build=found.build, prefix="", tool=found.tool, as_stored=not found.rearranged)


def _through_transformers(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.transformers_graph import TransformersTemplate
    from maskpro_deploy.exporters.frontends.transformers_model import known

    if not known(model_type):
        raise InputError("transformers does not know it as a causal language model.")
    found = TransformersTemplate(source, progress)
    return Template(read=found.read, build=found.build, prefix="", tool=found.tool)
