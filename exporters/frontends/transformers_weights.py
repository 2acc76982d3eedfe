"""Which tensors of a checkpoint each parameter of transformers' model is made of.

transformers renames tensors when it loads and saves a model, and joins those of experts: one parameter holds, expert by expert,
gate above up. Its own list of these conversions is read here, so names lead back to the checkpoint, and every expert's part of a
parameter stays the checkpoint's mapped tensors.

Shapes: `X` experts, `N` outputs, `K` inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import ForeignWeight, check_all_used, place_of
from maskpro_deploy.exporters.frontends.experts import name_slice


def map_weights(checkpoint: Checkpoint, model: Any) -> dict[str, ForeignWeight]:
    """What each parameter holds, those of experts one by one; tied ones share what is stored under either's name.

    Raises:
        FormatError: the checkpoint lacks a parameter.
        InputError: it has tensors that the model does not use, or the model joins them in a way that is not known here.
    """
    tensors = checkpoint.map_torch()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers()}
    weights: dict[str, ForeignWeight] = {}
    used = set()
    for name, (conversion, groups) in _group_tensors(model, sorted(tensors), [*parameters, *buffers]).items():
        if name in parameters:
            weights |= _join(name, conversion, groups, tensors)
        if name in parameters or name in buffers:
            used |= {source for sources in groups for source in sources}
    by_place: dict[tuple[object, ...], list[str]] = {}
    for name, parameter in parameters.items():
        by_place.setdefault(place_of(parameter), []).append(name)
    for name, parameter in parameters.items():
        if name in weights or name_slice(name, 0) in weights:
            continue
        if (other := next((n for n in by_place[place_of(parameter)] if n in weights), None)) is None:
            raise FormatError(f"{checkpoint.folder} has no tensor for {name!r}, which transformers' model needs.")
        weights[name] = weights[other]
    check_all_used(checkpoint, used, "transformers")
    return weights


def _group_tensors(model: Any, names: Sequence[str], wanted: Sequence[str]) -> dict[str, tuple[tuple[str, ...], list[list[str]]]]:
    """Parameter -> the operations that make it, by name, and the names they take: a list for each pattern of names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    found: dict[str, tuple[tuple[str, ...], dict[str | None, list[str]]]] = {}
    known = dict.fromkeys(wanted, True)
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        converter = next((c for c in converters if pattern in c.source_patterns), None)
        operations, order = ((), (None,)) if converter is None else (converter.operations, converter.source_patterns)
        kinds = tuple(f"{type(op).__name__} {op.dim}" if hasattr(op, "dim") else type(op).__name__ for op in operations)
        found.setdefault(target, (kinds, {p: [] for p in order}))[1].setdefault(pattern, []).append(name)
    return {target: (kinds, list(groups.values())) for target, (kinds, groups) in found.items()}


def _join(
    name: str, operations: tuple[str, ...], groups: list[list[str]], tensors: Mapping[str, Any]
) -> dict[str, ForeignWeight]:
    """The weights that one parameter stands for: itself, or its experts'."""
    if not operations:
        source = groups[0][-1]
        return {name: ForeignWeight.of(tensors[source], (source,), same=True)}
    if operations not in (("MergeModulelist 0",), ("MergeModulelist 0", "Concatenate 1")):
        raise InputError(f"transformers makes {name!r} of {groups[0][0]!r} and others by {' and '.join(operations)}.")
    return {
        name_slice(name, i): ForeignWeight.join([tensors[s] for s in sources], sources)
        for i, sources in enumerate(zip(*groups, strict=True))
    }
