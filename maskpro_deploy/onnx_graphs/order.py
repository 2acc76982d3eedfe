"""The order in which the nodes of a graph can run. Most files have it; some tools append nodes at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence

from onnx import NodeProto

from maskpro_deploy.onnx_graphs.nodes import graphs_of


def ordered(nodes: Sequence[NodeProto], known: Container[str]) -> list[tuple[int, NodeProto]]:
    """Nodes with their numbers, each after those that make what it uses; nodes of a cycle come last, as they stand.

    Args:
        nodes: of a graph.
        known: names of values that are there before any node runs.
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
