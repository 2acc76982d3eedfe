"""Norms of layers' inputs, kept between runs: forward passes of the dense model make them, and they are few numbers.

One file for each model, text and setting, in the cache folder. Its name is a hash of all that decides on the bits: the weights,
the model's settings, the calibration tokens and how they are batched, the layers, dtype, device and libraries. A file is used if
the hash of its numbers is the one that it names; any other is replaced.

Shapes: `C` inputs of a layer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import MaskProError
from maskpro_deploy.learn.model.calibration import whole_model_norms
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.system.files import atomic_file, cache_folder

log = logging.getLogger(__name__)

FORMAT = "maskpro-deploy/input-norms 1"


@dataclass(frozen=True, slots=True)
class NormCache:
    """`whole_model_norms` of one dense checkpoint, computed only where the cache folder does not have them."""

    weights_sha256: str  # of all tensors of the checkpoint

    def __call__(self, model: LearningModel, layers: Mapping[str, nn.Linear], batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """‖x_j‖₂ of every layer's inputs; batches (B, T).  # by weight name: (C,) float32"""
        path = cache_folder() / "norms" / f"{self._key(model, layers, batches)}.safetensors"
        if (norms := _read(path, layers)) is not None:
            log.info("the norms of the inputs of %d layers are those of an earlier run: %s", len(norms), path.name)
            return {name: x.to(layers[name].weight.device) for name, x in norms.items()}
        norms = whole_model_norms(model, layers, batches)
        _write(path, {name: x.cpu() for name, x in norms.items()})
        return norms

    def _key(self, model: LearningModel, layers: Mapping[str, nn.Linear], batches: Sequence[Tensor]) -> str:
        device = model.head.device
        settings = {k: v for k, v in model.model.config.to_dict().items() if k != "_name_or_path"}
        on = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        decides = [
            FORMAT, __version__, torch.__version__, transformers.__version__, device.type, on, torch.get_num_threads(),
            str(model.head.dtype), self.weights_sha256, settings, {name: y.in_features for name, y in layers.items()},
            [tuple(tokens.shape) for tokens in batches],
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
        for tokens in batches:
            digest.update(tokens.cpu().numpy().tobytes())
        return digest.hexdigest()[:32]


def _read(path: Path, layers: Mapping[str, nn.Linear]) -> dict[str, Tensor] | None:
    """The norms in a file; None where there is none, or one that is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, norms = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        log.warning("%s is damaged (%s): the norms are computed again.", path.name, e)
        return None
    fits = {name: tuple(x.shape) for name, x in norms.items()} == {name: (y.in_features,) for name, y in layers.items()}
    if not fits or metadata.get("format") != FORMAT or metadata.get("sha256") != _hash(norms):
        log.warning("%s is damaged: the norms are computed again.", path.name)
        return None
    return norms


def _write(path: Path, norms: dict[str, Tensor]) -> None:
    """Keep norms; a folder that cannot be written to costs the next run its time, not this one its result."""
    try:
        with atomic_file(path) as temporary:
            save_file(norms, temporary, metadata={"format": FORMAT, "sha256": _hash(norms)})
    except (MaskProError, OSError, SafetensorError) as e:
        log.warning("the norms of the layers' inputs were not kept: %s", e)


def _hash(norms: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(norms):
        digest.update(f"\0{name}\0".encode() + norms[name].numpy().tobytes())
    return digest.hexdigest()
