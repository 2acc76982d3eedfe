"""The walk from a value to its constant: axes are those that numpy gives, and only nodes that keep values whole are passed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import node

from maskpro_deploy.onnx_graphs.constants import ConstantFinder, external_entries, tensor_bytes


def finder(nodes, **constants):
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return ConstantFinder(helper.make_graph(nodes, "g", [], [], tensors))


@given(orders=st.lists(st.permutations(range(3)), max_size=4))
def test_axes_are_those_of_numpy(orders):
    nodes, value = [], np.zeros((2, 3, 5), np.float32)
    for i, order in enumerate(orders):
        nodes += [
            node("Transpose", [f"v{i}"], [f"t{i}"], perm=order),
            node("Cast", [f"t{i}"], [f"v{i + 1}"], to=TensorProto.FLOAT16),
        ]
        value = value.transpose(order)
    found = finder(nodes, v0=np.zeros((2, 3, 5), np.float32)).find(f"v{len(orders)}")
    assert found is not None
    assert (found.tensor.name, found.shape) == ("v0", value.shape)
    assert [step.output[0] for step in found.steps] == [n.output[0] for n in reversed(nodes)]


def test_without_an_order_axes_are_reversed():
    found = finder([node("Transpose", ["w"], ["t"])], w=np.zeros((2, 3), np.float32)).find("t")
    assert found is not None
    assert (found.shape, found.axes) == ((3, 2), (1, 0))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Relu", ["w"], ["y"])],
        [node("Transpose", ["w"], ["y"], domain="own")],
        [node("Transpose", ["w"], ["y"], perm=[0, 0])],
        [node("Identity", ["z"], ["y"]), node("Identity", ["y"], ["z"])],
        [node("Identity", ["x"], ["y"])],
    ],
    ids=["computed", "another domain", "damaged", "a circle", "an input"],
)
def test_other_values_have_no_constant(nodes):
    assert finder(nodes, w=np.zeros((2, 3), np.float32)).find("y") is None


def test_the_maker_of_a_value_is_found():
    found = finder([node("Relu", ["w"], ["y"])], w=np.zeros(2, np.float32))
    assert found.maker("w") is None
    maker = found.maker("y")
    assert maker is not None
    assert maker.op_type == "Relu"


@pytest.mark.parametrize(("kind", "size"), [("INT4", 8), ("FLOAT", 60), ("BFLOAT16", 30), ("BOOL", 15)])
def test_packed_types_take_half_a_byte(kind, size):
    assert tensor_bytes(TensorProto(dims=[3, 5], data_type=TensorProto.DataType.Value(kind))) == size


def test_only_external_tensors_have_a_place():
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT)
    tensor.external_data.add(key="location", value="data")
    assert external_entries(tensor) == {}
    tensor.data_location = TensorProto.EXTERNAL
    assert external_entries(tensor) == {"location": "data"}
