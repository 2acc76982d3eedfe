"""A graph run in stages computes what it computes in one go, and with a changed weight what it computes with that."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.exporters import ExportConfig
from maskpro_deploy.exporters.frontends.templates import use_template
from maskpro_deploy.exporters.graph.data_file import write_weights
from maskpro_deploy.exporters.plan import build_graphs
from maskpro_deploy.exporters.quantize.stages import Stream, cut_stages


@pytest.fixture
def model(tiny_sparse, tmp_path):
    """A decoder with its weights in a file, and two texts."""
    source = Checkpoint.open(tiny_sparse)
    template = use_template(source, lambda template: template)
    graph = build_graphs(template, template.read(source.config), ExportConfig(), source)["cat"]
    blob = write_weights(graph.weights.values(), source, tmp_path / "model.onnx.data", "fp32")
    model = graph.model(blob.tensors(), {})
    texts = []
    for length in (5, 9):
        feeds = {"input_ids": np.arange(length)[None], "attention_mask": np.ones((1, length), np.int64)}
        feeds["position_ids"] = np.arange(length)[None]
        for value in model.graph.input:
            if value.name not in feeds:
                _, heads, _, size = (d.dim_value for d in value.type.tensor_type.shape.dim)
                feeds[value.name] = np.zeros((1, heads, 0, size), np.float32)
        texts.append({value.name: feeds[value.name] for value in model.graph.input})
    return model, tmp_path, texts


def whole(model, folder, texts, value):
    """A value inside the graph, for each text, in one run."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.ValueInfoProto(name=value))
    (folder / "probe.onnx").write_bytes(probe.SerializeToString())
    session = onnxruntime.InferenceSession(str(folder / "probe.onnx"), providers=["CPUExecutionProvider"])
    return [session.run([value], feeds)[0] for feeds in texts]


def products(model):
    return [(at, node.input[0]) for at, node in enumerate(model.graph.node) if node.op_type == "MatMul"]


def test_stages_make_what_one_run_makes_and_keep_no_more_than_is_read(model):
    graph, folder, texts = model
    stream = Stream(graph, folder / "model.onnx.data", texts)
    cuts = products(graph)
    for stage, (at, value) in zip(cut_stages(graph, [at for at, _ in cuts]), cuts, strict=True):
        stream.advance(stage)
        later = {name for node in graph.graph.node[at : cuts[-1][0] + 1] for name in node.input}
        for made, expected in zip(stream.values, whole(graph, folder, texts, value), strict=True):
            np.testing.assert_allclose(made[value], expected, atol=1e-5)
            assert {name for name in made if name not in texts[0]} <= later


def test_a_changed_weight_counts_from_the_next_stage_on(model):
    graph, folder, texts = model
    own = folder / "own.data"
    shutil.copyfile(folder / "model.onnx.data", own)
    stream = Stream(graph, own, texts)
    cuts = products(graph)
    first, last = cuts[3], cuts[-1]
    parts = cut_stages(graph, [first[0], last[0]])
    stream.advance(next(parts))
    name = graph.graph.node[first[0]].input[1]
    shape = next(tuple(t.dims) for t in graph.graph.initializer if t.name == name)
    before = (folder / "model.onnx.data").read_bytes()
    stream.change(name, np.zeros(shape, np.float32))
    stream.advance(next(parts))
    assert (folder / "model.onnx.data").read_bytes() == before
    plain = whole(graph, folder, texts, last[1])
    shutil.copyfile(own, folder / "model.onnx.data")
    changed = whole(graph, folder, texts, last[1])
    for made, expected, old in zip(stream.values, changed, plain, strict=True):
        np.testing.assert_allclose(made[last[1]], expected, atol=1e-5)
        assert np.abs(made[last[1]] - old).max() > 1e-3
