"""A front end's graph in ours: each node has a name of its own, each weight is stored once, in the graph's type."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.frontends.base import ForeignModel
from maskpro_deploy.exporters.frontends.translation import Translation
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.system.extras import missing

pytestmark = pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")

NODES = (
    helper.make_node("Gather", ["table", "input_ids"], ["x"], name="gather"),
    helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
    helper.make_node("MatMul", ["x", "turned"], ["a"], name="first"),
    helper.make_node("MatMul", ["a", "turned"], ["b"], name="second"),
    helper.make_node("Transpose", ["head"], ["turned_head"], perm=[1, 0]),
    helper.make_node("MatMul", ["b", "turned_head"], ["logits_out"], name="third"),
)
SHAPES = {"table": (6, 4), "w": (4, 4), "head": (6, 4)}


def translate(weights, dtype="fp32", wide=()):
    """The graph, with its weights."""
    model = ForeignModel(
        nodes=NODES, constants={}, parameters=SHAPES, caches={}, logits="logits_out", vocab_size=6, wide=frozenset(wide)
    )
    graph = Graph(dtype, 23)
    graph.input("input_ids", TensorProto.INT64, ["batch", "new"])
    Translation(graph, model, weights, Path("checkpoint"), "cat").run()
    return graph


@pytest.fixture
def weights():
    import torch

    from maskpro_deploy.exporters.frontends.base import ForeignWeight

    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    held = {name: ForeignWeight.of(tensor, (name,), same=True) for name, tensor in tensors.items()}
    halves = [tensors["w"][:3], tensors["w"][3:]]
    return held | {"w": ForeignWeight.join(halves, ("upper", "lower"))}


def test_a_weight_that_is_multiplied_twice_is_stored_once_and_its_nodes_have_two_names(weights):
    graph = translate(weights)
    assert [node.name for node in graph.nodes] == ["/gather", "/w", "/w_1", "/lm_head"]
    assert list(graph.weights) == ["table", "w", "head"]


def test_what_is_joined_of_several_tensors_names_each(weights):
    pieces = translate(weights).weights["w"].pieces
    assert [(p.source, p.shape, p.transposed, p.projection) for p in pieces] == [
        ("upper", (4, 3), True, True),
        ("lower", (4, 1), True, True),
    ]


def test_a_weight_that_stays_wide_is_cast_after_it_is_read(weights):
    graph = translate(weights, "fp16", wide=["w"])
    casts = [(node.input[0], node.attribute[0].i) for node in graph.nodes if node.op_type == "Cast"]
    assert casts[:2] == [("w", TensorProto.FLOAT)] * 2
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_a_weight_that_nothing_holds_is_the_front_ends_affair(weights):
    with pytest.raises(FormatError, match="no tensor for 'w', which this front end calls for"):
        translate({name: weight for name, weight in weights.items() if name != "w"})
