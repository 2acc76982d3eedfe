"""What rank 0 has, given to all: saved states, and arrays that were found by a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.learn.ranks.group import Ranks

R = TypeVar("R")
Saved = tuple[dict[str, Tensor], dict[str, Any]]


def share_saved(ranks: Ranks, load: Callable[[], Saved]) -> Saved:
    """Tensors and counters that rank 0 loads; no other rank needs to reach the file."""
    if ranks.size == 1:
        return load()
    tensors, counters = load() if ranks.leads else ({}, {})
    layout = {name: [str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in tensors.items()}
    layout, counters = ranks.tell([layout, counters])
    for name, (dtype, shape) in layout.items():
        own = tensors[name].contiguous() if ranks.leads else torch.empty(shape, dtype=getattr(torch, dtype))
        tensors[name] = _copy_bytes(ranks, own)
    return tensors, counters


def in_turn(ranks: Ranks, work: Callable[[], R]) -> R:
    """Work that every rank does, rank 0 first: what that downloads or writes into the cache is there for the others."""
    if not ranks.leads:
        ranks.tell(None)
        return work()
    done = work()
    ranks.tell(None)
    return done


def share_arrays(ranks: Ranks, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of rank 0."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
    return {name: x.numpy() for name, x in share_saved(ranks, lambda: (tensors, {}))[0].items()}


def _copy_bytes(ranks: Ranks, tensor: Tensor) -> Tensor:
    """The bits of a tensor of rank 0, whatever its dtype."""
    if not tensor.numel():
        return tensor
    ranks.copy(tensor.view(-1).view(torch.uint8))
    return tensor
