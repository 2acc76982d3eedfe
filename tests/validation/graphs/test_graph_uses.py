"""Every way of a weight to a product: a dense one is never passed, a sparse one is proven or refused with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import FLOAT, node, save_model
from sparse_cases import lawful
from use_cases import BUILDERS, PROVEN, K, draft

from maskpro_deploy.onnx_graphs.constants import tensor_bytes
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.source import Rule

TWO_FOUR = NMPattern(2, 4)
F32 = np.dtype(np.float32)


def rules(report):
    """Name of every exempt tensor -> its rule."""
    return {s.name: s.rule for s in report.account.stored}


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_dense_weight_never_passes(name, tmp_path):
    for at_most in (False, True):
        report = validate(draft(name, tmp_path, dense=True), TWO_FOUR, at_most=at_most)
        assert not report.holds
        assert report.failed or report.unchecked


@pytest.mark.parametrize("name", sorted(PROVEN))
def test_a_sparse_weight_that_is_followed_is_proven(name, tmp_path):
    report = validate(draft(name, tmp_path, dense=False), TWO_FOUR)
    assert report.holds, (report.verdict, [t.why() for t in report.failed], report.unchecked)
    assert len(report.required) > 1
    assert report.account.broken == report.account.unaccounted == 0


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - PROVEN))
def test_a_sparse_weight_that_is_not_followed_is_named_with_a_reason(name, tmp_path):
    report = validate(draft(name, tmp_path, dense=False), TWO_FOUR)
    assert not report.holds
    assert "unaccounted for" in report.verdict
    assert all(u.reason for u in report.unchecked)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_bytes_of_all_constants_add_up(name, dense, tmp_path):
    path = draft(name, tmp_path, dense=dense)
    account = validate(path, TWO_FOUR).account
    assert account.total == account.proven + account.broken + account.unaccounted + sum(account.exempt.values())
    model = onnx.load(path)
    stored = sum(tensor_bytes(t) for t in tensors_of(model))
    extra = 0 if name not in ("attribute_of_a_regressor",) else 4 * K * K
    assert account.total == stored + extra
    assert account.files == path.stat().st_size


def tensors_of(model):
    """Every tensor of a model, wherever it stands."""

    def of_graph(graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from of_nodes(graph.node)

    def of_nodes(nodes):
        for n in nodes:
            for a in n.attribute:
                if a.HasField("t"):
                    yield a.t
                for graph in (*([a.g] if a.HasField("g") else []), *a.graphs):
                    yield from of_graph(graph)

    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)


def language_model(tmp_path, *, head="lm", ids=True, extra=(), constants=None, outputs=("y",)):
    """Tables, norms, rotary sines and a dense head around one sparse weight."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Gather", ["tokens", "ids"], ["e"]),
        node("Slice", ["positions", "zero", "length"], ["p"]),
        node("Add", ["e", "p"], ["a"]),
        node("LayerNormalization", ["a", "scale", "shift"], ["n"]),
        node("MatMul", ["n", "w"], ["q0"]),
        node("Mul", ["q0", "cos"], ["q"]),
        node("MatMul", ["q", head], ["y"]),
        *extra,
    ]
    made = {
        "tokens": rng.standard_normal((40, K)).astype(np.float32),
        "positions": rng.standard_normal((32, K)).astype(np.float32),
        "scale": np.ones(K, np.float32),
        "shift": np.zeros(K, np.float32),
        "w": lawful(rng, (K, K), 0, TWO_FOUR, F32),
        "cos": rng.standard_normal((4, K)).astype(np.float32),
        "lm": rng.standard_normal((K, 40)).astype(np.float32),
        "zero": np.array([0]),
        **(constants or {}),
    }
    path = save_model(tmp_path, nodes, made, inputs=("x",), outputs=outputs)
    model = onnx.load(path)
    model.graph.input.extend(
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [4]),
            helper.make_tensor_value_info("length", TensorProto.INT64, [1]),
        ]
    )
    onnx.save(model, path)
    return path


class TestRules:
    """What needs no proof, and that it is named."""

    def test_a_language_model_holds_with_tables_norms_positions_and_head_exempt(self, tmp_path):
        report = validate(language_model(tmp_path))
        assert report.holds, report.unchecked
        assert rules(report) == {
            "tokens": Rule.TOKEN_TABLE,
            "positions": Rule.ELEMENTWISE,
            "cos": Rule.ELEMENTWISE,
            "scale": Rule.VECTOR,
            "shift": Rule.VECTOR,
            "lm": Rule.HEAD,
            "zero": Rule.INDEX,
        }

    def test_a_head_of_another_width_and_name_is_a_weight(self, tmp_path):
        wide = np.ones((K, 48), np.float32)
        report = validate(language_model(tmp_path, constants={"lm": wide}))
        assert [t.name for t in report.failed] == ["lm"]

    def test_a_product_inside_is_no_head_whatever_its_width(self, tmp_path):
        """As wide as the vocabulary, but what it makes is used again."""
        extra = [node("Relu", ["y"], ["r"]), node("MatMul", ["r", "back"], ["z"])]
        back = lawful(np.random.default_rng(1), (40, K), 0, TWO_FOUR, F32)
        report = validate(language_model(tmp_path, extra=extra, constants={"back": back}, outputs=("z",)))
        assert [t.name for t in report.failed] == ["lm"]

    @pytest.mark.parametrize(
        "name", ["logits", "norm1.linear.weight", "embedder.embed_proj.weight", "time_embedding.linear_1.weight"]
    )
    def test_names_inside_a_graph_exempt_nothing(self, tmp_path, name):
        weights = {"good": lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32), name: np.ones((K, K), np.float32)}
        nodes = [node("MatMul", ["x", "good"], ["h"]), node("MatMul", ["h", name], ["t"]), node("Relu", ["t"], ["y"])]
        assert [t.name for t in validate(save_model(tmp_path, nodes, weights)).failed] == [name]

    def test_a_token_table_that_a_hidden_product_uses_too_is_a_weight(self, tmp_path):
        tokens = np.random.default_rng(0).standard_normal((40, K)).astype(np.float32)
        extra = [node("Transpose", ["tokens"], ["t"]), node("MatMul", ["q", "t"], ["m"]), node("Relu", ["m"], ["z"])]
        report = validate(language_model(tmp_path, extra=extra, constants={"tokens": tokens}, outputs=("y", "z")))
        assert [t.name for t in report.failed] == ["tokens"]

    @pytest.mark.parametrize("dead", [np.ones((9, 9), F32), np.ones(9, F32), np.arange(9), np.ones((9, 9), np.bool_)])
    def test_what_nothing_uses_is_exempt_and_counts_in_no_share(self, tmp_path, dead):
        weight = lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32)
        report = validate(save_model(tmp_path, [node("MatMul", ["x", "w"], ["y"])], {"w": weight, "dead": dead}))
        assert report.holds
        assert rules(report) == {"dead": Rule.UNUSED}
        assert report.share == 1.0

    def test_a_depthwise_convolution_sums_over_no_channels(self, tmp_path):
        weights = {"w": lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32), "k": np.ones((K, 1, 3), np.float32)}
        nodes = [node("MatMul", ["x", "w"], ["h"]), node("Conv", ["h", "k"], ["y"], group=K)]
        assert rules(validate(save_model(tmp_path, nodes, weights))) == {"k": Rule.NARROW}

    def test_frequencies_times_positions_are_an_outer_product(self, tmp_path):
        weights = {"w": lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32), "f": np.ones((1, K, 1), np.float32)}
        nodes = [node("MatMul", ["x", "w"], ["h"]), node("Sqrt", ["f"], ["r"]), node("MatMul", ["r", "h"], ["y"])]
        report = validate(save_model(tmp_path, nodes, weights))
        assert report.holds, report.unchecked


def test_consumers_and_bytes_of_what_is_unaccounted_for_are_named(tmp_path):
    report = validate(draft("operator_of_another_domain", tmp_path, dense=False))
    found = {u.name: u for u in report.unchecked}
    assert found["w"].consumers == ("own.Linear",)
    assert found["w"].bytes == report.account.unaccounted == 4 * K * K
    assert "own.Linear" in found


def test_a_weight_that_one_product_proves_and_another_hides_is_unaccounted_for(tmp_path):
    weight = lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32)
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Abs", ["w"], ["a"]), node("MatMul", ["h", "a"], ["y"])]
    report = validate(save_model(tmp_path, nodes, {"w": weight}))
    assert not report.holds
    assert report.account.unaccounted == report.account.total == 4 * K * K


def test_two_names_of_the_same_bytes_are_counted_once(tmp_path):
    weight = lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32)
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])]
    path = save_model(tmp_path, nodes, {"a": weight, "b": weight}, external=True)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[1].external_data:
        if entry.key == "offset":
            entry.value = "0"
    path.write_bytes(model.SerializeToString())
    account = validate(path).account
    assert (account.total, account.proven) == (4 * K * K, 4 * K * K)


def test_an_operator_known_to_no_table_refuses_what_it_is_given(tmp_path):
    weights = {"w": lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32), "other": np.ones((K, K), np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("SomethingNew", ["h", "other"], ["y"])]
    report = validate(save_model(tmp_path, nodes, weights))
    assert [u.name for u in report.unchecked] == ["other"]
    assert "SomethingNew" in report.unchecked[0].reason


def test_a_function_that_calls_itself_is_an_error(tmp_path):
    from maskpro_deploy.errors import FormatError

    body = [node("Again", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "Again", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    graph = helper.make_graph(
        [node("Again", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1])],
        [helper.make_tensor_value_info("y", FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=[function]).SerializeToString())
    with pytest.raises(FormatError, match="calls itself"):
        validate(path)


def test_constants_of_a_function_are_counted_once_however_often_it_is_called(tmp_path):
    weight = lawful(np.random.default_rng(0), (K, K), 0, TWO_FOUR, F32)
    body = [node("Constant", [], ["c"], value=numpy_helper.from_array(weight)), node("MatMul", ["a", "c"], ["b"])]
    function = helper.make_function("own", "Linear", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    graph = helper.make_graph(
        [node("Linear", ["x"], ["h"], domain="own"), node("Linear", ["h"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, K])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10).SerializeToString())
    report = validate(path)
    assert report.holds
    assert report.account.total == 4 * K * K
