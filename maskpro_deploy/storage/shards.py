"""The files of a checkpoint folder: `config.json`, the index, and which file holds which tensor."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.system.files import read_json
from maskpro_deploy.system.input_file import open_tensors

log = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"
_MOST_SHARDS = 10_000
_PICKLE = "is a pickle, which can run code when it is opened. Save the model with save_pretrained, which writes safetensors."
_OTHERS = {
    "*.bin": _PICKLE,
    "*.pt": _PICKLE,
    "*.pth": _PICKLE,
    "*.onnx": "is an ONNX graph: `validate` reads the file, other commands want the checkpoint that it was exported from.",
    "*.gguf": "is a GGUF file: name the file itself.",
}


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`; an InputError if the folder has none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a Hugging Face checkpoint: it has no config.json.")
    return read_json(folder / "config.json")


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file, by the folder's index (empty without one); a FormatError if that is damaged or leads outside."""
    if not (folder / INDEX_FILE).is_file():
        return {}
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{folder / INDEX_FILE} has no weight_map.")
    places = {str(name): str(file) for name, file in weight_map.items()}
    if outside := sorted(file for file in set(places.values()) if Path(file).name != file):
        raise FormatError(f"{folder / INDEX_FILE} names a file outside the folder: {outside[0]!r}.")
    return places


def weight_files(folder: Path) -> list[Path]:
    """Every file of weights in a folder, those that its index leaves out too.

    Raises:
        InputError: there is none.
        FormatError: the index or the numbering of the files names one that is missing.
    """
    index = read_index(folder)
    files = {p.name for p in folder.glob("*.safetensors") if p.name != MASKS_FILE}
    if not files and not index:
        raise InputError(f"{folder} has no *.safetensors file: weights in other formats are not read.{_name_others(folder)}")
    expected = files.union(index.values() if index else (name for file in files for name in _name_series(file)))
    if absent := [name for name in sorted(expected) if not (folder / name).is_file()]:
        raise FormatError(f"{folder / absent[0]} is missing: the checkpoint is incomplete.")
    return [folder / name for name in sorted(expected)]


def _name_others(folder: Path) -> str:
    """What to do about the weights that a folder holds in other formats, as a further line; "" if it holds none that is known."""
    for pattern, remedy in _OTHERS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            return f"\n{found[0]} {remedy}"
    return ""


def _name_series(file: str) -> list[str]:
    """The names of all shards of a series, from that of one: model-00001-of-00002.safetensors."""
    match = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\.safetensors)", file)
    if match is None or int(match[4]) > _MOST_SHARDS:
        return []
    return [f"{match[1]}{i:0{len(match[2])}d}{match[3]}{match[4]}{match[5]}" for i in range(1, int(match[4]) + 1)]


def find_shards(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The file and the type of every stored tensor, by name."""
    index = read_index(folder)
    every = {path.name for path in weight_files(folder)}
    if extra := sorted(every - set(index.values())) if index else []:
        _warn_once(f"{folder}: {describe_extra(extra)} not in {INDEX_FILE}: ignored.")
    shard_of: dict[str, Path] = {}
    types: dict[str, str] = {}
    for name in sorted(set(index.values()) or every):
        with open_tensors(folder / name) as file:
            for tensor in file.keys():  # noqa: SIM118 (no mapping)
                shard_of[tensor], types[tensor] = folder / name, file.get_slice(tensor).get_dtype()
    if absent := sorted(index.keys() - shard_of.keys()):
        raise FormatError(f"{folder / INDEX_FILE} names {absent[0]}, which is in none of its files.")
    return shard_of, types


@cache
def _warn_once(message: str) -> None:
    """A checkpoint is opened several times by one command."""
    log.warning(message)


def describe_extra(files: Sequence[str]) -> str:
    """Some files as the subject of a sentence, with its verb: the first by name, the others by number."""
    return f"{files[0]} is" if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files are"
