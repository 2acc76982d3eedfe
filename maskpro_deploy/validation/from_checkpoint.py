"""A Hugging Face folder. With `masks.safetensors` beside its shards, the listed weights must be zero wherever the mask is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation.from_masks import mask_array
from maskpro_deploy.validation.from_safetensors import Entry, find, linear_axis, read_header
from maskpro_deploy.validation.source import Source, Unchecked, Weight


class CheckpointReader:
    """Reader of checkpoint folders."""

    def accepts(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, progress: Progress) -> Source:
        checkpoint = Checkpoint.open(path)
        masks = checkpoint.masks
        entries: dict[str, tuple[Path, Entry]] = {}
        for shard in checkpoint.shards:
            entries |= {name: (shard, entry) for name, entry in read_header(shard).items()}
        axis = linear_axis(checkpoint.config)
        found = []
        for name in sorted(entries):
            file, entry = entries[name]
            item = find(file, name, entry, axis, listed=masks is not None and name in masks)
            if item is not None and (item.linear or item.listed):
                found.append(_with_mask(item, masks) if masks is not None else item)
        return Source(
            kind="checkpoint",
            weights=tuple(f for f in found if isinstance(f, Weight)),
            unchecked=tuple(f for f in found if isinstance(f, Unchecked)),
            problems=tuple(_problems(masks, entries)) if masks is not None else (),
            num_parameters=sum(math.prod(e.shape) for _, e in entries.values()),
            pattern=masks.pattern if masks is not None else None,
            has_list=masks is not None,
        )


def _with_mask(item: Weight | Unchecked, masks: MaskSet) -> Weight | Unchecked:
    if not isinstance(item, Weight) or not item.listed or masks.shapes[item.name] != item.shape:
        return item
    return dataclasses.replace(item, mask=mask_array(masks, item.name), axis=1)


def _problems(masks: MaskSet, entries: dict[str, tuple[Path, Entry]]) -> list[str]:
    problems = [f"{MASKS_FILE} names {name}, which the checkpoint lacks" for name in masks if name not in entries]
    for name in masks:
        if name in entries and entries[name][1].shape != masks.shapes[name]:
            shape = list(entries[name][1].shape)
            problems.append(f"{MASKS_FILE} has shape {list(masks.shapes[name])} for {name}, the checkpoint {shape}")
    return problems
