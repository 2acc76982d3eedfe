"""The timing of two engines, all but the GPU and TensorRT: a stand-in keeps TensorRT's rules and runs the graph for real."""

from __future__ import annotations

import ctypes
import json
import math
import time
from pathlib import Path

import library_on_host as host
import numpy as np
import onnxruntime
import pytest

from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters import EngineConfig, ExportConfig, export
from maskpro_deploy.exporters.engines.compare import points_for
from maskpro_deploy.exporters.engines.execution import Execution
from maskpro_deploy.exporters.engines.profiles import buckets_for, profiles
from maskpro_deploy.exporters.engines.runner import Buffers, EngineRunner, input_values
from maskpro_deploy.exporters.engines.timing import DENSE, SPARSE, measure
from maskpro_deploy.exporters.graph.weights import matmul_weights

ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "INT64": 8}


class DataType(str):
    @property
    def itemsize(self):
        return ITEM_BYTES[self]


class IProfiler:
    def __init__(self):
        self.made = True


class Context(host.Context):
    """Reports a layer for every product of the graph to its profiler, as TensorRT does when it has one."""

    profiler = None

    def execute_async_v3(self, stream):
        done = super().execute_async_v3(stream)
        if done and self.profiler is not None:
            assert stream.recording is None, "a profiled run cannot be recorded"
            for weight in self.engine.weights:
                self.profiler.report_layer_time(weight.node, float(weight.region.bytes))
        return done

    def get_tensor_shape(self, name):
        rows, new = self.shapes["input_ids"]
        if name == "logits":
            return rows, new, self.engine.executor.tensors[name].shape[-1]
        b, h, past, d = self.shapes[name.replace("present", "past_key_values")]
        return b, h, past if "write_indices" in self.shapes else past + new, d


class Engine(host.Engine):
    def __init__(self, described):
        super().__init__(described)
        self.weights = matmul_weights(Path(described["graph"]))

    def get_tensor_dtype(self, name):
        return DataType(super().get_tensor_dtype(name))

    def create_execution_context(self):
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, form):
        return json.dumps({"Layers": [{"Name": w.node, "TacticName": "sptensor_gemm"} for w in self.weights]})


class Runtime(host.Runtime):
    def deserialize_cuda_engine(self, data):
        return Engine(json.loads(data)) if data.startswith(b"{") else None


class Library(host.Library):
    __name__ = "tensorrt"
    IProfiler = IProfiler
    LayerInformationFormat = host.Names("JSON")
    Runtime = Runtime


class Gpu(host.HostGpu):
    """This machine's memory with the calls that timing makes."""

    def time_ms(self, work):
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)


@pytest.fixture(scope="module")
def bundle(tiny_sparse, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "b"
    return out, export(tiny_sparse, out, ExportConfig(forms=("cat", "static"), max_length=64), compare=False)


@pytest.mark.parametrize("form", ["cat", "static"])
def test_every_point_is_run_with_the_right_inputs_and_timed_layer_by_layer(bundle, form):
    out, manifest = bundle
    graph = {g.form: g for g in (manifest.graph, *manifest.siblings)}[form]
    config = EngineConfig(form=form, profiles="prefill:2x16 decode:2")
    buckets, length = buckets_for(graph, manifest.model, config)
    plan = json.dumps({"graph": str(out / graph.file), "profiles": profiles(manifest, config, graph)}).encode()
    gpu, library = Gpu(), Library()
    buffers = Buffers(gpu, manifest.model.vocab_size)
    loaded = {name: Execution(library, None, plan, lambda: "") for name in (SPARSE, DENSE)}
    runners = {name: EngineRunner(engine, gpu, buffers) for name, engine in loaded.items()}
    points = points_for(graph, manifest.model, buckets, length)
    weights = matmul_weights(out / graph.file)
    nodes = {w.initializer: w.node for w in weights}
    found = measure(runners, points, nodes, budget_s=1e9)
    assert [p.name for p in found] == [p.name for p in points]
    assert [(p.kind, p.batch) for p in found] == [("prefill", 2), ("prefill", 1), ("decode", 2), ("decode", 1)]
    for p in found:
        assert 0 < p.low <= p.speedup <= p.high
        assert p.layers == {w.initializer: (w.region.bytes, w.region.bytes) for w in weights}
    assert gpu.recorded == 2 * len(points)

    # what the last point computed is what onnxruntime computes from the same inputs
    last = points[-1]
    address = loaded[SPARSE]._context.addresses["logits"]
    shape = (last.batch, last.new, manifest.model.vocab_size)
    logits = np.frombuffer(ctypes.string_at(address, 4 * math.prod(shape)), np.float32).reshape(shape)
    zeros = {n: np.zeros(s, np.float32) for n, s in last.shapes.items() if n.startswith("past_key_values.")}
    session = onnxruntime.InferenceSession(str(out / graph.file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {**zeros, **input_values(last, manifest.model.vocab_size)})
    if form == "cat":
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    else:  # its cache was written by earlier points, behind and before the one that is computed
        assert np.isfinite(logits).all()


def test_an_engine_that_is_none_is_a_plain_error():
    with pytest.raises(MachineError, match=r"tensorrt 11.4.0.106 cannot load the engine: magic\n.*build it again"):
        Execution(Library(), None, b"junk", lambda: "magic")


def test_shapes_outside_the_profile_are_a_plain_error(bundle):
    out, manifest = bundle
    plan = json.dumps(
        {"graph": str(out / "model.onnx"), "profiles": profiles(manifest, EngineConfig(profiles="decode:1"))}
    ).encode()
    engine = Execution(Library(), None, plan, lambda: "dimension 0 is out of range")
    (bucket,), length = buckets_for(manifest.graph, manifest.model, EngineConfig(profiles="decode:2"))
    point = points_for(manifest.graph, manifest.model, [bucket], length)[0]
    with pytest.raises(MachineError, match="does not take the shapes of profile 0: dimension 0"):
        engine.use(0, point.shapes, Gpu().stream)
