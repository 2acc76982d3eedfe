"""Which inputs of an operator are multiplied with each other, and along which axis of each it sums.

`product_of` knows the matrix products of ONNX and of onnxruntime's own operators (com.microsoft), quantised ones included. A
reason instead of an answer means: it multiplies, and how is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnx import NodeProto

from maskpro_deploy.onnx_graphs.nodes import MICROSOFT, STANDARD, get_integer
from maskpro_deploy.validation.source import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What an operator multiplies."""

    # (input number, axis that is summed over) of every operand; the axis is None for one that is never a weight
    factors: tuple[tuple[int, int | None], ...]
    # input number -> what it serves as; those that are not named are activations
    parameters: Mapping[int, Rule] = field(default_factory=dict)
    # input number of a quantised operand -> the numbers of its scale and zero point, None where it has none, and the axis that
    # they run along
    scales: Mapping[int, tuple[int | None, int | None, int]] = field(default_factory=dict)
    packed: str = ""  # how the weight is packed into bytes, "nbits" or "bnb4"; "" if it is not


def product_of(node: NodeProto) -> Product | str | None:
    """How a node multiplies its inputs, or why that is not followed; None if it is not a product."""
    table = _STANDARD if node.domain in STANDARD else _MICROSOFT if node.domain == MICROSOFT else {}
    entry = table.get(node.op_type)
    return entry(node) if callable(entry) else entry


def _bias(*inputs: int) -> dict[int, Rule]:
    return dict.fromkeys(inputs, Rule.ELEMENTWISE)


def _gemm(node: NodeProto) -> Product:
    a, b = 0 if get_integer(node, "transA", 0) else 1, 1 if get_integer(node, "transB", 0) else 0
    return Product(factors=((0, a), (1, b)), parameters=_bias(2))


def _fused_matmul(node: NodeProto) -> Product | str:
    if get_integer(node, "transBatchA", 0) or get_integer(node, "transBatchB", 0):
        return "its batch axis is transposed, which is not followed"
    a, b = -2 if get_integer(node, "transA", 0) else -1, -1 if get_integer(node, "transB", 0) else -2
    return Product(factors=((0, a), (1, b)))


def _conv_transpose(node: NodeProto) -> Product | str:
    if get_integer(node, "group", 1) != 1:
        return "a transposed convolution in groups is not followed"
    return Product(factors=((0, None), (1, 0)), parameters=_bias(2))


def _einsum(node: NodeProto) -> Product | str:
    text = next((a.s.decode("ascii", "replace") for a in node.attribute if a.name == "equation"), "").replace(" ", "")
    terms, arrow, result = text.partition("->")
    parts = terms.split(",")
    if len(parts) == 2 and parts[0].startswith("...") and result.startswith("..."):
        parts, result = [parts[0][3:], parts[1]], result[3:]
        ellipsis = True
    else:
        ellipsis = False
    if len(parts) != 2 or not arrow or "." in "".join((*parts, result)) or any(len(set(p)) != len(p) for p in parts):
        return f"Einsum {text!r} is not followed"
    summed = [c for c in parts[1] if c in parts[0] and c not in result]
    if not summed or any(c not in result and c not in summed for p in parts for c in p):
        return f"Einsum {text!r} does not sum over axes of both operands"
    if any("".join(summed) not in part for part in parts):
        return f"Einsum {text!r} sums over axes that are not next to each other"
    # of several axes that are summed over, the last one: a row of them is one run of values
    return Product(factors=((0, None if ellipsis else parts[0].index(summed[-1])), (1, parts[1].index(summed[-1]))))


Numbers = tuple[int, int | None, int | None]  # of an operand, its scale and its zero point


def _quantised(left: Numbers, right: Numbers, bias: int = -1) -> Callable[[NodeProto], Product]:
    """A quantised MatMul of two operands."""

    def build(node: NodeProto) -> Product:
        operands = (left[0], right[0])
        others = {i: Rule.QUANTISATION for i in range(len(node.input)) if i not in operands}
        scales = {left[0]: (*left[1:], -2), right[0]: (*right[1:], -1)}
        parameters = others | ({bias: Rule.ELEMENTWISE} if bias in others else {})
        return Product(factors=((left[0], -1), (right[0], -2)), parameters=parameters, scales=scales)

    return build


def _convolution(weight: int, scale: int | None, zero: int | None) -> Callable[..., Product]:
    def build(node: NodeProto) -> Product:
        others = {i: Rule.QUANTISATION for i in range(1, len(node.input)) if i != weight}
        return Product(factors=((0, None), (weight, 1)), parameters=others, scales={weight: (scale, zero, 0)})

    return build


def _qgemm(node: NodeProto) -> Product:
    a, b = 0 if get_integer(node, "transA", 0) else 1, 1 if get_integer(node, "transB", 0) else 0
    others = dict.fromkeys((1, 2, 4, 5, 6, 7, 8), Rule.QUANTISATION)
    return Product(factors=((0, a), (3, b)), parameters=others, scales={0: (1, 2, 1 - a), 3: (4, 5, 1 - b)})


def _nbits(node: NodeProto) -> Product | str:
    bits = get_integer(node, "bits", 4)
    if bits not in (2, 4, 8):
        return f"MatMulNBits of {bits} bits is not followed"
    if len(node.input) > 4 and node.input[4]:
        return "MatMulNBits with rows in another order (g_idx) is not followed"
    others = {2: Rule.QUANTISATION, 3: Rule.QUANTISATION, 5: Rule.ELEMENTWISE}
    return Product(factors=((0, -1), (1, 1)), parameters=others, scales={1: (2, 3, 0)}, packed="nbits")


def _bnb4(node: NodeProto) -> Product | str:
    if get_integer(node, "quant_type", 1) not in (0, 1):
        return "MatMulBnb4 of this type is not followed"
    return Product(factors=((0, -1), (1, 1)), parameters={2: Rule.QUANTISATION}, scales={1: (2, None, 0)}, packed="bnb4")


# what a product is, why it is not followed, or what says it for a node
Entry = Product | str | Callable[[NodeProto], Product | str]
_MATMUL = Product(factors=((0, -1), (1, -2)), parameters=_bias(2, 3))
_CONV = Product(factors=((0, None), (1, 1)), parameters=_bias(2, 3))
_DECODER_ATTENTION = Product(factors=((0, None), (1, None), (2, 0), (3, 0)), parameters={4: Rule.ELEMENTWISE})
# weights are (directions, gates * hidden, inputs), and (directions, gates * hidden, hidden)
_RECURRENT = Product(factors=((0, None), (1, 2), (2, 2)), parameters={**_bias(3, 5, 6, 7), 4: Rule.INDEX})
# queries, keys and values of one packed weight (inputs, 3 * hidden)
_ATTENTION = Product(factors=((0, -1), (1, 0)), parameters={**_bias(2, 5), 3: Rule.INDEX, 6: Rule.INDEX, 7: Rule.INDEX})
_QATTENTION = Product(
    factors=((0, -1), (1, 0)),
    parameters={2: Rule.ELEMENTWISE, 5: Rule.INDEX} | dict.fromkeys((3, 4, 6, 7), Rule.QUANTISATION),
    scales={1: (4, 7, -1)},
)
_STANDARD: dict[str, Entry] = {
    "Conv": _CONV,
    "ConvInteger": _convolution(1, None, 3),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _RECURRENT,
    "Gemm": _gemm,
    "LSTM": _RECURRENT,
    "MatMul": _MATMUL,
    "MatMulInteger": _quantised((0, None, 2), (1, None, 3)),
    "QLinearConv": _convolution(3, 4, 5),
    "QLinearMatMul": _quantised((0, 1, 2), (3, 4, 5)),
    "RNN": _RECURRENT,
}
_MICROSOFT: dict[str, Entry] = {
    "Attention": _ATTENTION,
    "DecoderAttention": _DECODER_ATTENTION,
    "DecoderMaskedSelfAttention": _ATTENTION,
    "DynamicQuantizeMatMul": _quantised((0, None, None), (1, 2, 3), bias=4),
    "FusedConv": _CONV,
    "FusedGemm": _gemm,
    "FusedMatMul": _fused_matmul,
    "GemmFastGelu": _MATMUL,
    "MatMulBnb4": _bnb4,
    "MatMulFpQ4": "MatMulFpQ4 packs its weights in a way that is not followed",
    "MatMulIntegerToFloat": _quantised((0, 2, 4), (1, 3, 5), bias=6),
    "MatMulNBits": _nbits,
    "MoE": "MoE stacks experts in an order that differs between versions, which is not followed",
    "PackedAttention": _ATTENTION,
    "QAttention": _QATTENTION,
    "QGemm": _qgemm,
    "QMoE": "QMoE packs its experts in a way that is not followed",
    "TransposeMatMul": _fused_matmul,
}
PRODUCTS = frozenset({*_STANDARD, *_MICROSOFT})  # names of operators that multiply
