"""Blocks whose weights stay on disk while they are not at work, for models that do not fit into memory.

Such a model is built with block weights that take no memory: zeros, expanded from a single one. A block reads its weights from
their files when its forward pass begins, and is empty again when it ends; `keep_block` holds those of one block for longer. The
model works as it always does, slower by the reading. What stays in memory is all that is in no block: the embeddings above all.

Weights are read into memory of their own, never mapped for longer than that: a mapped page would count as used, and its place
in memory could change the last bits of a product.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.model.basis import apply, change_basis, load_basis
from maskpro_deploy.learn.model.calibration import decoder_blocks
from maskpro_deploy.learn.model.experts import list_fused
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.tensor_names import find_tensors, map_names
from maskpro_deploy.learn.model.transposed import turn_layers
from maskpro_deploy.system.input_file import open_tensors
from maskpro_deploy.torch_lm import build_without_weights, load_causal_lm
from maskpro_deploy.transform import Transform

log = logging.getLogger(__name__)

_AS_IT_IS = Transform()


class PagedModel(LearningModel):
    """A model whose blocks are empty unless they are at work; it goes to a device without them.

    `files` says where each of their parameters is stored, under its own name; `transform` is what those go through.
    """

    def __init__(self, model: Any, files: Mapping[str, Path], place: str, transform: Transform = _AS_IT_IS) -> None:
        self._files, self._place = dict(files), torch.device(place)
        self._changes = transform.places
        self._bases = {name: load_basis(basis, self._place) for name, basis in transform.bases.items()}
        blocks = decoder_blocks(model)
        self._parameters = {b: {f"{b}.{n}": p for n, p in module.named_parameters()} for b, module in blocks.items()}
        self._shapes = {n: p.shape for own in self._parameters.values() for n, p in own.items()}
        # one for all: a small tensor made where a large one was freed would keep the next large one from taking its place
        types = {p.dtype for own in self._parameters.values() for p in own.values()}
        self._zeros = {dtype: torch.zeros((), dtype=dtype, device=self._place) for dtype in types}
        self._full: set[str] = set()
        self._kept: str | None = None
        for own in self._parameters.values():
            for parameter in own.values():
                parameter.data = parameter.data.new_empty(0)  # else each would be whole on its way
        super().__init__(model.to(self._place))
        for name, module in blocks.items():
            self._empty(name)
            module.register_forward_pre_hook(lambda _, args, name=name: self._read(name))
            module.register_forward_hook(lambda _, args, output, name=name: self._leave(name))

    def keep_block(self, block: str) -> None:
        before, self._kept = self._kept, block
        if before is not None:
            self._leave(before)
        self._read(block)

    def take_weights(self, names: Collection[str], file: Path) -> None:
        self._files |= dict.fromkeys(names, file)
        for block, own in self._parameters.items():
            if own.keys() & set(names):
                self._empty(block)
        if self._kept is not None:
            self._read(self._kept)

    def _read(self, block: str) -> None:
        if block in self._full:
            return
        by_file: dict[Path, list[str]] = {}
        for name in self._parameters[block]:
            by_file.setdefault(self._files[name], []).append(name)
        with torch.inference_mode(False):  # a tensor made in that mode could not be trained later
            for path, names in by_file.items():
                with open_tensors(path, "pt") as file:
                    for name in names:
                        parameter = self._parameters[block][name]
                        weight = file.get_tensor(name).to(self._place, parameter.dtype, copy=True)
                        for axis, basis in self._changes.get(name, ()):
                            weight = change_basis(weight, axis, self._bases[basis])
                        parameter.data = weight.contiguous()
        self._full.add(block)

    def _leave(self, block: str) -> None:
        if block != self._kept:
            self._empty(block)

    def _empty(self, block: str) -> None:
        for name, parameter in self._parameters[block].items():
            parameter.data = self._zeros[parameter.dtype].expand(self._shapes[name])
        self._full.discard(block)


def open_paged(checkpoint: Checkpoint, dtype: torch.dtype, place: str, transform: Transform = _AS_IT_IS) -> LearningModel:
    """The model of a checkpoint on a device, its blocks on disk; loaded whole, and a line in the log, where they cannot be.

    They can where each of their parameters is a tensor of the checkpoint, by name and shape. `transform` is what all weights go
    through.
    """
    try:
        inside = list_block_tensors(checkpoint)
    except InputError as e:
        log.warning("the whole model is loaded into memory: %s", str(e).splitlines()[0])
        whole = LearningModel(load_causal_lm(checkpoint.folder, dtype).to(place))
        apply(whole, transform, find_tensors(whole, checkpoint))
        return whole
    model = load_causal_lm(checkpoint.folder, dtype, empty=inside)
    paged = PagedModel(model, {name: checkpoint.shard_of[name] for name in inside}, place, transform)
    names = find_tensors(paged, checkpoint)
    apply(paged, transform, {own: name for own, name in names.items() if own not in inside})
    return paged


def list_block_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """The parameters of all blocks, each of which is a tensor (InputError: one is not)."""
    model: Any = build_without_weights(checkpoint.folder)
    blocks = decoder_blocks(model)
    inside = {f"{b}.{n}": p for b, module in blocks.items() for n, p in module.named_parameters(remove_duplicate=False)}
    outside = [p for n, p in model.named_parameters(remove_duplicate=False) if n not in inside]
    stored = map_names(model, [n for n, _ in model.named_parameters()], checkpoint.names)
    kind = type(model).__name__
    if checkpoint.bitmasks:
        raise InputError(f"the weights of {checkpoint.folder} are behind bitmasks.")
    if list(list_fused(model)) or turn_layers(model):
        raise InputError(f"{kind} stores its linear layers in another form than they are trained in.")
    if len({id(p) for p in (*inside.values(), *outside)}) < len({id(p) for p in inside.values()}) + len({id(p) for p in outside}):
        raise InputError(f"{kind} shares weights between its blocks and other parts.")
    for name, parameter in inside.items():
        if stored.get(name) != name or checkpoint.shapes[name] != tuple(parameter.shape):
            raise InputError(f"{checkpoint.folder} has no tensor {name} of the shape that {kind} gives it.")
    return frozenset(inside)
