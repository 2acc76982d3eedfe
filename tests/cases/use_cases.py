"""Ways in which a weight reaches a product of an ONNX graph: each makes a graph around one proven MatMul and one more weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sparse_cases import lawful

from maskpro_deploy.pattern import NMPattern

K = 16
FLOAT, MS = TensorProto.FLOAT, "com.microsoft"
DOMAINS = ("", MS, "own", "com.microsoft.nchwc", "com.ms.internal.nhwc")
BUILDERS: dict[str, Callable[[Draft], None]] = {}
# those whose sparse weight is proven; of the others it is unaccounted for, and the reason says why
PROVEN: set[str] = set()


@dataclass
class Draft:
    """A graph in the making: `h` is the hidden value (B, K), "y" has to be made.

    Attributes:
        rng: of the values.
        dense: whether the weight under test breaks 2:4.
    """

    rng: np.random.Generator
    dense: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)

    def weight(self, *shape: int, axis: int = 0) -> np.ndarray:
        """2:4 along an axis, or dense."""
        if self.dense:
            return self.rng.integers(1, 7, shape).astype(np.float32)
        return lawful(self.rng, shape, axis, NMPattern(2, 4), np.dtype(np.float32))

    def const(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def quantised(self, name: str, value: np.ndarray, dtype: type = np.int8, zero: int = 0) -> tuple[str, str, str]:
        """Names of integers, scale and zero point."""
        self.const(name, (value + zero).astype(dtype))
        return name, self.const(f"{name}_s", np.float32(0.5)), self.const(f"{name}_z", dtype(zero))

    def save(self, path: Path) -> Path:
        good = lawful(self.rng, (K, K), 0, NMPattern(2, 4), np.dtype(np.float32))
        first = helper.make_node("MatMul", ["x", "good"], ["h"])
        graph = helper.make_graph(
            [first, *self.nodes],
            "g",
            [helper.make_tensor_value_info("x", FLOAT, ["b", K]), *self.inputs],
            [helper.make_tensor_value_info("y", FLOAT, None)],
            [numpy_helper.from_array(good, "good"), *self.constants],
            sparse_initializer=self.sparse,
        )
        opsets = [helper.make_opsetid(d, 21 if not d else 1) for d in DOMAINS]
        onnx.save(helper.make_model(graph, opset_imports=opsets, functions=self.functions, ir_version=10), path)
        return path


def draft(name: str, folder: Path, *, dense: bool, seed: int = 0) -> Path:
    """Write one of the graphs."""
    d = Draft(np.random.default_rng(seed), dense)
    BUILDERS[name](d)
    return d.save(Path(folder) / f"{name}.onnx")


def way(proven: bool) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
    """Register a builder under its name."""

    def register(build: Callable[[Draft], None]) -> Callable[[Draft], None]:
        BUILDERS[build.__name__] = build
        if proven:
            PROVEN.add(build.__name__)
        return build

    return register


def _sub(
    nodes: list[onnx.NodeProto], out: str, tensors: Sequence[onnx.TensorProto] = (), inputs: Sequence[str] = ()
) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(i, FLOAT, None) for i in inputs]
    return helper.make_graph(nodes, "s", values, [helper.make_tensor_value_info(out, FLOAT, None)], list(tensors))


@way(proven=True)
def packed_attention(d: Draft) -> None:
    d.node("Unsqueeze", ["h", d.const("ax", np.array([0]))], ["h3"])
    inputs = ["h3", d.const("w", d.weight(K, 3 * K)), d.const("bias", np.ones(3 * K, np.float32))]
    d.node("Attention", inputs, ["y"], num_heads=2, domain=MS)


@way(proven=True)
def quantised_attention(d: Draft) -> None:
    w, scale, zero = d.quantised("w", d.weight(K, 3 * K))
    bias = d.const("b", np.ones(3 * K, np.float32))
    d.node("Unsqueeze", ["h", d.const("ax", np.array([0]))], ["h3"])
    d.node("DynamicQuantizeLinear", ["h3"], ["hq", "hs", "hz"])
    d.node("QAttention", ["hq", w, bias, "hs", scale, "", "hz", zero], ["y"], num_heads=2, domain=MS)


@way(proven=True)
def quantised_gemm(d: Draft) -> None:
    w, scale, zero = d.quantised("w", d.weight(K, K, axis=1), np.uint8, 7)
    d.node("DynamicQuantizeLinear", ["h"], ["hq", "hs", "hz"])
    d.node("QGemm", ["hq", "hs", "hz", w, scale, zero], ["y"], transB=1, domain=MS)


@way(proven=True)
def integer_matmul(d: Draft) -> None:
    w, scale, zero = d.quantised("w", d.weight(K, K), np.uint8, 9)
    d.node("DynamicQuantizeLinear", ["h"], ["hq", "hs", "hz"])
    d.node("MatMulInteger", ["hq", w, "hz", zero], ["p"])
    d.node("Cast", ["p"], ["f"], to=FLOAT)
    d.node("Mul", ["f", scale], ["y"])


@way(proven=True)
def dynamic_matmul(d: Draft) -> None:
    w, scale, zero = d.quantised("w", d.weight(K, K))
    d.node("DynamicQuantizeMatMul", ["h", w, scale, zero], ["y"], domain=MS)


@way(proven=True)
def linear_matmul(d: Draft) -> None:
    w, scale, zero = d.quantised("w", d.weight(K, K))
    d.node("QuantizeLinear", ["h", scale, zero], ["hq"])
    d.node("QLinearMatMul", ["hq", scale, zero, w, scale, zero, scale, zero], ["yq"])
    d.node("DequantizeLinear", ["yq", scale, zero], ["y"])


@way(proven=True)
def few_bits(d: Draft) -> None:
    values = (d.weight(K, K, axis=1) + 8).astype(np.uint8)  # (N, K), 0 is stored as 8
    packed = (values[:, 0::2] | values[:, 1::2] << 4).reshape(K, 1, K // 2)
    inputs = ["h", d.const("w", packed), d.const("s", np.ones(K, np.float32))]
    d.node("MatMulNBits", inputs, ["y"], K=K, N=K, bits=4, block_size=K, domain=MS)


@way(proven=True)
def table_of_values(d: Draft) -> None:
    codes = np.where(d.weight(K, K, axis=1) == 0, 7, 12).astype(np.uint8).reshape(-1)
    inputs = ["h", d.const("w", codes[0::2] << 4 | codes[1::2]), d.const("s", np.ones(K, np.float32))]
    d.node("MatMulBnb4", inputs, ["y"], K=K, N=K, block_size=K, quant_type=1, domain=MS)


@way(proven=True)
def fused_matmul(d: Draft) -> None:
    d.node("FusedMatMul", ["h", d.const("w", d.weight(K, K, axis=1))], ["y"], transB=1, alpha=0.5, domain=MS)


@way(proven=True)
def einsum(d: Draft) -> None:
    d.node("Einsum", ["h", d.const("w", d.weight(8, K, axis=1))], ["y"], equation="bk,nk->bn")


@way(proven=True)
def transposed_convolution(d: Draft) -> None:
    d.node("Reshape", ["h", d.const("s", np.array([0, K, 1, 1]))], ["h4"])
    d.node("ConvTranspose", ["h4", d.const("w", d.weight(K, 8, 1, 1))], ["y"])


@way(proven=True)
def recurrent(d: Draft) -> None:
    d.node("Unsqueeze", ["h", d.const("ax", np.array([0]))], ["h3"])
    weights = [d.const("w", d.weight(1, 4 * K, K, axis=2)), d.const("r", d.weight(1, 4 * K, K, axis=2))]
    d.node("LSTM", ["h3", *weights], ["y"], hidden_size=K)


@way(proven=True)
def split_of_a_packed_weight(d: Draft) -> None:
    d.node("Split", [d.const("w", d.weight(K, 2 * K)), d.const("sp", np.array([K, K]))], ["a", "b"], axis=1)
    d.node("MatMul", ["h", "b"], ["y"])


@way(proven=True)
def layer_of_a_stack(d: Draft) -> None:
    d.node("Gather", [d.const("w", d.weight(3, K, K, axis=1)), d.const("i", np.array(1))], ["layer"], axis=0)
    d.node("MatMul", ["h", "layer"], ["y"])


@way(proven=True)
def mask_applied_in_the_graph(d: Draft) -> None:
    mask = (d.weight(K, K) != 0).astype(np.float32)
    d.node("Mul", [d.const("w", np.ones((K, K), np.float32)), d.const("mask", mask)], ["ww"])
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=True)
def routed_experts(d: Draft) -> None:
    """As torch writes a mixture of experts: each token gathers the weights of its expert."""
    d.node("MatMul", ["h", d.const("router", lawful(d.rng, (K, 4), 0, NMPattern(2, 4), np.dtype(np.float32)))], ["scores"])
    d.node("ArgMax", ["scores"], ["i"], axis=1, keepdims=0)
    d.node("Gather", [d.const("w", d.weight(4, 8, K, axis=2)), "i"], ["own"], axis=0)
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.node("MatMul", ["own", "column"], ["y"])


@way(proven=True)
def function_that_makes_a_weight(d: Draft) -> None:
    value = numpy_helper.from_array(d.weight(K, K), "c")
    body = [helper.make_node("Constant", [], ["o"], value=value)]
    d.functions.append(helper.make_function("own", "Weight", [], ["o"], body, [helper.make_opsetid("", 21)]))
    d.node("Weight", [], ["w"], domain="own")
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=True)
def function_that_takes_a_weight(d: Draft) -> None:
    body = [helper.make_node("MatMul", ["a", "w"], ["o"])]
    d.functions.append(helper.make_function("own", "Linear", ["a", "w"], ["o"], body, [helper.make_opsetid("", 21)]))
    d.node("Linear", ["h", d.const("w", d.weight(K, K))], ["y"], domain="own")


@way(proven=True)
def function_with_the_weight_as_attribute(d: Draft) -> None:
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="table", type=onnx.AttributeProto.TENSOR))
    body = [constant, helper.make_node("MatMul", ["a", "c"], ["o"])]
    made = helper.make_function("own", "Linear", ["a"], ["o"], body, [helper.make_opsetid("", 21)], attributes=["table"])
    d.functions.append(made)
    d.node("Linear", ["h"], ["y"], domain="own", table=numpy_helper.from_array(d.weight(K, K), "t"))


@way(proven=True)
def product_in_a_branch(d: Draft) -> None:
    weight = numpy_helper.from_array(d.weight(K, K), "w")
    then = _sub([helper.make_node("MatMul", ["h", "w"], ["o1"])], "o1", (weight,))
    other = _sub([helper.make_node("Identity", ["h"], ["o2"])], "o2")
    d.inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    d.node("If", ["c"], ["y"], then_branch=then, else_branch=other)


@way(proven=True)
def nodes_out_of_order(d: Draft) -> None:
    d.node("Identity", ["p"], ["y"])
    d.node("MatMul", ["h", "t"], ["p"])
    d.node("Transpose", [d.const("w", d.weight(K, K, axis=1))], ["t"], perm=[1, 0])


@way(proven=False)
def weight_from_a_branch(d: Draft) -> None:
    graphs = []
    for i in (1, 2):
        weight = numpy_helper.from_array(d.weight(K, K), f"w{i}")
        graphs.append(_sub([helper.make_node("Identity", [f"w{i}"], [f"o{i}"])], f"o{i}", (weight,)))
    d.inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    d.node("If", ["c"], ["w"], then_branch=graphs[0], else_branch=graphs[1])
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def weight_carried_by_a_loop(d: Draft) -> None:
    body = _sub([helper.make_node("MatMul", ["s", "w"], ["so"]), helper.make_node("Identity", ["w"], ["wo"])], "so")
    body.node.append(helper.make_node("Identity", ["go"], ["on"]))
    shapes: list[tuple[str, int, list[int] | None]]
    shapes = [("n", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("s", FLOAT, None), ("w", FLOAT, [K, K])]
    body.input.extend(helper.make_tensor_value_info(*s) for s in shapes)
    del body.output[:]
    body.output.extend(
        helper.make_tensor_value_info(*s) for s in (("on", TensorProto.BOOL, []), ("so", FLOAT, None), ("wo", FLOAT, [K, K]))
    )
    inputs = [d.const("trips", np.array(3)), d.const("start", np.array(True)), "h", d.const("weight", d.weight(K, K))]
    d.node("Loop", inputs, ["y", "last"], body=body)


@way(proven=False)
def weights_scanned(d: Draft) -> None:
    nodes = [helper.make_node("MatMul", ["s", "w"], ["so"]), helper.make_node("Identity", ["so"], ["each"])]
    body = _sub(nodes, "so", inputs=("s", "w"))
    body.output.append(helper.make_tensor_value_info("each", FLOAT, None))
    d.node("Scan", ["h", d.const("weight", d.weight(3, K, K, axis=1))], ["y", "all"], body=body, num_scan_inputs=1)


@way(proven=False)
def scale_from_an_input(d: Draft) -> None:
    d.inputs.append(helper.make_tensor_value_info("strength", FLOAT, []))
    d.node("Mul", [d.const("delta", d.weight(K, K)), "strength"], ["scaled"])
    d.node("Add", [d.const("w", d.weight(K, K)), "scaled"], ["ww"])
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=False)
def computed_scale(d: Draft) -> None:
    d.inputs.append(helper.make_tensor_value_info("strength", FLOAT, []))
    d.node("DequantizeLinear", [d.const("w", d.weight(K, K).astype(np.int8)), "strength"], ["ww"])
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=False)
def product_in_disguise(d: Draft) -> None:
    """(B, K, 1) times (K, N), summed over K."""
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.node("Mul", ["column", d.const("w", d.weight(K, K))], ["each"])
    d.node("ReduceSum", ["each", d.const("a1", np.array([1]))], ["y"], keepdims=0)


@way(proven=False)
def random_values(d: Draft) -> None:
    d.node("RandomNormal", [], ["w"], shape=[K, K], seed=1.0)
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def sparse_storage(d: Draft) -> None:
    values = d.weight(K, K).reshape(-1)
    at = np.flatnonzero(values)
    stored = helper.make_sparse_tensor(
        numpy_helper.from_array(values[at], "w"), numpy_helper.from_array(at.astype(np.int64), "w_at"), [K, K]
    )
    d.sparse.append(stored)
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def operator_of_another_domain(d: Draft) -> None:
    d.node("Linear", ["h", d.const("w", d.weight(K, K))], ["y"], domain="own")


@way(proven=False)
def operator_with_weights_of_its_own(d: Draft) -> None:
    d.node("Linear", ["h"], ["y"], domain="own")


@way(proven=False)
def engine(d: Draft) -> None:
    d.node("EPContext", ["h"], ["y"], embed_mode=1, ep_cache_context=b"x" * 64, main_context=1, domain=MS)


@way(proven=False)
def blocked_convolution(d: Draft) -> None:
    d.node("Reshape", ["h", d.const("s", np.array([0, K, 1, 1]))], ["h4"])
    d.node("Conv", ["h4", d.const("w", d.weight(8, K, 1, 1, axis=1))], ["y"], domain="com.microsoft.nchwc")


@way(proven=False)
def channels_last_convolution(d: Draft) -> None:
    d.node("Reshape", ["h", d.const("s", np.array([0, 1, 1, K]))], ["h4"])
    d.node("NhwcConv", ["h4", d.const("w", d.weight(8, 1, 1, K, axis=3))], ["y"], domain=MS)


@way(proven=False)
def fused_experts(d: Draft) -> None:
    weights = [d.const("w1", d.weight(2, K, K, axis=2)), "", d.const("w2", d.weight(2, K, K, axis=2))]
    d.node("MoE", ["h", d.const("r", np.ones((1, 2), np.float32)), *weights], ["y"], k=1, domain=MS)


@way(proven=False)
def attribute_of_a_regressor(d: Draft) -> None:
    coefficients = d.weight(K, K).reshape(-1).tolist()
    d.node("LinearRegressor", ["h"], ["y"], coefficients=coefficients, targets=K, domain="ai.onnx.ml")


@way(proven=False)
def rows_that_meet_activations(d: Draft) -> None:
    """A table of two dimensions is looked up; what comes out is multiplied with activations."""
    d.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [K]))
    d.node("Gather", [d.const("w", d.weight(64, K)), "ids"], ["rows"])
    d.node("MatMul", ["h", "rows"], ["y"])


@way(proven=False)
def values_of_a_palette(d: Draft) -> None:
    """Numbers of a few values; they are looked up when the graph runs, by numbers that are stored."""
    numbers = np.where(d.weight(K, K) == 0, 0, 1 + d.rng.integers(0, 7, (K, K)))
    d.node("Abs", [d.const("palette", np.arange(8).astype(np.float32))], ["values"])
    d.node("Gather", ["values", d.const("numbers", numbers)], ["w"])
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=True)
def values_of_a_stored_palette(d: Draft) -> None:
    numbers = np.where(d.weight(K, K) == 0, 0, 1 + d.rng.integers(0, 7, (K, K)))
    d.node("Gather", [d.const("palette", np.arange(8).astype(np.float32)), d.const("numbers", numbers)], ["w"])
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def signs_of_weights(d: Draft) -> None:
    d.node("Greater", [d.const("w", d.weight(K, K)), d.const("zero", np.float32(0))], ["above"])
    d.node("Cast", ["above"], ["ww"], to=FLOAT)
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=True)
def mask_of_truth_values(d: Draft) -> None:
    keep = d.const("keep", d.weight(K, K) != 0)
    d.node("Where", [keep, d.const("w", np.ones((K, K), np.float32)), d.const("zero", np.float32(0))], ["ww"])
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=False)
def flattened_and_changed(d: Draft) -> None:
    d.node("Neg", [d.const("v", d.weight(K, K).reshape(-1))], ["v2"])
    d.node("Reshape", ["v2", d.const("shape", np.array([K, K]))], ["w"])
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def gated_by_an_input(d: Draft) -> None:
    d.inputs.append(helper.make_tensor_value_info("gate", FLOAT, [K, K]))
    d.node("Mul", [d.const("w", d.weight(K, K)), "gate"], ["ww"])
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=False)
def bias_that_is_multiplied(d: Draft) -> None:
    d.node("Tile", ["h", d.const("t", np.array([K, 1]))], ["many"])
    d.node("Gemm", ["many", "good", d.const("w", d.weight(K, K))], ["ww"], alpha=0.0)
    d.node("MatMul", ["h", "ww"], ["y"])


@way(proven=False)
def product_in_disguise_after_expand(d: Draft) -> None:
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.node("Expand", ["column", d.const("shape", np.array([1, K, K]))], ["wide"])
    d.node("Mul", ["wide", d.const("w", d.weight(K, K))], ["each"])
    d.node("ReduceSum", ["each", d.const("a1", np.array([1]))], ["y"], keepdims=0)


@way(proven=False)
def rows_that_are_multiplied_and_summed(d: Draft) -> None:
    d.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [K]))
    d.node("Gather", [d.const("w", d.weight(64, K)), "ids"], ["rows"])
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.node("Mul", ["column", "rows"], ["each"])
    d.node("ReduceSum", ["each", d.const("a1", np.array([1]))], ["y"], keepdims=0)


@way(proven=False)
def chosen_and_summed(d: Draft) -> None:
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.node("Greater", ["column", d.const("zero", np.float32(0))], ["above"])
    d.node("Where", ["above", d.const("w", d.weight(K, K)), "zero"], ["each"])
    d.node("ReduceSum", ["each", d.const("a1", np.array([1]))], ["y"], keepdims=0)


@way(proven=False)
def convolution_of_one_channel(d: Draft) -> None:
    d.node("Unsqueeze", ["h", d.const("ax", np.array([1]))], ["line"])
    d.node("Conv", ["line", d.const("w", d.weight(8, 1, K, axis=2))], ["y"])


@way(proven=False)
def outer_products(d: Draft) -> None:
    d.node("Transpose", ["h"], ["t"])
    d.node("Unsqueeze", ["t", d.const("ax", np.array([2]))], ["columns"])
    d.node("MatMul", ["columns", d.const("w", d.weight(K, 1, K))], ["each"])
    d.node("ReduceSum", ["each", d.const("a0", np.array([0]))], ["y"], keepdims=0)


@way(proven=False)
def key_and_mask_at_once(d: Draft) -> None:
    d.node("Reshape", ["h", d.const("s", np.array([1, 1, -1, K]))], ["q"])
    d.node("Reshape", [d.const("w", d.weight(K, K)), d.const("sk", np.array([1, 1, K, K]))], ["k"])
    d.node("MultiHeadAttention", ["q", "k", "q", "", "", "k"], ["y"], num_heads=1, domain=MS)


@way(proven=True)
def zero_points_of_a_left_weight(d: Draft) -> None:
    stored = (d.weight(K, K, axis=1) + 7).astype(np.uint8)
    d.node("Transpose", ["h"], ["t"])
    d.node("DynamicQuantizeLinear", ["t"], ["tq", "ts", "tz"])
    inputs = [d.const("w", stored), "tq", d.const("z", np.uint8(7)), "tz"]
    d.node("MatMulInteger", inputs, ["p"])
    d.node("Cast", ["p"], ["y"], to=FLOAT)


@way(proven=False)
def function_that_replaces_an_operator(d: Draft) -> None:
    body = [helper.make_node("Identity", ["a"], ["o"])]
    d.functions.append(helper.make_function(MS, "FusedMatMul", ["a", "b"], ["o"], body, [helper.make_opsetid("", 21)]))
    d.node("FusedMatMul", ["h", d.const("w", d.weight(K, K))], ["y"], domain=MS)


@way(proven=False)
def values_that_look_random(d: Draft) -> None:
    d.inputs.append(helper.make_tensor_value_info("gate", FLOAT, [K, K]))
    d.node("RandomNormalLike", ["gate"], ["w"], seed=1.0)
    d.node("MatMul", ["h", "w"], ["y"])


@way(proven=False)
def product_of_quarter_squares(d: Draft) -> None:
    """((x + w)^2 - (x - w)^2) / 4, summed over K."""
    d.const("w", d.weight(K, K))
    d.node("Unsqueeze", ["h", d.const("ax", np.array([2]))], ["column"])
    d.const("a1", np.array([1]))
    for name, op in (("plus", "Add"), ("minus", "Sub")):
        d.node(op, ["column", "w"], [name])
        d.node("ReduceSumSquare", [name, "a1"], [f"{name}2"], keepdims=0)
    d.node("Sub", ["plus2", "minus2"], ["y4"])
    d.node("Mul", ["y4", d.const("quarter", np.float32(0.25))], ["y"])
