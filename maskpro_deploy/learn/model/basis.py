"""Moving the weights of a model into other bases, in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.transform import Transform


def change_basis(tensor: Tensor, axis: int, basis: Tensor) -> Tensor:
    """One axis of a tensor in a new basis: (K, D) a permutation, (K, D, D) orthogonal; see `maskpro_deploy.transform`."""
    count, size = basis.shape[:2]
    parts = tensor.movedim(axis, 0)
    shape = parts.shape
    parts = parts.reshape(count, shape[0] // (count * size), size, -1)  # (K, R, D, others)
    if basis.dim() == 2:
        changed = torch.stack([part.index_select(1, order) for part, order in zip(parts, basis.long(), strict=True)])
    else:
        changed = (basis[:, None].double() @ parts.double()).to(tensor.dtype)
    return changed.reshape(shape).movedim(0, axis)


def apply(model: LearningModel, transform: Transform, names: Mapping[str, str]) -> None:
    """Move a model's weights.

    Args:
        model: its parameters are replaced in place.
        transform: with the tensors of the checkpoint.
        names: what parameters of the model are called there; others stay.
    """
    bases = {name: load_basis(basis, model.head.device) for name, basis in transform.bases.items()}
    done: set[int] = set()
    for own, parameter in model.model.named_parameters(remove_duplicate=False):
        if own not in names or id(parameter) in done:
            continue
        done.add(id(parameter))
        for axis, basis in transform.places.get(names[own], ()):
            turned = own in model.transposed and parameter.dim() == 2
            moved = change_basis(parameter.data, 1 - axis if turned else axis, bases[basis])
            parameter.data = moved.t().contiguous().t() if turned else moved.contiguous()


def load_basis(basis: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A basis as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(basis)).to(device)
