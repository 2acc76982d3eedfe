"""`adapter_config.json` of PEFT: what it says of the deltas, and what it must not say for them to be merged under a mask.

PEFT has many settings, and gets more. Those that change nothing about s B A are listed here; any other that is set is refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from maskpro_deploy.errors import FormatError
from maskpro_deploy.learn.model.low_rank import LowRank
from maskpro_deploy.system.files import read_json

V = TypeVar("V")

CONFIG_FILE = "adapter_config.json"
_ALL_LINEAR = "all-linear"
# how training began or went on; what is read elsewhere here; what PEFT takes from the layer's type
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora", "velora_config",
}  # fmt: skip
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # others change the weights that a delta is added to
_WORDS = {"use_dora": "a DoRA adapter", "lora_bias": "an adapter with biases", "modules_to_save": "an adapter with whole modules"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What the deltas of an adapter are."""

    rank: int
    alpha: float
    stabilised: bool
    ranks: Mapping[str, int]  # by regular expression, for modules that have another one
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | str | None  # names or their ends, or a regular expression of whole names; None: not said

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """The configuration in an adapter folder.

        Raises:
            FormatError: it is damaged, or of an adapter that is not a sum W + s B A.
        """
        path = folder / CONFIG_FILE
        content = read_json(path)
        _check_mergeable(folder, content)
        try:
            return cls(
                rank=_read_rank(content["r"]),
                alpha=_read_alpha(content["lora_alpha"]),
                stabilised=bool(content.get("use_rslora")),
                ranks={_read_pattern(key): _read_rank(x) for key, x in (content.get("rank_pattern") or {}).items()},
                alphas={_read_pattern(key): _read_alpha(x) for key, x in (content.get("alpha_pattern") or {}).items()},
                targets=_read_targets(content.get("target_modules")),
            )
        except (KeyError, ValueError, AttributeError, re.error) as e:
            raise FormatError(f"{path} is not PEFT's configuration of a LoRA adapter: {type(e).__name__} ({e}).") from e

    def names(self, module: str) -> bool:
        """Whether `target_modules` names a module."""
        if self.targets is None or self.targets == _ALL_LINEAR:
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(f".{module}".endswith(f".{target}") for target in self.targets)

    def rank_of(self, module: str) -> int:
        """R of a module's delta."""
        return _look_up(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha of a module's delta."""
        return _look_up(self.alphas, module, self.alpha)


def _read_rank(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a rank is {value!r}")
    return value


def _read_alpha(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"an alpha is {value!r}")
    return float(value)


def _read_pattern(value: str) -> str:
    return re.compile(value).pattern


def _read_targets(value: object) -> tuple[str, ...] | str | None:
    if isinstance(value, list):
        return tuple(map(str, value))
    if value is not None and not isinstance(value, str):
        raise ValueError(f"target_modules is {value!r}")
    return None if value is None else _read_pattern(value)


def _look_up(patterns: Mapping[str, V], module: str, default: V) -> V:
    """The value of the first pattern that matches the end of a module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _check_mergeable(folder: Path, content: Mapping[str, Any]) -> None:
    """Refuse an adapter that is not W + s B A over linear layers, by the first thing that says so."""
    if (kind := content.get("peft_type")) != "LORA":
        raise FormatError(f"{folder} is an adapter of type {kind}: only LORA adapters are merged.")
    if (bias := content.get("bias", "none")) != "none":
        raise FormatError(f"{folder} has biases (bias: {bias}): they cannot be merged under a mask.")
    if (start := content.get("init_lora_weights")) not in _STARTS:
        raise FormatError(
            f"{folder} was started by {start}, which changes the weights that its delta is added to.\n"
            f"Save it with PEFT's path_initial_model_for_weight_conversion."
        )
    for key, value in sorted(content.items()):
        if value and key not in _HARMLESS:
            what = f"is {_WORDS[key]}" if key in _WORDS else f"has {key} set"
            raise FormatError(f"{folder} {what} ({key} in {CONFIG_FILE}): it is not W + s B A, and cannot be merged exactly.")


def describe_deltas(deltas: Mapping[str, LowRank], modules: Iterable[str]) -> dict[str, Any]:
    """The configuration of deltas in a model of some modules: rank, alpha and target modules, as PEFT reads them."""
    first = next(iter(deltas.values()))
    rank, ranks = _split_usual({module: delta.rank for module, delta in deltas.items()})
    alpha, alphas = _split_usual({module: _whole(delta.alpha) for module, delta in deltas.items()})
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none", "lora_dropout": 0.0,
        "init_lora_weights": True, "modules_to_save": None, "r": rank, "rank_pattern": ranks, "lora_alpha": alpha,
        "alpha_pattern": alphas, "use_rslora": first.stabilised, "target_modules": _name_targets(deltas, modules),
    }  # fmt: skip


def _split_usual(values: Mapping[str, V]) -> tuple[V, dict[str, V]]:
    """The value that most modules have, and those of the others."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {module: value for module, value in values.items() if value != usual}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _name_targets(deltas: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The last parts of the names where these say it all, else the whole names."""
    own = set(deltas)
    leaves = {module.rpartition(".")[2] for module in own}
    return sorted(leaves if all(m in own for m in modules if m.rpartition(".")[2] in leaves) else own)
