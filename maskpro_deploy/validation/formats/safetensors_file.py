"""One safetensors file: all matrices named `*.weight` count that are not a table or an output head (`names`).

Their axis is 1, `(out, in)`, as `torch.nn.Linear` stores them; models of the GPT-2 family, known by the `config.json` next to the
file, store `(in, out)`. Weights behind a bitmask are unpacked; other packed forms are unaccounted for.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.storage.bitmask import VALUES, list_parts, list_prefixes
from maskpro_deploy.storage.packing import find_packing
from maskpro_deploy.system.files import read_json
from maskpro_deploy.system.input_file import Entry, InputFile, read_header
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import FileArray, FlatArray, fp4_array
from maskpro_deploy.validation.formats.bitmask_parts import DTYPES, Entries, find_claim, read_weight
from maskpro_deploy.validation.formats.names import Doubt, Matrix, Neighbours, reduction_axis
from maskpro_deploy.validation.source import Finding, Reader, Rule, Source, Stored, Unchecked, Weight


def _judge_tensor(
    file: InputFile, name: str, entry: Entry, axis: int | None, role: Matrix | Rule | Doubt, *, listed: bool = False
) -> Finding:
    """What a tensor is to the checker: a weight, exempt by a rule, or unaccounted for."""
    if isinstance(role, Rule) and not listed:
        return role
    if isinstance(role, Doubt) and not listed:
        return _doubt(name, entry, role.reason)
    if len(entry.shape) != 2:
        return _doubt(name, entry, f"a tensor of {len(entry.shape)} dimensions does not say which one is the reduction axis")
    if axis is None:
        return _doubt(
            name, entry, "its reduction axis depends on the model's family, which config.json does not say or which is not known"
        )
    size = math.prod(entry.shape)
    data: FlatArray
    if entry.dtype in DTYPES:
        data = FileArray(file=file, offset=entry.offset, dtype=DTYPES[entry.dtype], size=size)
    elif entry.dtype == "F4":  # two to a byte
        nibbles = FileArray(file=file, offset=entry.offset, dtype=np.dtype(np.uint8), size=-(-size // 2))
        data = fp4_array(nibbles, size)
    else:
        return _doubt(name, entry, f"dtype {entry.dtype} packs or encodes its weights")
    linear = isinstance(role, Matrix)
    return Weight(name=name, shape=entry.shape, dtype=entry.dtype.lower(), axis=axis, data=data, listed=listed, linear=linear)


def _doubt(name: str, entry: Entry, reason: str) -> Unchecked:
    return Unchecked(name=name, shape=entry.shape, reason=reason, bytes=entry.bytes)


def read_contents(entries: Entries, config: Mapping[str, Any], listed: Collection[str] | None) -> Source:
    """Account for every tensor, in name order; the tensors of a compressed weight make one weight of its full shape.

    `listed` are the weights that masks list, None if nothing lists them; `config` is that of the model, or empty. For
    multiply-adds every matrix counts once, each expert too, and the output head, also where it is the tied embedding.
    """
    compressed = list_prefixes(entries)
    names = Neighbours(entries, listed, config)
    weights: list[Weight] = []
    unchecked: list[Unchecked] = []
    stored: list[Stored] = []
    adds = 0
    for name in sorted(entries):
        file, entry = entries[name]
        finding: Finding | None
        is_part = (prefix := name.rpartition(".")[0]) in compressed and name in list_parts(prefix)
        if is_part:
            finding = read_weight(prefix, entries, listed or ()) if name.endswith(VALUES) else None
        else:
            axis, role = reduction_axis(name, config), names.role(name)
            finding = _judge_tensor(file, name, entry, axis, role, listed=names.is_listed(name))
        if finding is not None:
            finding = names.judge(finding, name)
        if isinstance(finding, Weight):
            weights.append(finding)
        elif isinstance(finding, Unchecked):
            unchecked.append(finding)
        rule = finding if isinstance(finding, Rule) else None
        size = math.prod(entry.shape)
        if is_part:  # the parts of a compressed weight are one weight of its full shape
            size = math.prod(finding.shape) if isinstance(finding, (Weight, Unchecked)) else 0
        adds += size if _multiplies(finding, name, config) else 0
        stored.append(Stored(name=name, shape=entry.shape, bytes=entry.bytes, rule=rule, elements=size))
    return Source(
        kind="safetensors",
        weights=tuple(weights),
        unchecked=tuple(unchecked),
        stored=tuple(stored),
        num_parameters=sum(s.elements for s in stored),
        multiply_adds=adds,
        pattern=find_claim(compressed, entries),
    )


def _multiplies(finding: Finding | None, name: str, config: Mapping[str, Any]) -> bool:
    tied = bool(config.get("tie_word_embeddings")) and re.search(r"(embed_tokens|wte|embed_in)\.weight$", name) is not None
    return isinstance(finding, (Weight, Unchecked)) or finding is Rule.HEAD or tied


def note_packing(folder: Path, config: Mapping[str, Any], entries: Entries, contents: Source) -> tuple[str, ...]:
    """Which tool packed the weights that cannot be checked, if one did."""
    packing = find_packing(folder, config, {name: entry.dtype for name, (_, entry) in entries.items()})
    if packing is None or not contents.unchecked:
        return ()
    return (f"it is {packing}: weights in this form are not checked. {packing.remedy}",)


class SafetensorsReader(Reader):
    """Reader of single safetensors files."""

    takes, suffix = "a .safetensors file", ".safetensors"

    def read(self, path: Path, progress: Progress) -> Source:
        file = InputFile(path)
        entries = {name: (file, entry) for name, entry in read_header(file).entries.items()}
        beside = path.parent / "config.json"
        config = read_json(beside) if beside.is_file() else {}
        contents = read_contents(entries, config, None)
        return dataclasses.replace(contents, inputs=(file,), notes=note_packing(path.parent, config, entries, contents))
