"""A Hugging Face folder. With `masks.safetensors` next to its shards, the listed weights must be zero wherever the mask is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.storage.shards import INDEX_FILE, describe_extra, read_config, read_index, weight_files
from maskpro_deploy.system.input_file import Entry, InputFile, read_header
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.formats.bitmask_parts import Entries
from maskpro_deploy.validation.formats.masks import mask_array, mask_inputs, transpose_mask
from maskpro_deploy.validation.formats.safetensors_file import note_packing, read_contents
from maskpro_deploy.validation.source import Reader, Source, Weight

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class CheckpointReader(Reader):
    """Reader of checkpoint folders."""

    takes = "a checkpoint folder"

    def accepts(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, progress: Progress) -> Source:
        _refuse_pipes(path)
        config = read_config(path)
        masks = MaskSet.load(path / MASKS_FILE) if (path / MASKS_FILE).is_file() else None
        shards = weight_files(path)
        files = [InputFile(shard) for shard in shards]
        entries: dict[str, tuple[InputFile, Entry]] = {}
        problems = []
        for file in files:
            for name, entry in read_header(file).entries.items():
                if name in entries:
                    problems.append(f"{name} is in two files, {entries[name][0].path.name} and {file.path.name}")
                entries[name] = (file, entry)
        problems += _check_index(path, entries)
        # an adapter next to the weights changes what they compute
        problems += [f"{name} belongs to an adapter, which is not merged" for name in _ADAPTER_FILES if (path / name).is_file()]
        contents = read_contents(entries, config, masks.shapes if masks is not None else None)
        weights = contents.weights
        if masks is not None:
            weights = tuple(_add_mask(weight, masks) for weight in weights)
            problems += _check_masks(masks, entries, contents)
        return dataclasses.replace(
            contents,
            kind="checkpoint",
            weights=weights,
            problems=tuple(problems),
            pattern=masks.pattern if masks is not None else contents.pattern,
            has_list=masks is not None,
            transposable=masks is not None and masks.transposable,
            inputs=(*files, *mask_inputs(masks)),
            left_dense=masks.dense if masks is not None else {},
            notes=(*note_packing(path, config, entries, contents), *_write_notes(path, shards)),
        )


def _write_notes(folder: Path, shards: Sequence[Path]) -> Iterator[str]:
    if inner := sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")):
        yield f"weights in folders inside are not read: {inner[0]}" + (" and others" if len(inner) > 1 else "")
    listed = set(read_index(folder).values())
    if extra := [shard.name for shard in shards if shard.name not in listed] if listed else []:
        yield f"{describe_extra(extra)} not in {INDEX_FILE}: checked here, ignored by whatever loads the model"


def _check_index(folder: Path, entries: Entries) -> list[str]:
    """What the index says and the files do not hold."""
    places = read_index(folder)
    absent = [f"{INDEX_FILE} names {name}, which is in no file" for name in sorted(places) if name not in entries]
    elsewhere = [
        f"{INDEX_FILE} says that {name} is in {file}; it is in {entries[name][0].path.name}"
        for name, file in sorted(places.items())
        if name in entries and entries[name][0].path.name != file
    ]
    return absent + elsewhere


def _refuse_pipes(folder: Path) -> None:
    """Opening a pipe would wait for its writer."""
    for path in folder.iterdir():
        if path.is_fifo() or path.is_socket() or path.is_block_device() or path.is_char_device():
            raise FormatError(f"{path} is not a regular file: it is not read.")


def _add_mask(weight: Weight, masks: MaskSet) -> Weight:
    if not weight.listed or masks.stored_shape(weight.name) != weight.shape:
        return weight
    turned = weight.name in masks.transposed
    return dataclasses.replace(
        weight, pattern=masks.patterns.get(weight.name), mask=(transpose_mask if turned else mask_array)(masks, weight.name)
    )


def _check_masks(masks: MaskSet, entries: Entries, contents: Source) -> list[str]:
    shapes = {name: entry.shape for name, (_, entry) in entries.items()} | {w.name: w.shape for w in contents.weights}
    named = sorted({*masks.shapes, *masks.dense})
    problems = [f"{MASKS_FILE} names {name}, which the checkpoint lacks" for name in named if name not in shapes]
    for name in sorted(masks.shapes):
        if name in shapes and shapes[name] != masks.stored_shape(name):
            own, other = list(masks.stored_shape(name)), list(shapes[name])
            problems.append(f"{MASKS_FILE} has shape {own} for {name}, the checkpoint {other}")
    orders = ("(in, out)", "(out, in)")  # by the reduction axis
    for weight in contents.weights:
        if weight.listed and weight.axis != (axis := int(weight.name not in masks.transposed)):
            problems.append(f"{MASKS_FILE} takes {weight.name} to be stored {orders[axis]}, it is {orders[weight.axis]}")
    return problems
