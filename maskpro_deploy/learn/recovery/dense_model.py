"""The dense model that a sparse checkpoint came from: found by what the checkpoint says of it, and checked by its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import InputError, MaskProError
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.models import resolve
from maskpro_deploy.system.files import cache_folder

log = logging.getLogger(__name__)


def find_dense(sparse: Checkpoint, masks: MaskSet, given: str | None, *, other_weights: bool = False) -> Checkpoint:
    """The dense model of a sparse checkpoint; `masks` name their weights as the checkpoint does.

    `given` is what the user named, in any way that `models.resolve` takes. Without it the folder that learn.json names is looked
    at, then folders of that name next to the checkpoint and in the cache; the hash in the mask file says which is the one.

    Raises:
        InputError: there is none, or the one that was given is another model or, unless `other_weights`, has other weights.
    """
    if given is not None:
        dense = Checkpoint.open(resolve(given))
        _check_same_model(sparse, dense)
        if not other_weights:
            masks.check_hash(dense.dense_sha256(masks), f"the mask of {sparse.folder}", str(dense.folder))
        if not masks.dense_sha256:
            log.warning("%s does not say which dense weights it was made for: only names and shapes were compared", sparse.folder)
        return dense
    if masks.dense_sha256:
        for folder in _list_places(sparse):
            if (found := _open_dense(folder, sparse, masks)) is not None:
                return found
    reason = "no folder that it names has these weights" if masks.dense_sha256 else "its masks do not say what they were made for"
    raise InputError(
        f"the dense model of {sparse.folder} was not found: {reason}.\n"
        f"Name it by --teacher, or use --objective ce, which needs none."
    )


def find_dense_folder(sparse: Path, given: str | None, *, other_weights: bool = False) -> Path:
    """The folder of the dense model, see `find_dense`; a checkpoint whose masks have to be inferred needs it `given`."""
    checkpoint = Checkpoint.open(sparse)
    if (masks := checkpoint.masks) is not None:
        return find_dense(checkpoint, masks, given, other_weights=other_weights).folder
    if given is None:
        raise InputError(f"{sparse} does not say what its dense model is.\nName it by --teacher.")
    return resolve(given)


def _list_places(sparse: Checkpoint) -> Iterator[Path]:
    """Where the dense model may be."""
    record = sparse.record
    folder, name = record.get("dense"), record.get("model")
    if isinstance(folder, str):
        yield Path(folder)
    if isinstance(name, str) and name and Path(name).name == name:
        yield sparse.folder.resolve().parent / name
        yield cache_folder() / name


def _open_dense(folder: Path, sparse: Checkpoint, masks: MaskSet) -> Checkpoint | None:
    """The model in a folder, if it is the dense one."""
    try:
        dense = Checkpoint.open(folder)
        _check_same_model(sparse, dense)
        masks.check_hash(dense.dense_sha256(masks), str(sparse.folder), str(folder))
    except MaskProError as e:
        log.info("%s is not the dense model: %s", folder, e)
        return None
    return dense


def _check_same_model(sparse: Checkpoint, dense: Checkpoint) -> None:
    """Refuse a model of other shapes, or with another tokenizer (InputError)."""
    for name, shape in sparse.shapes.items():
        if dense.shapes.get(name) != shape:
            has = f"has it as {list(dense.shapes[name])}" if name in dense.shapes else "has no such tensor"
            raise InputError(
                f"the teacher {dense.folder} is another model than {sparse.folder}: {name} is {list(shape)} there, and the "
                f"teacher {has}.\nGive the dense model that the sparse one was made from."
            )
    if load_tokenizer(sparse.folder).get_vocab() != load_tokenizer(dense.folder).get_vocab():
        raise InputError(
            f"the teacher {dense.folder} has another tokenizer than {sparse.folder}.\n"
            f"Give the dense model that the sparse one was made from."
        )
