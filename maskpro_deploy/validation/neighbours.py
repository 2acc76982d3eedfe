"""What a tensor of a checkpoint is in view of the others: scales of a weight, adapters of a listed layer, zero points."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from maskpro_deploy.validation.accounts import Rule
from maskpro_deploy.validation.bitmask24 import DTYPES, Entries
from maskpro_deploy.validation.names import Doubt, Matrix, role_of
from maskpro_deploy.validation.source import Finding, Unchecked, Weight

_ADAPTER = ("lora_", "lora.", "adapter", "_delta", "delta_")
_ZERO_POINTS = ("weight_zero_point", "zero_point", "zeros", "qzeros")
_SMALL = 1 << 24  # bytes of scales and zero points that are looked at
_INTEGERS = {"I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


class Neighbours:
    """The tensors of a checkpoint by module.

    Args:
        entries: all of them.
        listed: names of the weights that masks list; None if nothing lists them.
    """

    def __init__(self, entries: Entries, listed: Collection[str] | None) -> None:
        self._entries, self._listed = entries, listed
        self._modules = {name.rpartition(".")[0] for name in listed or ()}
        self._largest: dict[str, int] = {}
        for name, (_, entry) in entries.items():
            module = name.rpartition(".")[0]
            self._largest[module] = max(self._largest.get(module, 0), math.prod(entry.shape))
        longest = [max(e.shape) for n, (_, e) in entries.items() if len(e.shape) == 2 and isinstance(self._role(n, 0), Matrix)]
        self._longest = max(longest, default=0)
        self._widest = max((max(e.shape) for _, e in entries.values() if len(e.shape) == 2), default=0)

    def role(self, name: str) -> Matrix | Rule | Doubt:
        """What a tensor is; a bias of the output head may be as long as the vocabulary."""
        return self._role(name, self._widest if name.endswith("bias") else self._longest)

    def is_listed(self, name: str) -> bool:
        """Whether masks list a weight."""
        return self._listed is not None and name in self._listed

    def judge(self, found: Finding, name: str) -> Finding:
        """What was found, in view of what stands next to it."""
        if isinstance(found, Weight) and (reason := self._quantisation(name)):
            return Unchecked(name=name, shape=found.shape, reason=reason, bytes=self._entries[name][1].bytes)
        if self._listed is None or (isinstance(found, Weight) and found.listed):
            return found
        entry = self._entries[name][1]
        owner = self._owner(name)
        if owner and not self._is_harmless(found, name, len(entry.shape)):
            reason = f"it belongs to {owner}, which is listed: it may change what that layer computes"
            return Unchecked(name=name, shape=entry.shape, reason=reason, bytes=entry.bytes)
        if any(part in name for part in _ADAPTER) and not isinstance(found, Rule):
            return Unchecked(name=name, shape=entry.shape, reason="it may be an adapter of a listed layer", bytes=entry.bytes)
        return replace(found, declared=True) if isinstance(found, Unchecked) else found

    def _role(self, name: str, longest: int) -> Matrix | Rule | Doubt:
        entry = self._entries[name][1]
        return role_of(name, entry.dtype, entry.shape, longest, self._largest.get(name.rpartition(".")[0], 0))

    def _owner(self, name: str) -> str:
        """The listed layer that a tensor may belong to: its path is a part of the tensor's; "" if there is none."""
        parts = name.split(".")
        paths = (".".join(parts[a:b]) for b in range(len(parts) - 1, 0, -1) for a in range(b))
        return next((path for path in paths if path in self._modules), "")

    def _is_harmless(self, found: Finding, name: str, rank: int) -> bool:
        """Whether a tensor of a listed layer leaves alone which of its weights are zero: a bias, a scale, a mask."""
        last = name.rpartition(".")[2]
        if found is Rule.QUANTISATION:
            return rank <= 2 and self._is_quantised(name.rpartition(".")[0])
        if found is Rule.BOOLEAN:
            return True
        return found is Rule.VECTOR and (last == "bias" or "scale" in last)

    def _is_quantised(self, module: str) -> bool:
        own = self._entries.get(f"{module}.weight")
        return own is not None and own[1].dtype not in ("F64", "F32", "F16", "BF16")

    def _quantisation(self, name: str) -> str:
        """Why the stored integers of a weight are not zero where its weights are; "" if they are."""
        module, dtype = name.rpartition(".")[0], self._entries[name][1].dtype
        if dtype != "I8" and not dtype.startswith("F8"):
            return ""
        for last in _ZERO_POINTS:
            file_entry = self._entries.get(f"{module}.{last}")
            if file_entry is None:
                continue
            file, entry = file_entry
            if entry.dtype not in _INTEGERS or entry.bytes > _SMALL or file.read(entry.offset, entry.bytes).any():
                return f"its zero points ({last}) are not all zero, or are packed"
        scale = self._entries.get(f"{module}.weight_scale")
        if scale is not None and scale[1].dtype in DTYPES and scale[1].bytes <= _SMALL:
            values = scale[0].read(scale[1].offset, scale[1].bytes).view(DTYPES[scale[1].dtype]).astype(np.float64)
            if not np.isfinite(values).all() or (values == 0).any():
                return "its scales are not all finite and above zero"
        return ""
