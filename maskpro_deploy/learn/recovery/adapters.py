"""LoRA adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The tensors are `base_model.model.<module>.lora_A.weight` (R, C) and `lora_B.weight` (O, R), in the order of a linear layer for
transformers' `Conv1D` too (PEFT sets `fan_in_fan_out` by the layer's type, whatever the file says). What a layer becomes is read
off the folder alone: rank, alpha and scaling of each, without PEFT.

A sparse model stays sparse only if the delta is masked, so W + M ∘ (s B A) is what is merged here. Everything that is not such a
sum over masked layers is refused: leaving out a part would give another model in silence.

Shapes: `O` outputs, `C` inputs, `R` rank.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.learn.model.experts import Experts
from maskpro_deploy.learn.model.low_rank import LowRank
from maskpro_deploy.learn.model.masked_linear import MaskedLinear
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.recovery.adapter_config import CONFIG_FILE, AdapterConfig, describe_deltas
from maskpro_deploy.system.files import new_folder, sha256_file, write_json
from maskpro_deploy.system.input_file import open_tensors

log = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"  # in the folder of a result
WEIGHTS_FILE, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
# an adapter in memory has a name, which PEFT leaves out when it saves it
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?:(?P<adapter>[^.]+)\.)?weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter folder holds."""

    folder: Path
    deltas: Mapping[str, LowRank]  # by module


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        InputError: it is none, or its weights are a pickle.
        FormatError: it holds something else than low-rank deltas, or less than two factors of one.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} has no {CONFIG_FILE}: it is not a PEFT adapter.\nGive the folder that PEFT's save_pretrained made."
        )
    config = AdapterConfig.read(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        found = f"keeps its weights as a pickle ({_PICKLE})" if (folder / _PICKLE).exists() else f"has no {WEIGHTS_FILE}"
        raise InputError(f"{folder} {found}.\nSave it as safetensors, as PEFT's save_pretrained does.")
    factors = _read_factors(folder / WEIGHTS_FILE)
    return Adapter(folder, {module: _make_delta(folder, module, sides, config) for module, sides in factors.items()})


def hash_adapter(folder: Path) -> str:
    """SHA-256 of both files of an adapter folder, in hex, one after the other."""
    return "".join(sha256_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE))


def _read_factors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The factors of every module, "A" and "B"."""
    with open_tensors(path):  # says what is wrong with a damaged file
        pass
    factors: dict[str, dict[str, Tensor]] = {}
    adapters: set[str | None] = set()
    for key, tensor in load_file(path).items():
        match = _FACTOR.fullmatch(key.removeprefix(_PREFIX))
        if match is None or not tensor.is_floating_point() or tensor.dim() != 2:
            raise FormatError(f"{path} holds {key}, which is not a factor of a linear layer's delta: it cannot be merged.")
        adapters.add(match["adapter"])
        factors.setdefault(match["module"], {})[match["side"]] = tensor.float()
    if len(adapters) != 1:
        raise FormatError(f"{path} holds {len(adapters)} adapters.\nSave one alone.")
    return factors


def _make_delta(folder: Path, module: str, sides: Mapping[str, Tensor], config: AdapterConfig) -> LowRank:
    if len(sides) < 2:
        raise FormatError(f"{folder} has lora_{next(iter(sides))} of {module} alone: the other factor is missing.")
    if not config.names(module):
        raise FormatError(f"{folder} has a delta of {module}, which its target_modules leave out: PEFT would ignore it.")
    a, b, rank = sides["A"], sides["B"], config.rank_of(module)
    if (len(a), b.shape[1]) != (rank, rank):
        raise FormatError(
            f"{folder}: the factors of {module} are {tuple(a.shape)} and {tuple(b.shape)}, its {CONFIG_FILE} says rank {rank}."
        )
    return LowRank(a, b, config.alpha_of(module), config.stabilised)


def fit_adapter(adapter: Adapter, model: LearningModel, layers: Sequence[MaskedLinear]) -> dict[str, LowRank]:
    """The deltas of an adapter on the devices of the layers they belong to, by the layers' names.

    Raises:
        InputError: one belongs to no masked layer, has another shape, or is not that of all modules that share a weight.
    """
    left, fitting = dict(adapter.deltas), {}
    for layer in layers:
        shared = model.places[layer.name]
        own = [left.pop(place, None) for place in shared]
        if (first := next((delta for delta in own if delta is not None), None)) is None:
            continue
        if not all(delta is not None and delta.same(first) for delta in own):
            raise InputError(
                f"{adapter.folder} does not have one delta for {' and '.join(shared)}, which share a weight: it cannot be merged."
            )
        if (len(first.b), first.a.shape[1]) != tuple(layer.weight.shape):
            raise InputError(
                f"{adapter.folder} has a delta of {len(first.b)} x {first.a.shape[1]} for {shared[0]}, "
                f"whose weight is {layer.weight.shape[0]} x {layer.weight.shape[1]}.\nIt belongs to another model."
            )
        device = layer.weight.device
        fitting[layer.name] = LowRank(first.a.to(device), first.b.to(device), first.alpha, first.stabilised)
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise InputError(
            f"{adapter.folder} has a delta for {min(left)}{more}, which is not a masked layer of this model.\n"
            f"Merge such an adapter into the dense model, or train one for masked layers alone."
        )
    return fitting


def save_adapter(deltas: Mapping[str, LowRank], folder: Path, base: str, model: LearningModel) -> None:
    """Write deltas, by module, as an adapter that PEFT loads onto the sparse checkpoint they were trained on.

    PEFT computes W x + s B (A x): its delta is not masked. Its outputs, and the weights of its `merge_and_unload`, are those of
    W + s B A; the result's are those of W + M ∘ (s B A). The two differ by s B A where the mask drops a weight, and nowhere else.
    Once PEFT's merged weights are multiplied by the mask (`masks enforce`), they are the result's up to the rounding of float32.

    The adapter belongs to the checkpoint that the run began with, named `base`: in the result it is merged already.

    Args:
        deltas: by module, all of one kind of scaling.
        folder: to make.
        base: name of the sparse checkpoint they belong to.
        model: whose modules are named.

    Raises:
        InputError: the folder exists and is not empty.
    """
    config = describe_deltas(deltas, [name for name, _ in model.model.named_modules()]) | {"base_model_name_or_path": base}
    config["fan_in_fan_out"] = any(f"{module}.weight" in model.transposed for module in deltas)
    tensors = {
        f"{_PREFIX}{module}.lora_{side}.weight": x.contiguous().numpy(force=True)
        for module, delta in deltas.items()
        for side, x in (("A", delta.a), ("B", delta.b))
    }
    stacks = tuple(f"{name}." for name, module in model.model.named_modules() if isinstance(module, Experts))
    if inside := [module for module in deltas if module.startswith(stacks)]:
        log.warning(
            "PEFT leaves out the deltas of experts in %s, such as that of %s: it keeps experts in stacks. "
            "The merged weights have them.", folder, inside[0],
        )  # fmt: skip
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(temporary / CONFIG_FILE, config)
