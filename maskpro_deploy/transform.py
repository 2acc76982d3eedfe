"""Changes of basis of a model that leave what it computes as it is: which channels lie next to each other, and in what basis.

The hidden channels of an MLP can be permuted if the rows of its first layers and the columns of its last one are; so can those
between the value and the output projection of each key/value head, and those of the residual stream if every layer that reads or
writes it follows. A mask of N of every M neighbours depends on who the neighbours are, the dense model does not.

A basis is an array over `K` parts of `D` channels: a permutation of each part (K, D), whose channel i is the old one at its entry
i, or an orthogonal matrix for each part (K, D, D), whose channel i is row i times the old ones. An axis of a tensor has K * R * D
channels: each part R times in a row, once for every query head that shares a key/value head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import FormatError, InputError

PREFIX = "transform/"  # of the names of bases in a mask file
_ORTHOGONAL = 1e-4  # largest entry of B Bᵀ - 1


class Place(NamedTuple):
    """An axis of a tensor as a checkpoint stores it, and the basis of its channels."""

    axis: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A change of basis of a whole model; `Transform()` changes nothing."""

    bases: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # name -> (K, D) int32 or (K, D, D) float32
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)  # tensor of the checkpoint -> its axes

    def __bool__(self) -> bool:
        return bool(self.places)

    def apply(self, name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A tensor of the dense checkpoint in the new bases, in its own dtype; one without a place as it is."""
        for axis, basis in self.places.get(name, ()):
            tensor = _change(tensor, axis, self.bases[basis])
        return np.ascontiguousarray(tensor)

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], transform: str, model: str) -> None:
        """Check that a model has every tensor that is changed; a message calls the two `transform` and `model`.

        Raises:
            InputError: naming the first tensor that does not fit.
        """
        for name, axes in sorted(self.places.items()):
            shape = shapes.get(name, ())
            for axis, basis in axes:
                size = int(np.prod(self.bases[basis].shape[:2]))
                if axis >= len(shape) or shape[axis] % size:
                    has = f"axis {axis} of {list(shape)}" if name in shapes else "no such tensor"
                    raise InputError(
                        f"{transform} do not belong to {model}: their change of basis needs a multiple of {size} channels of "
                        f"{name}, which has {has}."
                    )

    def sha256(self) -> str:
        """Hash of bases and places; empty for no change."""
        if not self:
            return ""
        digest = hashlib.sha256(self.describe_places().encode())
        for name in sorted(self.bases):
            digest.update(f"\0{name}\0{self.bases[name].shape}\0".encode() + self.bases[name].tobytes())
        return digest.hexdigest()

    def kinds(self) -> dict[str, int]:
        """How many bases of each kind there are: "residual", "mlp" and "heads", by the first part of their names."""
        kinds: dict[str, int] = {}
        for name in sorted(self.bases):
            kinds[name.partition(".")[0]] = kinds.get(name.partition(".")[0], 0) + 1
        return kinds

    def describe_places(self) -> str:
        """The places as JSON, for the metadata of a file; see `read_transform`."""
        return json.dumps({name: [list(place) for place in axes] for name, axes in sorted(self.places.items())})


def read_transform(places: str, bases: Mapping[str, npt.NDArray[Any]], where: str) -> Transform:
    """What `Transform.describe_places` and its bases say.

    Raises:
        FormatError: they do not fit together, or a basis is neither a permutation nor orthogonal.
    """
    try:
        found = {
            str(name): tuple(Place(int(axis), str(basis)) for axis, basis in axes) for name, axes in json.loads(places).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError(f"{where} has a damaged change of basis: {e}") from e
    used = {place.basis for axes in found.values() for place in axes}
    if used != bases.keys() or any(not 0 <= place.axis < 2 for axes in found.values() for place in axes):
        raise FormatError(f"{where} has a damaged change of basis: its places and its bases do not fit together.")
    for name, basis in bases.items():
        if not (_permutes(basis) or _rotates(basis)):
            raise FormatError(f"{where} has a damaged change of basis: {name} is neither a permutation nor orthogonal.")
    return Transform(bases=dict(bases), places=found)


def combine(parts: Iterable[Transform]) -> Transform:
    """Several changes of basis as one; of a tensor's axis at most one of them has a basis."""
    bases: dict[str, npt.NDArray[Any]] = {}
    places: dict[str, tuple[Place, ...]] = {}
    for part in parts:
        bases |= part.bases
        for name, axes in part.places.items():
            places[name] = (*places.get(name, ()), *axes)
    return Transform(bases=bases, places=places)


def _change(tensor: npt.NDArray[Any], axis: int, basis: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One axis in a new basis."""
    count, size = basis.shape[:2]
    parts = np.moveaxis(tensor, axis, 0).reshape(count, -1, size, tensor.size // tensor.shape[axis])  # (K, R, D, others)
    if basis.ndim == 2:
        changed = np.take_along_axis(parts, basis[:, None, :, None].astype(np.intp), axis=2)
    else:
        changed = (basis[:, None].astype(np.float64) @ parts.astype(np.float64)).astype(tensor.dtype)
    shape = (tensor.shape[axis], *tensor.shape[:axis], *tensor.shape[axis + 1 :])
    return np.moveaxis(changed.reshape(shape), 0, axis)


def _permutes(basis: npt.NDArray[Any]) -> bool:
    if basis.ndim != 2 or basis.dtype.kind != "i" or not basis.size:
        return False
    return bool((np.sort(basis, axis=1) == np.arange(basis.shape[1])).all())


def _rotates(basis: npt.NDArray[Any]) -> bool:
    if basis.ndim != 3 or basis.dtype.kind != "f" or not basis.size or basis.shape[1] != basis.shape[2]:
        return False
    wide = basis.astype(np.float64)
    return bool((abs(wide @ wide.transpose(0, 2, 1) - np.eye(basis.shape[1])) < _ORTHOGONAL).all())
