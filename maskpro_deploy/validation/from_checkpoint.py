"""A Hugging Face folder. With `masks.safetensors` beside its shards, the listed weights must be zero wherever the mask is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation import bitmask24
from maskpro_deploy.validation.bitmask24 import Entries, Entry
from maskpro_deploy.validation.from_masks import MaskFile
from maskpro_deploy.validation.from_safetensors import collect, linear_axis, matrices, num_parameters, read_header
from maskpro_deploy.validation.inputs import InputFile
from maskpro_deploy.validation.source import Source, Unchecked, Weight


class CheckpointReader:
    """Reader of checkpoint folders."""

    def accepts(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, progress: Progress) -> Source:
        _refuse_pipes(path)
        checkpoint = Checkpoint.open(path)
        masks = MaskFile.open(path / MASKS_FILE) if (path / MASKS_FILE).is_file() else None
        files = [InputFile(shard) for shard in checkpoint.shards]
        entries: dict[str, tuple[InputFile, Entry]] = {}
        problems = []
        for file in files:
            for name, entry in read_header(file).entries.items():
                if name in entries:
                    problems.append(f"{name} is in two files, {entries[name][0].path.name} and {file.path.name}")
                entries[name] = (file, entry)
        found = list(collect(entries, linear_axis(checkpoint.config), masks.shapes if masks is not None else {}))
        kept = [f for f in found if f.linear or f.listed]
        if masks is not None:
            kept = [_with_mask(item, masks) for item in kept]
            problems += _mask_problems(masks, entries, found)
        return Source(
            kind="checkpoint",
            weights=tuple(f for f in kept if isinstance(f, Weight)),
            unchecked=tuple(f for f in kept if isinstance(f, Unchecked)),
            problems=tuple(problems),
            num_parameters=num_parameters(entries, found),
            pattern=masks.pattern if masks is not None else bitmask24.PATTERN if bitmask24.prefixes(entries) else None,
            has_list=masks is not None,
            inputs=(*files, *([masks.file] if masks is not None else [])),
            multiply_adds=matrices(found, checkpoint.config),
        )


def _refuse_pipes(folder: Path) -> None:
    """Opening a pipe would wait for its writer."""
    for path in folder.iterdir():
        if path.is_fifo() or path.is_socket() or path.is_block_device() or path.is_char_device():
            raise FormatError(f"{path} is no regular file: it is not read.")


def _with_mask(item: Weight | Unchecked, masks: MaskFile) -> Weight | Unchecked:
    if not isinstance(item, Weight) or not item.listed or masks.shapes[item.name] != item.shape:
        return item
    return dataclasses.replace(item, mask=masks.array(item.name), axis=1)


def _mask_problems(masks: MaskFile, entries: Entries, found: list[Weight | Unchecked]) -> list[str]:
    shapes = {name: entry.shape for name, (_, entry) in entries.items()} | {f.name: f.shape for f in found}
    problems = [f"{MASKS_FILE} names {name}, which the checkpoint lacks" for name in sorted(masks.shapes) if name not in shapes]
    for name in sorted(masks.shapes):
        if name in shapes and shapes[name] != masks.shapes[name]:
            own, other = list(masks.shapes[name]), list(shapes[name])
            problems.append(f"{MASKS_FILE} has shape {own} for {name}, the checkpoint {other}")
    return problems
