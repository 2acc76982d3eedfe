"""ONNX graphs: every supported chain from a stored tensor to a product is judged as the values it really multiplies with."""

from __future__ import annotations

import tempfile

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_cases import FLOAT, ORIENTATIONS, change_external_data, node, product, save_model
from sparse_cases import damaged, holds_by_hand, lawful, seeds

from maskpro_deploy.errors import FormatError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.arrays import LoadedArray
from maskpro_deploy.validation.formats.readers import open_source

TWO_FOUR = NMPattern(2, 4)
F32 = np.dtype(np.float32)


def effective(path, orientation, shape):
    """The weight as the graph multiplies with it, reduction axis first, by running the graph on an identity matrix."""
    k = shape[product("w", orientation)[1]]
    y = ReferenceEvaluator(onnx.load(path)).run(None, {"x": np.eye(k, dtype=np.float32)})[0]
    return y if orientation in ("xw", "gemm", "gemmT") else y.T


@st.composite
def chains(draw):
    """A stored tensor and nodes up to "w", float32: (rng -> constants, nodes, shape of "w", damage possible)."""
    orientation = draw(st.sampled_from(ORIENTATIONS))
    rng = np.random.default_rng(draw(seeds))
    shape = (int(rng.integers(1, 4)) * 4, int(rng.integers(1, 4)) * 8)  # of the value that is multiplied with
    axis = product("w", orientation)[1]
    logical = lawful(rng, shape, axis, TWO_FOUR, F32)
    kind = draw(st.sampled_from(["none", "filled", "erased"]))
    if kind != "none":
        logical, _ = damaged(rng, logical, kind)
    transposes = draw(st.integers(0, 3))
    stored = logical.T if transposes % 2 else logical
    return orientation, rng, kind, axis, stored, transposes


def nodes_of(transposes, start, extra=()):
    """Nodes from value `start` to "w": `extra` steps, then the transposes."""
    nodes, value = list(extra), start
    for i in range(transposes):
        nodes.append(node("Transpose", [value], [f"t{i}"], **({"perm": [1, 0]} if i else {})))
        value = f"t{i}"
    nodes.append(node("Identity", [value], ["w"]))
    return nodes


def check(folder, orientation, nodes, constants, kind, axis, external=False):
    path = save_model(folder, [*nodes, *product("w", orientation)[0]], constants, external=external)
    stored = next(iter(constants.values()))
    shape = tuple(stored.dims) if isinstance(stored, TensorProto) else stored.shape
    transposed = sum(n.op_type == "Transpose" for n in nodes) % 2
    report = validate(path, TWO_FOUR)
    assert report.holds == (kind == "none"), report.verdict
    assert len(report.tensors) == 1
    assert (report.tensors[0].shape, report.tensors[0].axis) == (shape, 1 - axis if transposed else axis)
    if kind != "none":
        assert report.tensors[0].violations == 1
    logical_shape = shape[::-1] if transposed else shape
    assert holds_by_hand(effective(path, orientation, logical_shape), 0, TWO_FOUR) == (kind == "none")
    if kind == "none":
        assert validate(path).pattern in (TWO_FOUR, NMPattern(1, 2))  # found without being told


@settings(max_examples=60, deadline=None)
@given(chain=chains(), external=st.booleans())
def test_plain_weights_through_transposes(chain, external):
    orientation, _, kind, axis, stored, transposes = chain
    with tempfile.TemporaryDirectory() as folder:
        check(folder, orientation, nodes_of(transposes, "s"), {"s": stored}, kind, axis, external)


@settings(max_examples=60, deadline=None)
@given(chain=chains(), external=st.booleans(), dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float64, np.int8]))
def test_weights_stored_in_another_type_and_cast(chain, external, dtype):
    orientation, _, kind, axis, stored, transposes = chain
    cast = node("Cast", ["s"], ["c"], to=FLOAT)
    with tempfile.TemporaryDirectory() as folder:
        check(folder, orientation, nodes_of(transposes, "c", [cast]), {"s": stored.astype(dtype)}, kind, axis, external)


@settings(max_examples=100, deadline=None)
@given(
    chain=chains(),
    external=st.booleans(),
    form=st.sampled_from(["tensor", "axis 0", "axis 1", "blocks 0", "blocks 1"]),
    bits=st.sampled_from(["int8", "uint8", "int4", "uint4"]),
    zero_point=st.sampled_from(["none", "zero", "shifted"]),
    scale_type=st.sampled_from([np.float32, np.float16]),
)
def test_quantised_weights(chain, external, form, bits, zero_point, scale_type):
    orientation, rng, kind, axis, stored, transposes = chain
    unsigned = bits.startswith("u")
    blocked = form.startswith("blocks")
    at = int(form[-1]) if form != "tensor" else 0
    shape = stored.shape
    if form == "tensor":
        scale_shape = ()
    else:
        scale_shape = tuple(n // 2 if i == at else n for i, n in enumerate(shape)) if blocked else (shape[at],)
    scale = rng.uniform(0.01, 2, scale_shape).astype(scale_type)
    shift = np.zeros(scale_shape, np.int64)
    if unsigned:
        shift = rng.integers(7, 9, scale_shape)
    elif zero_point == "shifted":
        shift = rng.integers(-1, 1, scale_shape, endpoint=True)
    wide = np.repeat(shift, 2, axis=at) if blocked else (np.expand_dims(shift, 1 - at) if shift.ndim else shift)
    values = (stored.astype(np.int64) + wide).reshape(-1)
    types = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int4": TensorProto.INT4, "uint4": TensorProto.UINT4}

    def tensor(array, dims):
        if bits.endswith("int8"):
            return numpy_helper.from_array(np.asarray(array, dtype=np.dtype(bits)).reshape(dims))
        nibbles = (np.append(np.asarray(array, np.int64).reshape(-1), np.zeros(np.size(array) % 2, np.int64)) & 15).astype(
            np.uint8
        )
        return helper.make_tensor("n", types[bits], dims, (nibbles[0::2] | nibbles[1::2] << 4).tobytes(), raw=True)

    constants = {"s": tensor(values, shape), "scale": scale}
    if unsigned or zero_point != "none":
        constants["zero"] = tensor(shift, scale_shape)
    attributes = {"axis": at} | ({"block_size": 2} if blocked else {})
    steps = [node("DequantizeLinear", [*constants], ["d"], **attributes), node("Cast", ["d"], ["c"], to=FLOAT)]
    with tempfile.TemporaryDirectory() as folder:
        check(folder, orientation, nodes_of(transposes, "c", steps), constants, kind, axis, external)


@settings(max_examples=100, deadline=None)
@given(
    seed=seeds,
    at_most=st.booleans(),
    block=st.sampled_from([0, 2, 4]),
    axis=st.sampled_from([0, 1]),
    flip=st.booleans(),
    symmetric=st.booleans(),
    scale_type=st.sampled_from([np.float16, np.float32]),
    special=st.sampled_from(["none", "zero", "tiny", "huge", "nan"]),
)
def test_dequantised_zeros_and_overflows_are_judged_by_the_value_they_become(
    seed, at_most, block, axis, flip, symmetric, scale_type, special
):
    """Scales that are zero, tiny or huge, and zero points: every group is counted as its real values say."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-2, 3, (8, 8)).astype(np.int8)
    scale_shape = tuple(8 // block if i == axis else 8 for i in range(2)) if block else (8,)
    tiny, huge = (1e-8, 6e4) if scale_type == np.float16 else (1e-45, 3e38)
    odd = {"none": 1.0, "zero": 0.0, "tiny": tiny, "huge": huge, "nan": np.nan}[special]
    scale = np.where(rng.random(scale_shape) < 0.2, odd, rng.choice([0.01, 1.0], scale_shape)).astype(scale_type)
    zero = rng.integers(-1, 2, scale_shape).astype(np.int8) * (not symmetric)
    nodes = [
        *([node("Transpose", ["q"], ["qt"])] if flip else []),
        node("DequantizeLinear", ["qt" if flip else "q", "scale", "zero"], ["d"], axis=axis, block_size=block),
        node("Cast", ["d"], ["w"], to=FLOAT),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(folder, nodes, {"q": q, "scale": scale, "zero": zero.astype(np.int8)})
        report = validate(path, TWO_FOUR, at_most=at_most)
        wide = np.repeat(scale, block, axis=axis) if block else np.expand_dims(scale, 1 - axis)
        shift = np.repeat(zero, block, axis=axis) if block else np.expand_dims(zero, 1 - axis)
        with np.errstate(all="ignore"):
            real = ((q.T if flip else q).astype(np.float64) - shift) * wide.astype(np.float64)
            real = real.astype(scale_type)
    counts = (real.reshape(2, 4, 8) != 0).sum(axis=1)
    found = report.tensors[0]
    assert (found.over, found.under) == ((counts > 2).sum(), (counts < 2).sum())
    assert found.not_finite == (~np.isfinite(real)).sum()
    assert report.holds == holds_by_hand(real, 0, TWO_FOUR, at_most=at_most)


@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    target=st.sampled_from(["int8", "uint8", "int16", "uint16"]),
    form=st.sampled_from(["tensor", "axis 0", "axis 1", "blocks 0"]),
    flip=st.booleans(),
)
def test_constants_that_are_quantised_in_the_graph_are_judged_by_what_comes_back(seed, target, form, flip):
    """Small values become zero in QuantizeLinear: the counts are those of the reference evaluator."""
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(8, 8)) * (rng.random((8, 8)) < 0.6)).astype(np.float32)
    at = 0 if form == "tensor" else int(form[-1])
    shape = {"tensor": (), "blocks 0": (4, 8)}.get(form, (8,))
    scale = rng.choice([0.013, 0.31, 1.7], shape).astype(np.float32)
    zero = np.full(shape, 3 if target.startswith("u") else 0, np.dtype(target))
    attributes = {"axis": at} | ({"block_size": 2} if form == "blocks 0" else {})
    steps = [
        *([node("Transpose", ["s"], ["st"])] if flip else []),
        node("QuantizeLinear", ["st" if flip else "s", "scale", "zero"], ["q"], **attributes),
        node("DequantizeLinear", ["q", "scale", "zero"], ["w"], **attributes),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(folder, steps, {"s": weight, "scale": scale, "zero": zero})
        real = ReferenceEvaluator(onnx.load(path)).run(None, {"x": np.eye(8, dtype=np.float32)})[0]
        found = validate(path, TWO_FOUR).tensors[0]
    counts = (real.reshape(2, 4, 8) != 0).sum(axis=1)
    assert (found.over, found.under) == ((counts > 2).sum(), (counts < 2).sum())


def test_quantising_does_not_hide_values_that_are_not_finite(tmp_path):
    weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
    weight[tuple(np.argwhere(weight)[3])] = np.nan
    nodes = [
        node("QuantizeLinear", ["w", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    constants = {"w": weight, "scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    assert validate(save_model(tmp_path, nodes, constants), TWO_FOUR).failed[0].not_finite == 1


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", ["none", "filled"])
def test_fp4_weights_are_read_two_to_a_byte(tmp_path, external, kind):
    weight = lawful(np.random.default_rng(0), (8, 6), 0, TWO_FOUR, np.dtype(ml_dtypes.float4_e2m1fn))
    if kind == "filled":
        weight, _ = damaged(np.random.default_rng(1), weight, "filled")
    bits = weight.view(np.uint8).reshape(-1)
    tensor = helper.make_tensor("w", TensorProto.FLOAT4E2M1, [8, 6], (bits[0::2] | bits[1::2] << 4).tobytes(), raw=True)
    nodes = [node("DequantizeLinear", ["w", "scale"], ["d"]), node("MatMul", ["x", "d"], ["y"])]
    path = save_model(tmp_path, nodes, {"w": tensor, "scale": np.array(0.5, np.float32)}, external=external)
    report = validate(path, TWO_FOUR)
    assert report.holds == (kind == "none")
    assert report.tensors[0].dtype == "f4"


@settings(max_examples=60, deadline=None)
@given(seed=seeds, data=st.data())
def test_any_chain_of_shape_changes_is_followed_to_the_values_that_are_multiplied(seed, data):
    """Reshape, Transpose, Squeeze, Unsqueeze and Flatten in any order, compared with the graph as it runs."""
    rng = np.random.default_rng(seed)
    weight = (rng.random((4, 2, 3, 4)) < 0.5).astype(np.float32)
    nodes, constants, value, shape = [], {"s": weight}, "s", list(weight.shape)
    for i in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["Reshape", "Transpose", "Unsqueeze", "Flatten", "Squeeze"]))
        inputs, attributes = [value], {}
        if kind == "Reshape":
            shape = data.draw(st.sampled_from([[8, 12], [4, -1], [2, 1, 48], [1, 96], [12, 2, 4], [96]]))
            constants[f"c{i}"] = np.array(shape)
            inputs.append(f"c{i}")
        elif kind == "Transpose":
            attributes["perm"] = data.draw(st.permutations(range(len(shape))))
        elif kind == "Unsqueeze":
            constants[f"c{i}"] = np.array([data.draw(st.integers(-len(shape) - 1, len(shape)))])
            inputs.append(f"c{i}")
        elif kind == "Flatten":
            attributes["axis"] = data.draw(st.integers(-len(shape), len(shape)))
        nodes.append(node(kind, inputs, [f"v{i}"], **attributes))
        value = f"v{i}"
        shape = list(_run(nodes, constants, value).shape)
    constants["end"] = np.array([-1, 4])
    nodes += [node("Reshape", [value, "end"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    real = _run(nodes[:-1], constants, "w")  # (24, 4)
    with tempfile.TemporaryDirectory() as folder:
        report = validate(save_model(folder, nodes, constants), TWO_FOUR)
    counts = (real.reshape(6, 4, 4) != 0).sum(axis=1)
    found = report.tensors[0]
    assert (found.over, found.under) == ((counts > 2).sum(), (counts < 2).sum())


def _run(nodes, constants, output):
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(folder, nodes, constants, inputs=(), outputs=(output,))
        return ReferenceEvaluator(onnx.load(path)).run(None, {})[0]


def test_old_graphs_have_axes_as_attributes(tmp_path):
    weight = lawful(np.random.default_rng(0), (8, 1, 8), 0, TWO_FOUR, F32)
    nodes = [node("Squeeze", ["w"], ["s"], axes=[1]), node("MatMul", ["x", "s"], ["y"])]
    assert validate(save_model(tmp_path, nodes, {"w": weight}, opset=11), TWO_FOUR).holds


def test_large_inline_weights_are_unpacked_one_at_a_time(tmp_path):
    weight = lawful(np.random.default_rng(0), (512, 256), 0, TWO_FOUR, F32)
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])]
    path = save_model(tmp_path, nodes, {"a": weight, "b": weight})
    assert validate(path, TWO_FOUR).holds
    source = open_source(path)
    assert all(isinstance(w.data, LoadedArray) and w.data._held is None for w in source.weights)


def test_multiply_adds_count_every_product_with_a_stored_weight(tmp_path):
    good, dense = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32), np.ones((8, 16), np.float32)
    nodes = [
        node("MatMul", ["x", "good"], ["a"]),
        node("MatMul", ["a", "good"], ["b"]),
        node("MatMul", ["b", "lm_head.weight"], ["y"]),
        node("MatMul", ["a", "b"], ["z"]),  # of activations: not counted
    ]
    report = validate(save_model(tmp_path, nodes, {"good": good, "lm_head.weight": dense}), TWO_FOUR)
    assert report.holds
    assert (report.multiply_adds, report.share_of_multiply_adds) == (2 * 64 + 128, 0.5)
    assert report.share == 64 / 192
    assert "50.0 % of the multiply-adds" in report.verdict


@pytest.mark.parametrize("special", [np.nan, np.inf, 1e6], ids=["nan", "inf", "overflow in the cast"])
def test_values_that_are_not_finite_where_they_are_multiplied_fail(tmp_path, special):
    weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
    weight[tuple(np.argwhere(weight)[3])] = special
    half = node("Cast", ["w"], ["h"], to=TensorProto.FLOAT16)
    back = node("Cast", ["h"], ["f"], to=FLOAT)
    path = save_model(tmp_path, [half, back, node("MatMul", ["x", "f"], ["y"])], {"w": weight})
    assert validate(path, TWO_FOUR).failed[0].not_finite == 1


def test_values_that_a_cast_flushes_to_zero_are_zero(tmp_path):
    weight = np.full((4, 4), 1e-12, np.float32)
    weight[:2] = 1.0
    half = node("Cast", ["w"], ["h"], to=TensorProto.FLOAT16)
    assert validate(save_model(tmp_path, [half, node("MatMul", ["x", "h"], ["y"])], {"w": weight}), TWO_FOUR).holds


def test_batched_matmul_and_conv_have_their_own_axes(tmp_path):
    rng = np.random.default_rng(0)
    experts, kernel = lawful(rng, (3, 8, 5), 1, TWO_FOUR, F32), lawful(rng, (6, 8, 3, 3), 1, TWO_FOUR, F32)
    nodes = [node("MatMul", ["x", "experts"], ["a"]), node("Conv", ["x", "kernel"], ["y"])]
    report = validate(save_model(tmp_path, nodes, {"experts": experts, "kernel": kernel}))
    assert report.holds
    assert [(t.name, t.axis) for t in report.tensors] == [("experts", 1), ("kernel", 1)]


class TestNotFollowed:
    """What cannot be followed is said, and never passes."""

    def expect_unchecked(self, path, reason):
        report = validate(path, TWO_FOUR, at_most=True)
        assert not report.holds
        assert reason in report.unchecked[0].reason
        assert "unaccounted for" in report.verdict

    def test_a_reshape_by_a_computed_shape(self, tmp_path):
        nodes = [node("Abs", ["s"], ["shape"]), node("Reshape", ["w", "shape"], ["r"]), node("MatMul", ["x", "r"], ["y"])]
        path = save_model(tmp_path, nodes, {"w": np.zeros((4, 8), np.float32), "s": np.array([8, 4])})
        self.expect_unchecked(path, "Reshape")

    @pytest.mark.parametrize("shape", [[5, 7], [-1, -1], [-1, 5], [0, 0, 0], [-2, 16]])
    def test_a_reshape_to_a_shape_of_another_size(self, tmp_path, shape):
        nodes = [node("Reshape", ["w", "shape"], ["r"]), node("MatMul", ["x", "r"], ["y"])]
        path = save_model(tmp_path, nodes, {"w": np.zeros((4, 8), np.float32), "shape": np.array(shape)})
        self.expect_unchecked(path, "Reshape")

    @pytest.mark.parametrize("op", ["MatMulNBits", "MatMulBnb4", "MoE", "NhwcConv"])
    def test_contributed_operators(self, tmp_path, op):
        path = save_model(tmp_path, [node(op, ["x", "w"], ["y"], domain="com.microsoft")], {"w": np.zeros((4, 8), np.float32)})
        self.expect_unchecked(path, op)

    def test_a_dequantisation_with_contradicting_shapes(self, tmp_path):
        nodes = [node("DequantizeLinear", ["w", "scale"], ["d"], axis=0), node("MatMul", ["x", "d"], ["y"])]
        path = save_model(tmp_path, nodes, {"w": np.zeros((4, 8), np.int8), "scale": np.ones(3, np.float32)})
        self.expect_unchecked(path, "DequantizeLinear")

    def test_a_scale_that_is_not_constant(self, tmp_path):
        nodes = [node("DequantizeLinear", ["w", "x"], ["d"]), node("MatMul", ["x", "d"], ["y"])]
        report = validate(save_model(tmp_path, nodes, {"w": np.zeros((4, 8), np.int8)}), TWO_FOUR)
        assert not report.holds

    def test_one_unchecked_weight_beside_a_good_one_is_no_pass(self, tmp_path):
        weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
        nodes = [node("MatMul", ["x", "good"], ["y"]), node("Abs", ["other"], ["a"]), node("MatMul", ["x", "a"], ["z"])]
        report = validate(save_model(tmp_path, nodes, {"good": weight, "other": weight}))
        assert not report.holds
        assert "1 tensor is unaccounted for" in report.verdict
        assert (report.unchecked[0].name, report.unchecked[0].consumers) == ("other", ("MatMul",))


class TestWhatCounts:
    def test_a_product_of_two_activations_is_no_weight(self, tmp_path):
        path = save_model(tmp_path, [node("MatMul", ["x", "x"], ["y"])], {"unused": np.zeros((4, 4), np.float32)})
        report = validate(path, TWO_FOUR)
        assert (report.tensors, report.unchecked, report.holds) == ((), (), False)

    def test_outer_products_with_a_vector_do_not_count(self, tmp_path):
        weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
        nodes = [node("MatMul", ["frequencies", "x"], ["f"]), node("MatMul", ["x", "up"], ["y"])]
        assert validate(save_model(tmp_path, nodes, {"frequencies": np.ones((1, 8, 1), np.float32), "up": weight})).holds

    @pytest.mark.parametrize("kind", ["name", "tied", "output"])
    def test_the_output_head_does_not_count(self, tmp_path, kind):
        weight, dense = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32), np.ones((8, 8), np.float32)
        head = "lm_head.weight" if kind == "name" else "some_tensor"
        nodes = [node("MatMul", ["x", "up"], ["y"])]
        if kind == "tied":
            nodes += [node("Gather", [head, "ids"], ["e"]), node("Transpose", [head], ["t"]), node("MatMul", ["y", "t"], ["o"])]
        else:
            nodes += [node("MatMul", ["y", head], ["p"]), node("Mul", ["p", "half"], ["logits" if kind == "output" else "q"])]
        out = "o" if kind == "tied" else "logits" if kind == "output" else "q"
        constants = {"up": weight, head: dense, "half": np.array(0.5, np.float32)}
        report = validate(save_model(tmp_path, nodes, constants, inputs=("x", "ids"), outputs=(out,)))
        assert report.holds
        assert [t.required for t in report.tensors] == [True, False]

    def test_a_weight_in_the_branches_of_an_if_is_checked(self, tmp_path):
        weight = np.ones((8, 8), np.float32)
        branch = helper.make_graph(
            [node("MatMul", ["x", "w"], ["b"])], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)]
        )
        nodes = [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        report = validate(save_model(tmp_path, nodes, {"w": weight}, inputs=("x", "c")), TWO_FOUR)
        assert [t.name for t in report.failed] == ["w"]

    def test_constant_nodes_are_weights_too(self, tmp_path):
        weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
        nodes = [node("Constant", [], ["w"], value=numpy_helper.from_array(weight)), node("MatMul", ["x", "w"], ["y"])]
        assert validate(save_model(tmp_path, nodes, {})).holds

    def test_a_weight_used_twice_is_counted_once_a_shared_axis(self, tmp_path):
        weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
        nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
        assert len(validate(save_model(tmp_path, nodes, {"w": weight})).tensors) == 1
        nodes.append(node("Gemm", ["x", "w"], ["z"], transB=1))
        assert [t.axis for t in validate(save_model(tmp_path, nodes, {"w": weight})).tensors] == [0, 1]


class TestDamagedFiles:
    @pytest.fixture
    def external(self, tmp_path):
        weight = lawful(np.random.default_rng(0), (8, 8), 0, TWO_FOUR, F32)
        return save_model(tmp_path, [node("MatMul", ["x", "w"], ["y"])], {"w": weight}, external=True)

    def test_intact_it_holds(self, external):
        assert validate(external).holds

    @pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", ""])
    def test_external_data_outside_the_folder_is_refused(self, external, location):
        (external.parent.parent / "secret").write_bytes(bytes(1000))
        change_external_data(external, location=location)
        with pytest.raises(FormatError, match="outside its folder"):
            validate(external)

    def test_external_data_behind_a_link_out_of_the_folder_is_refused(self, external, tmp_path_factory):
        data = external.with_name("m.onnx.data")
        elsewhere = tmp_path_factory.mktemp("elsewhere") / "data"
        data.rename(elsewhere)
        data.symlink_to(elsewhere)
        with pytest.raises(FormatError, match="outside its folder"):
            validate(external)

    @pytest.mark.parametrize(
        "entries", [{"offset": "1"}, {"offset": "-4"}, {"length": "4"}, {"offset": "x"}, {"location": "gone"}]
    )
    def test_external_data_of_the_wrong_size_or_place_is_refused(self, external, entries):
        change_external_data(external, **entries)
        with pytest.raises(FormatError, match=r"m\.onnx"):
            validate(external)

    def test_truncated_external_data_is_refused(self, external):
        data = external.with_name("m.onnx.data")
        data.write_bytes(data.read_bytes()[:-1])
        with pytest.raises(FormatError, match="truncated"):
            validate(external)

    def test_inline_data_of_the_wrong_size_is_refused(self, tmp_path):
        tensor = helper.make_tensor("w", FLOAT, [8, 8], bytes(4 * 8 * 8), raw=True)
        tensor.raw_data = tensor.raw_data[:-4]
        path = save_model(tmp_path, [node("MatMul", ["x", "w"], ["y"])], {"w": tensor})
        with pytest.raises(FormatError, match="does not fit"):
            validate(path)

    def test_a_missing_initializer_is_an_error(self, tmp_path):
        path = save_model(tmp_path, [node("MatMul", ["x", "gone"], ["y"])], {})
        with pytest.raises(FormatError, match="'gone'"):
            validate(path)

    def test_a_cycle_is_an_error(self, tmp_path):
        nodes = [node("Add", ["x", "b"], ["a"]), node("Add", ["x", "a"], ["b"]), node("MatMul", ["x", "b"], ["y"])]
        with pytest.raises(FormatError, match="topological"):
            validate(save_model(tmp_path, nodes, {}))

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_changed_bytes_never_crash_and_never_prove_a_zero_weight(self, data):
        with tempfile.TemporaryDirectory() as folder:
            weight = helper.make_tensor("w", FLOAT, [8, 8], bytes(256), raw=True)
            path = save_model(folder, [node("MatMul", ["x", "w"], ["y"])], {"w": weight})
            raw = bytearray(path.read_bytes())
            raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
            for _ in range(data.draw(st.integers(0, 3))):
                if raw:
                    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 8, 127, 128, 255]))
            path.write_bytes(raw)
            try:
                report = validate(path, TWO_FOUR)
            except FormatError:
                return
            assert not report.holds or report.tensors[0].nonzeros > 0

    @pytest.mark.parametrize("name", [b"w\xff", b"w\x00"])
    @pytest.mark.parametrize("old", [b"m.onnx.data", b"MatMul"])
    def test_names_that_are_no_text_are_refused(self, external, name, old):
        raw = external.read_bytes()
        assert old in raw
        external.write_bytes(raw.replace(old, name.ljust(len(old), b"x")))
        with pytest.raises(FormatError, match=r"m\.onnx is not a complete ONNX file"):
            validate(external)

    def test_text_is_no_onnx_file(self, tmp_path):
        (tmp_path / "m.onnx").write_text("hello")
        with pytest.raises(FormatError, match="not a complete"):
            validate(tmp_path / "m.onnx")
