"""Which products make the outputs of a model: the output head need not hold the pattern.

A head's result becomes an output of the graph through elementwise steps with constants alone, and meets no further product. And
the output is called `logits`, or the head is as wide as the token table has rows, or its weight is named as heads are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import GraphProto, NodeProto

from maskpro_deploy.onnx_graphs.nodes import STANDARD, names_used
from maskpro_deploy.validation.graphs.ledger import Ledger
from maskpro_deploy.validation.graphs.multiply import ProductWeight
from maskpro_deploy.validation.graphs.operators import names_in
from maskpro_deploy.validation.graphs.products import product_of
from maskpro_deploy.validation.source import Rule, Weight

# between the last product and the output
_AFTER = names_in(
    """
    Add Cast Clip DequantizeLinear Div Gather Identity LogSoftmax Mul QuantizeLinear Reshape Slice Softmax Squeeze Sub Tanh
    Transpose Unsqueeze
    """
)
# only the first input of these is data
_BY_POSITION = frozenset({"Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
_NAMED = re.compile(r"(^|[./_])(lm_head|output_head|embed_out)([./_]|$)")


def mark_heads(graph: GraphProto, ledger: Ledger, products: Sequence[ProductWeight]) -> tuple[Weight, ...]:
    """The weights of the main graph's products, those that make its outputs marked as heads."""
    logits = _find_last_products(graph, [o.name for o in graph.output if o.name == "logits"])
    last = _find_last_products(graph, [o.name for o in graph.output])
    rows, weights = ledger.token_rows(), []
    for product in products:
        weight = product.weight
        results = last if product.width == rows or _NAMED.search(weight.name) else logits
        if all(name in results or name in logits for name in product.results):
            ledger.exempt(weight.constants, Rule.HEAD)
            weight = replace(weight, linear=False)
        weights.append(weight)
    return tuple(weights)


def _find_last_products(graph: GraphProto, outputs: list[str]) -> set[str]:
    """Results of nodes that become one of some outputs, directly or through elementwise steps, and meet no further product."""
    maker = {name: node for node in graph.node for name in node.output if name}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in set(names_used(node)):
            users.setdefault(name, []).append(node)
    stored = _find_fixed(graph)
    last: set[str] = set()
    waiting = [name for name in outputs if not _meets_product(name, users)]
    while waiting:
        name = waiting.pop()
        if name in last or name not in maker:
            continue
        last.add(name)
        waiting.extend(before for before in _find_before(maker[name], stored) if not _meets_product(before, users))
    return last


def _meets_product(name: str, users: Mapping[str, Sequence[NodeProto]]) -> bool:
    """Whether a value goes into another product: then what made it is inside the model, also where it is an output."""
    seen, waiting = {name}, [name]
    while waiting:
        for node in users.get(waiting.pop(), ()):
            if product_of(node) is not None or node.domain not in STANDARD:
                return True
            new = [output for output in node.output if output and output not in seen]
            seen.update(new)
            waiting.extend(new)
    return False


def _find_fixed(graph: GraphProto) -> set[str]:
    """Names of constants, of the scales by which activations were quantised, and of what elementwise steps make of these."""
    fixed = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.op_type in _AFTER and all(name in fixed for name in node.input if name)):
            fixed.update(node.output)
        elif node.op_type == "DynamicQuantizeLinear":
            fixed.update(node.output[1:])
    return fixed


def _find_before(node: NodeProto, stored: set[str]) -> list[str]:
    """The one input that an elementwise step changes; none if there are several."""
    if node.op_type not in _AFTER:
        return []
    named = [name for name in node.input if name]
    if node.op_type in _BY_POSITION:
        return [name for name in named[:1] if name not in stored]
    moving = [name for name in named if name not in stored]
    return moving if len(moving) == 1 else []
