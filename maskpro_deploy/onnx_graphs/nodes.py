"""Nodes of an ONNX graph: domains, names in messages, attributes, and the order in which they can run."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

STANDARD = ("", "ai.onnx")
MICROSOFT = "com.microsoft"


def title(node: NodeProto) -> str:
    """Operator and name of a node."""
    operator = f"{node.domain}.{node.op_type}" if node.domain not in STANDARD else node.op_type
    return f"{operator} {node.name!r}" if node.name else operator


def get_integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def get_integers(node: NodeProto, name: str) -> list[int] | None:
    """A list of integers among the attributes of a node; None if it has none of this name."""
    return next((list(a.ints) for a in node.attribute if a.name == name), None)


def graphs_of(node: NodeProto) -> tuple[GraphProto, ...]:
    """The graphs that a node holds."""
    return tuple(g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs))


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, however it is written; None if it has none."""
    for a in node.attribute:
        if a.name == "value" and a.HasField("t"):
            return a.t
        if a.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(a.i if a.name == "value_int" else list(a.ints), dtype=np.int64))
        if a.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(a.f if a.name == "value_float" else list(a.floats), dtype=np.float32))
        if a.name in ("value_string", "value_strings"):
            texts = [a.s] if a.name == "value_string" else list(a.strings)
            return TensorProto(
                data_type=TensorProto.STRING, string_data=texts, dims=[] if a.name == "value_string" else [len(texts)]
            )
    return None


def sort_nodes(nodes: Sequence[NodeProto], known: Container[str]) -> list[tuple[int, NodeProto]]:
    """Nodes with their numbers, each after those that make what it uses; nodes of a cycle come last, as they stand.

    `known` are names of values that are there before any node runs.
    """
    numbered = list(enumerate(nodes))
    maker = {name: number for number, node in numbered for name in node.output if name}
    needs = [{maker[name] for name in names_used(node) if name in maker and name not in known} for _, node in numbered]
    if all(need < number for number, needed in enumerate(needs) for need in needed):
        return numbered
    users: dict[int, list[int]] = {}
    for number, needed in enumerate(needs):
        for need in needed:
            users.setdefault(need, []).append(number)
    waiting = [len(needed) for needed in needs]
    ready = deque(number for number, count in enumerate(waiting) if not count)
    done: list[int] = []
    while ready:
        number = ready.popleft()
        done.append(number)
        for user in users.get(number, ()):
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    rest = sorted(set(range(len(nodes))) - set(done))
    return [numbered[number] for number in (*done, *rest)]


def names_used(node: NodeProto) -> Iterator[str]:
    """Names of the values that a node uses, in the graphs that it holds too."""
    yield from (name for name in node.input if name)
    for graph in graphs_of(node):
        own = {name for inner in graph.node for name in inner.output}
        yield from (name for inner in graph.node for name in names_used(inner) if name not in own)
