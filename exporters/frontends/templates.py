"""Who builds the graph of a checkpoint: its template, else mobius-onnx, else transformers."""

from __future__ import annotations

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError, in_one_line
from maskpro_deploy.exporters.architectures.registry import TEMPLATES
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import SILENT, Progress, waiting

# what mobius-onnx builds otherwise than transformers, as comparisons have shown (0.1.0): heads turned in pairs, norms
MOBIUS_DIFFERS = frozenset({"cohere", "ernie4_5", "gemma"})


def choose_template(source: Checkpoint, progress: Progress = SILENT) -> Template:
    """What builds the graph of a checkpoint: a template of ours, else the first front end that can.

    `progress` shows how long a front end takes, now and when it builds the graph in another float type.

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
    for name, front_end in (("mobius-onnx", _translate_mobius), ("transformers", _trace_transformers)):
        try:
            with waiting(progress, name):
                return front_end(source, model_type, progress)
        except (InputError, FormatError) as e:
            refusals.append(e)
    said = "\n".join(in_one_line(e) for e in refusals)
    kind = FormatError if all(isinstance(e, FormatError) for e in refusals) else InputError
    raise kind(f"config.json: model_type {model_type!r} is not supported. {ours}.\n{said}") from refusals[-1]


def _translate_mobius(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.mobius_graph import MobiusGraph
    from maskpro_deploy.exporters.frontends.mobius_model import is_known

    if model_type in MOBIUS_DIFFERS:
        raise InputError("mobius-onnx builds it otherwise than transformers.")
    if not is_known(model_type):
        raise InputError("mobius-onnx does not know it as a text generator.")
    graph = MobiusGraph(source, progress)
    graph.read(source.config)  # refuses attention that it cannot translate
    return Template(read=graph.read, build=graph.build, prefix="", tool=graph.tool, as_stored=not graph.rearranged)


def _trace_transformers(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.transformers_model import TransformersGraph, is_known

    if not is_known(model_type):
        raise InputError("transformers does not know it as a causal language model.")
    graph = TransformersGraph(source, progress)
    return Template(read=graph.read, build=graph.build, prefix="", tool=graph.tool)
