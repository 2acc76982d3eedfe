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

from maskpro_deploy.backends.tensorrt_ import executor
from maskpro_deploy.backends.tensorrt_.executor import EngineExecutor
from maskpro_deploy.errors import FormatError, MachineError
from maskpro_deploy.exporters import EngineConfig, ExportConfig, export
from maskpro_deploy.exporters.engines.compare import points_for
from maskpro_deploy.exporters.engines.profiles import buckets_for, profiles
from maskpro_deploy.exporters.engines.timing.measure import measure
from maskpro_deploy.exporters.engines.timing.results import DENSE, SPARSE
from maskpro_deploy.exporters.engines.timing.runner import Buffers, EngineRunner, input_values
from maskpro_deploy.exporters.graph.weights import matmul_weights


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


class Engine(host.Engine):
    def __init__(self, described):
        super().__init__(described)
        self.weights = matmul_weights(Path(described["graph"]))

    def create_execution_context(self):
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, form):
        return json.dumps({"Layers": [{"Name": w.node, "TacticName": "sptensor_gemm"} for w in self.weights]})


class Runtime(host.Runtime):
    def deserialize_cuda_engine(self, data):
        if bytes(data[:1]) == b"{":
            return Engine(json.loads(bytes(data)))
        self.logger.log(host.ILogger.ERROR, "magic\nand more of it")
        return None


class Library(host.Library):
    __name__ = "tensorrt"
    IProfiler = IProfiler
    LayerInformationFormat = host.Names("JSON")
    Runtime = Runtime


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(executor, "load_library", lambda name: Library)


def engine_file(path, graph, shapes):
    path.write_text(json.dumps({"graph": str(graph), "profiles": shapes}))
    return path


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
def test_every_point_is_run_with_the_right_inputs_and_timed_layer_by_layer(bundle, form, tmp_path):
    out, manifest = bundle
    graph = {g.form: g for g in (manifest.graph, *manifest.siblings)}[form]
    config = EngineConfig(form=form, profiles="prefill:2x16 decode:2")
    buckets, length = buckets_for(graph, manifest.model, config)
    file = engine_file(tmp_path / "x.engine", out / graph.file, profiles(manifest, config, graph))
    gpu = Gpu()
    buffers = Buffers(gpu, manifest.model.vocab_size)
    runners = {name: EngineRunner(EngineExecutor("tensorrt", file, gpu), gpu, buffers) for name in (SPARSE, DENSE)}
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
    address = runners[SPARSE]._call._context.addresses["logits"]
    shape = (last.batch, last.new, manifest.model.vocab_size)
    logits = np.frombuffer(ctypes.string_at(address, 4 * math.prod(shape)), np.float32).reshape(shape)
    zeros = {n: np.zeros(s, np.float32) for n, s in last.shapes.items() if n.startswith("past_key_values.")}
    session = onnxruntime.InferenceSession(str(out / graph.file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {**zeros, **input_values(last, manifest.model.vocab_size)})
    if form == "cat":
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    else:  # its cache was written by earlier points, behind and before the one that is computed
        assert np.isfinite(logits).all()


def test_an_engine_that_is_none_is_a_plain_error(tmp_path):
    (tmp_path / "x.engine").write_bytes(b"junk")
    with pytest.raises(FormatError, match=r"tensorrt 11.4.0.106 cannot load .*x\.engine: magic\nBuild it again"):
        EngineExecutor("tensorrt", tmp_path / "x.engine", Gpu())


def test_shapes_outside_the_profile_are_a_plain_error(bundle, tmp_path):
    out, manifest = bundle
    shapes = profiles(manifest, EngineConfig(profiles="decode:1"))
    engine = EngineExecutor("tensorrt", engine_file(tmp_path / "x.engine", out / "model.onnx", shapes), Gpu())
    (bucket,), length = buckets_for(manifest.graph, manifest.model, EngineConfig(profiles="decode:2"))
    point = points_for(manifest.graph, manifest.model, [bucket], length)[0]
    with pytest.raises(MachineError, match=r"does not take the shape \(2, .*\) of"):
        engine.bind(0, point.shapes, dict.fromkeys(engine.tensors, 256))
