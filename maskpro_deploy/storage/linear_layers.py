"""Which linear layers of a model stay dense: a mask would save nothing there, and costs the model much.

That is a router, which chooses experts or mixes a few streams of hidden states (so named, with a row or a column for each of
them), and a layer of a single output, which no sparse kernel runs. `learn` gives them no mask, `validate` asks for none.

Shapes: `O` outputs, `C` inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "altup_num_inputs")
_ROUTER = re.compile(r"(^|\.)(gate|router|router\.layer|wg|modality_router)\.weight$")
_MIXER = re.compile(r"(^|\.)(prediction_coefs|correction_coefs)\.weight$")  # of Gemma 3n's streams


def read_route_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """The numbers of experts and streams that a `config.json` gives, its inner configs included."""
    inner = (value for value in config.values() if isinstance(value, Mapping))
    return frozenset(v for c in (config, *inner) for key in _COUNTS if isinstance(v := c.get(key), int))


def is_router(name: str, shape: Sequence[int], route_counts: frozenset[int]) -> bool:
    """Whether a weight (O, C) of this name chooses experts or mixes streams."""
    if len(shape) != 2:
        return False
    outputs, inputs = shape
    return bool((outputs in route_counts and _ROUTER.search(name)) or (inputs in route_counts and _MIXER.search(name)))


def stays_dense(name: str, shape: Sequence[int], route_counts: frozenset[int]) -> bool:
    """Whether a linear layer with this weight (O, C) gets no mask."""
    return shape[0] == 1 or is_router(name, shape, route_counts)
