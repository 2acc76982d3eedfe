"""Which linear layers of a model stay dense: a mask would save nothing there, and costs the model much.

That is a router, which chooses experts (so named, with a row for each of them), and a layer of a single output, whose product is
no matrix product that a sparse kernel could run. `learn` gives them no mask, `validate` asks for none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.layer|wg)\.weight$")


def read_expert_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """The numbers of experts that a `config.json` gives, its inner configs included."""
    inner = (value for value in config.values() if isinstance(value, Mapping))
    return frozenset(v for c in (config, *inner) for key in _EXPERTS if isinstance(v := c.get(key), int))


def is_router(name: str, outputs: int, expert_counts: frozenset[int]) -> bool:
    """Whether the weight `name` with so many outputs chooses experts."""
    return outputs in expert_counts and _ROUTER.search(name) is not None


def stays_dense(name: str, outputs: int, expert_counts: frozenset[int]) -> bool:
    """Whether a linear layer gets no mask: a router, or a layer of a single output."""
    return outputs == 1 or is_router(name, outputs, expert_counts)
