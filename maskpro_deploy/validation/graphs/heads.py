"""Which products make the outputs of a model: the output head need not hold the pattern.

A head's result becomes an output of the graph through elementwise steps with constants alone, and the output is called `logits`,
or the head is as wide as the token table has rows, or its weight is named as heads are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from onnx import GraphProto, NodeProto

from maskpro_deploy.validation.accounts import Rule
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.multiply import Found
from maskpro_deploy.validation.source import Weight

# between the last product and the output
_AFTER = frozenset(
    {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "Mul", "QuantizeLinear", "Squeeze", "Sub", "Tanh"}
)
_NAMED = re.compile(r"(^|[./_])(lm_head|output_head|embed_out)([./_]|$)")


class Heads:
    """The products that make a graph's outputs.

    Args:
        graph: the main graph.
        ledger: of all its tensors.
    """

    def __init__(self, graph: GraphProto, ledger: Ledger) -> None:
        self._ledger = ledger
        self._logits = _last_products(graph, [o.name for o in graph.output if o.name == "logits"])
        self._any = _last_products(graph, [o.name for o in graph.output])

    def apply(self, found: Sequence[Found]) -> tuple[Weight, ...]:
        """The weights, those of heads marked as such."""
        rows = self._ledger.token_rows()
        return tuple(self._marked(f, rows) for f in found)

    def _marked(self, found: Found, rows: int) -> Weight:
        weight = found.weight
        if not all(self._is_head(name, found.width, weight.name, rows) for name in found.results):
            return weight
        self._ledger.exempt(weight.constants, Rule.HEAD)
        return replace(weight, linear=False)

    def _is_head(self, result: str, width: int, name: str, rows: int) -> bool:
        return result in self._logits or (result in self._any and (width == rows or _NAMED.search(name) is not None))


def _last_products(graph: GraphProto, outputs: list[str]) -> set[str]:
    """Results of nodes that become one of some outputs, directly or through elementwise steps with constants."""
    maker = {name: node for node in graph.node for name in node.output if name}
    stored = _fixed(graph)
    last: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in last or name not in maker:
            continue
        last.add(name)
        waiting.extend(_before(maker[name], stored))
    return last


def _fixed(graph: GraphProto) -> set[str]:
    """Names of constants, of the scales by which activations were quantised, and of what elementwise steps make of these."""
    fixed = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.op_type in _AFTER and all(name in fixed for name in node.input if name)):
            fixed.update(node.output)
        elif node.op_type == "DynamicQuantizeLinear":
            fixed.update(node.output[1:])
    return fixed


def _before(node: NodeProto, stored: set[str]) -> list[str]:
    """The one input that an elementwise step changes; none if there are several."""
    if node.op_type not in _AFTER:
        return []
    moving = [name for name in node.input if name and name not in stored]
    return moving if len(moving) == 1 else []
