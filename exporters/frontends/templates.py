"""Who builds the graph of a checkpoint: its template, else mobius-onnx, else transformers.

A graph is tried in earnest: it is opened and, where that is asked for, compared. One that will not do is `Unfit`, and the next
front end gets its turn. What is wrong with a checkpoint or a setting whoever builds the graph ends all attempts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError, MaskProError
from maskpro_deploy.exporters.architectures.registry import TEMPLATES
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.progress import SILENT, Progress, waiting

T = TypeVar("T")
log = logging.getLogger(__name__)
_SHOWN_LINES = 2  # of what a front end said
# kinds of models that mobius-onnx (0.1.0) builds as transformers does, as scripts/check_families shows; of others heads turned
# in pairs, norms and windows can come out wrong
MOBIUS_AGREES = frozenset({
    "apertus", "arcee", "flex_olmo", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "ministral", "mixtral",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "qwen2_moe", "qwen3_moe", "stablelm", "starcoder2",
})  # fmt: skip


class Unfit(Exception):
    """A graph that will not do, where another front end's may; `error` says why."""

    def __init__(self, error: MaskProError) -> None:
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def blame_graph() -> Iterator[None]:
    """Takes what is refused inside for a fault of the graph (Unfit), not of the checkpoint; settings stay the user's."""
    try:
        yield
    except ConfigError:
        raise
    except (InputError, CheckFailed) as e:
        raise Unfit(e) from e


def use_template(source: Checkpoint, use: Callable[[Template], T], progress: Progress = SILENT, *, compared: bool = False) -> T:
    """What `use` makes of a checkpoint's template, or of the first front end with which it is not `Unfit`.

    `compared`: `use` compares logits so closely that a graph which computes something else does not pass. Else mobius-onnx builds
    only what it is known to build rightly. `progress` shows how long a front end takes, now and in another float type.

    Raises:
        InputError: no front end can build its architecture; the message says what each one said. Or its kind of model keeps a
            state that no form of the cache holds.
        MissingExtraError: there is no template, and the front ends are not installed.
        FormatError: no front end can take it.
        CheckFailed: no front end's graph computes what the checkpoint does.
    """
    model_type = str(source.config.get("model_type", ""))
    refusals: dict[str, MaskProError] = {}
    if (template := TEMPLATES.get(model_type)) is not None:
        refusal = _find_refusal(template, source)
        if refusal is None or missing("architectures"):
            return _use_own(template, use, refusal)
        refusals["template"] = refusal
    elif not model_type:
        raise InputError(f"{source.folder}: config.json names no model_type. Templates: {', '.join(TEMPLATES)}.")
    require("architectures", f"exporting model_type {model_type!r}, which has no template here,")
    from maskpro_deploy.exporters.frontends.transformers_model import check_stateless

    check_stateless(source)
    for name, front_end in (("mobius-onnx", _translate_mobius), ("transformers", _trace_transformers)):
        try:
            if name == "mobius-onnx" and not compared and model_type not in MOBIUS_AGREES:
                raise Unfit(InputError("it is not known to build this model_type rightly; only a comparison in fp32 would tell."))
            with blame_graph(), waiting(progress, name):
                template = front_end(source, model_type, progress)
            return use(template)
        except Unfit as e:
            refusals[name] = e.error.with_traceback(None)  # whose frames hold the graph and the model that it was compared with
            log.info("%s: %s", name, e.error)
    raise _sum_up(source.folder, model_type, refusals) from list(refusals.values())[-1]


def _find_refusal(template: Template, source: Checkpoint) -> InputError | None:
    """What a template says of a variant that it does not know (FormatError: the config makes no sense)."""
    try:
        template.read(source.config)
    except FormatError:
        raise
    except InputError as e:
        return e
    return None


def _use_own(template: Template, use: Callable[[Template], T], refusal: InputError | None) -> T:
    if refusal is not None:
        raise refusal
    try:
        return use(template)
    except Unfit as e:
        raise e.error from e.error.__cause__


def _sum_up(folder: Path, model_type: str, refusals: Mapping[str, MaskProError]) -> MaskProError:
    """One error of what was said, a line for each that said it."""
    said = {name: " ".join(str(e).splitlines()[:_SHOWN_LINES]) for name, e in refusals.items()}
    if len(set(said.values())) == 1:  # a fault that is there whoever builds the graph
        return next(iter(refusals.values()))
    kinds = {type(e) for e in refusals.values()}
    kind: type[MaskProError] = InputError
    for narrow in (CheckFailed, FormatError):
        kind = narrow if all(issubclass(k, narrow) for k in kinds) else kind
    lines = (f"{name}: {_drop_folder(text, folder)}" for name, text in said.items())
    return kind("\n".join([f"{folder} (model_type {model_type!r}) cannot be exported.", *lines]))


def _drop_folder(text: str, folder: Path) -> str:
    return text.replace(f"{folder}: ", "").replace(str(folder), "the checkpoint")


def _translate_mobius(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.mobius_graph import MobiusGraph
    from maskpro_deploy.exporters.frontends.mobius_model import is_known

    if not is_known(model_type):
        raise InputError("it does not know this model_type as a text generator.")
    graph = MobiusGraph(source, progress)
    graph.read(source.config)  # refuses attention that it cannot translate
    return Template(read=graph.read, build=graph.build, prefix="", tool=graph.tool, as_stored=not graph.rearranged)


def _trace_transformers(source: Checkpoint, model_type: str, progress: Progress) -> Template:
    from maskpro_deploy.exporters.frontends.transformers_model import TransformersGraph, is_known

    if not is_known(model_type):
        raise InputError("it does not know this model_type as a causal language model.")
    graph = TransformersGraph(source, progress)
    return Template(read=graph.read, build=graph.build, prefix="", tool=graph.tool, as_stored=not graph.rearranged)
