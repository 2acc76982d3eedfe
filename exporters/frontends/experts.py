"""Mixtures of experts in a traced graph: every expert runs for every token, each on weights of its own.

transformers keeps all experts of a layer in one parameter, of which the router picks rows. No product of such a graph has a
constant side that could be quantised, or proven to hold a pattern. So the trace uses `run_every_expert` in its place, and
`take_apart` turns each expert's rows into a weight of the graph.

Shapes: `T` tokens, `X` experts, `C` of them chosen for each token, `E` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
import torch

from maskpro_deploy.exporters.frontends.base import read_settings

_NAME = "maskpro_every_expert"  # for transformers


def use_every_expert(model: Any) -> None:
    """Let a model of transformers compute its experts by `run_every_expert`, if it has any."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if model._can_set_experts_implementation():
        ALL_EXPERTS_FUNCTIONS.register(_NAME, run_every_expert)
        model.set_experts_implementation(_NAME)


def run_every_expert(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The sum of all experts, each times its share, which is 0 where it was not chosen.  # (T, E), (T, C), (T, C) -> (T, E)"""
    ids = torch.arange(experts.num_experts, device=hidden.device)
    weights = ((chosen.unsqueeze(-1) == ids) * shares.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)  # (T, X)
    total = torch.zeros_like(hidden)
    for i in range(experts.num_experts):
        y = _multiply(experts, "gate_up_proj" if experts.has_gate else "up_proj", i, hidden)
        y = experts._apply_gate(y) if experts.has_gate else experts.act_fn(y)
        y = _multiply(experts, "down_proj", i, y)
        if experts.has_post_expert_norm:
            y = experts.post_expert_norm(y)
        total = total + y * weights[:, i : i + 1]
    return total


def _multiply(experts: Any, name: str, i: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[i]
    bias = getattr(experts, f"{name}_bias")[i] if experts.has_bias else None
    return torch.nn.functional.linear(x, weight.T if experts.is_transposed else weight, bias)


def name_slice(parameter: str, i: int) -> str:
    """The name of one expert's rows of a parameter."""
    return f"{parameter}.{i}"


def split_slice(name: str) -> tuple[str, int]:
    """The parameter and the number of a name of `name_slice`; -1 for another name."""
    parameter, _, number = name.rpartition(".")
    return parameter, int(number) if number.isdigit() else -1


def take_apart(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, npt.NDArray[Any]], parameters: dict[str, tuple[int, ...]]
) -> list[onnx.NodeProto]:
    """The nodes without those that pick one fixed row of a parameter: each becomes a parameter of its own (in `parameters`)."""
    names: dict[str, str] = {}  # value -> the parameter that it is
    kept = []
    for node in nodes:
        index = constants.get(node.input[1]) if node.op_type == "Gather" and node.input[0] in parameters else None
        if index is not None and index.ndim == 0 and read_settings(node).get("axis", 0) == 0:
            names[node.output[0]] = name_slice(node.input[0], int(index))
            parameters[names[node.output[0]]] = parameters[node.input[0]][1:]
            continue
        node.input[:] = [names.get(value, value) for value in node.input]
        kept.append(node)
    return kept
