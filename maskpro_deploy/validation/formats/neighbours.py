"""What a tensor of a checkpoint is in view of the others: scales of a weight, adapters of a listed layer, zero points."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maskpro_deploy.validation.formats.bitmask24 import DTYPES, Entries
from maskpro_deploy.validation.formats.names import Doubt, Matrix, role_of
from maskpro_deploy.validation.source import Finding, Rule, Unchecked, Weight

_ADAPTER = ("lora_", "lokr_", "loha_", "vera_")
_ZERO_POINT = re.compile(r"zero|zp|offset")
_SCALE = re.compile(r"^(weight_scale(_inv)?|scales?|SCB|absmax|_scale)$")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.layer|wg)\.weight$")
_SMALL = 1 << 24  # bytes of scales and zero points that are looked at


class Neighbours:
    """The tensors of a checkpoint by module. `listed` are the weights that masks list, None if nothing lists them."""

    def __init__(self, entries: Entries, listed: Collection[str] | None, config: Mapping[str, Any]) -> None:
        self._entries, self._listed = entries, listed
        inner = [value for value in config.values() if isinstance(value, Mapping)]
        self._experts = {v for key in _EXPERTS for c in (config, *inner) if isinstance(v := c.get(key), int)}
        self._modules = {path: name for name in listed or () for path in _list_tails(name.rpartition(".")[0])}
        self._members: dict[str, list[str]] = {}
        self._largest: dict[str, int] = {}
        for name, (_, entry) in entries.items():
            module = name.rpartition(".")[0]
            self._members.setdefault(module, []).append(name)
            self._largest[module] = max(self._largest.get(module, 0), math.prod(entry.shape))
        longest = [max(e.shape) for n, (_, e) in entries.items() if len(e.shape) == 2 and isinstance(self._role(n, 0), Matrix)]
        self._longest = max(longest, default=0)
        self._widest = max((max(e.shape) for _, e in entries.values() if len(e.shape) == 2), default=0)

    def role(self, name: str) -> Matrix | Rule | Doubt:
        """What a tensor is; a bias of the output head may be as long as the vocabulary."""
        return self._role(name, self._widest if name.endswith("bias") else self._longest)

    def is_listed(self, name: str) -> bool:
        return self._listed is not None and name in self._listed

    def judge(self, finding: Finding, name: str) -> Finding:
        """What a tensor is, in view of what stands next to it."""
        entry = self._entries[name][1]
        if isinstance(finding, Weight) and (reason := self._judge_quantisation(name)):
            return Unchecked(name=name, shape=finding.shape, reason=reason, bytes=entry.bytes)
        if isinstance(finding, Weight) and not finding.listed and entry.shape[0] in self._experts and _ROUTER.search(name):
            return Rule.ROUTER
        if self._listed is None or (isinstance(finding, Weight) and finding.listed):
            return finding
        owner = self._find_owner(name)
        if owner and not self._is_harmless(finding, name, len(entry.shape)):
            reason = f"it belongs to {owner}, which is listed: it may change what that layer computes"
            return Unchecked(name=name, shape=entry.shape, reason=reason, bytes=entry.bytes)
        if any(part in name for part in _ADAPTER):
            return Unchecked(name=name, shape=entry.shape, reason="it may be an adapter of a listed layer", bytes=entry.bytes)
        return replace(finding, declared=True) if isinstance(finding, Unchecked) else finding

    def _role(self, name: str, longest: int) -> Matrix | Rule | Doubt:
        entry = self._entries[name][1]
        return role_of(name, entry.dtype, entry.shape, longest, self._largest.get(name.rpartition(".")[0], 0))

    def _find_owner(self, name: str) -> str:
        """The listed layer that a tensor may belong to, whatever its path is wrapped in or lacks; "" if there is none."""
        words = _split_words(name)
        for stop in range(len(words), 0, -1):
            for start in range(stop):
                layer = self._modules.get(words[start:stop])
                # the weight of a layer of the same path in another part of the model is a layer of its own
                if layer is not None and (words[stop:] != ("weight",) or words[start:stop] == _split_words(layer)[:-1]):
                    return layer
        return ""

    def _is_harmless(self, finding: Finding, name: str, rank: int) -> bool:
        """Whether a tensor of a listed layer leaves alone which of its weights are zero: a bias, a scale, a mask."""
        last = name.rpartition(".")[2]
        if finding is Rule.QUANTISATION:
            weight = self._entries.get(f"{name.rpartition('.')[0]}.weight")
            return rank <= 2 and weight is not None and weight[1].dtype not in ("F64", "F32", "F16", "BF16")
        if finding is Rule.BOOLEAN:
            return True
        return finding is Rule.VECTOR and (last == "bias" or "scale" in last)

    def _judge_quantisation(self, name: str) -> str:
        """Why the stored integers of a weight are not zero where its weights are; "" if they are."""
        module, dtype = name.rpartition(".")[0], self._entries[name][1].dtype
        if dtype != "I8" and not dtype.startswith("F8"):
            return ""
        members = [n for m in (module, f"{module}.weight_quantizer") for n in self._members.get(m, ()) if n != name]
        for member in members:
            file, entry = self._entries[member]
            last = member.rpartition(".")[2]
            if _ZERO_POINT.search(last):
                if entry.bytes > _SMALL or file.read(entry.offset, entry.bytes).any():
                    return f"its zero points ({last}) are not all zero, or are packed"
            elif _SCALE.match(last) and not self._is_positive(member):
                return f"its scales ({last}) are not all finite and other than zero"
        return ""

    def _is_positive(self, name: str) -> bool:
        file, entry = self._entries[name]
        if entry.dtype not in DTYPES:
            return True  # a type of scales alone, or packed
        if entry.bytes > _SMALL:
            return False
        values = file.read(entry.offset, entry.bytes).view(DTYPES[entry.dtype]).astype(np.float64)
        return bool(np.isfinite(values).all() and (values != 0).all())


def _split_words(name: str) -> tuple[str, ...]:
    """The parts of a path, with dots or underscores between them."""
    return tuple(part for part in re.split(r"[._]", name) if part)


def _list_tails(module: str) -> Iterator[tuple[str, ...]]:
    """The path of a module, and what is left of it without the names in front of its layer."""
    words = _split_words(module)
    yield words
    number = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    if number > 1:
        yield words[number - 1 :]
