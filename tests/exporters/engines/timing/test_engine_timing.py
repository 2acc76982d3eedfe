"""The comparison of two engines, on engines whose times are known; what runs them, on a driver and a library that stand in."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import random

import numpy as np
import pytest

from maskpro_deploy.backends.executor import TensorSpec
from maskpro_deploy.backends.memory import OutOfDeviceMemory
from maskpro_deploy.backends.tensorrt_.executor import BoundCall
from maskpro_deploy.bench.stats import find_break_even
from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters.engines.kernels import Kernel
from maskpro_deploy.exporters.engines.timing.measure import measure
from maskpro_deploy.exporters.engines.timing.results import DENSE, NO_GPU, SPARSE, Comparison, Point
from maskpro_deploy.exporters.engines.timing.runner import Buffers, EngineRunner, input_values

NODES = {"a.q_proj.weight": "/a/q_proj", "a.up_proj.weight": "/a/up_proj", "a.gate_proj.weight": "/a/gate_proj"}
KERNELS = {
    SPARSE: [
        Kernel(name="q", tactic="sm90_sparse_gemm", text="q [ONNX Layer: /a/q_proj]", sparse=True),
        Kernel(name="/a/up_proj+/a/gate_proj", tactic="gemm", text="/a/up_proj+/a/gate_proj", sparse=False),
        Kernel(name="norm", tactic="", text="norm", sparse=False),
    ],
    DENSE: [Kernel(name=n, tactic="gemm", text=n, sparse=False) for n in ("/a/q_proj", "/a/up_proj", "norm")],
}


def point(batch, kind="prefill", new=16):
    shapes = {"input_ids": (batch, new), "position_ids": (batch, new), "attention_mask": (batch, new + 4)}
    return Point(kind=kind, batch=batch, new=new, past=4, profile=0, shapes=shapes)


class Known:
    """An engine that takes 1 ms a token, with noise; the sparse one four fifths of that from batch 4 on."""

    def __init__(self, name, clock, noise=0.02):
        self.name, self.clock, self.noise = name, clock, noise
        self.random = random.Random(name)

    def prepare(self, point):
        self.point = point

    def time_ms(self):
        gain = 0.8 if self.name == SPARSE and self.point.batch >= 4 else 1.0
        ms = self.point.batch * self.point.new * gain * (1 + self.noise * self.random.random())
        self.clock[0] += ms / 1e3
        return ms

    def layers_ms(self):
        return {kernel.name: 1.0 + i for i, kernel in enumerate(KERNELS[self.name])}

    def kernels(self):
        return KERNELS[self.name]


def run(points, budget_s=1e9):
    clock = [0.0]
    runners = {name: Known(name, clock) for name in (SPARSE, DENSE)}
    return measure(runners, points, NODES, budget_s=budget_s, clock=lambda: clock[0])


def comparison(points, **changes):
    made = Comparison(
        dense_file="d", sparse_bytes=2, dense_bytes=3, sparse_build_s=1.0, dense_build_s=1.0, not_measured="",
        points=points,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_a_known_gain_is_found_from_the_batch_on_at_which_it_is_there():
    found = comparison(run([point(b) for b in (8, 4, 2, 1)] + [point(1, "decode", 1)]))
    assert [p.verdict for p in found.points[:2]] == ["faster", "faster"]
    assert {p.verdict for p in found.points[2:]} <= {"no difference seen", "no difference of interest"}
    for p in found.points[:2]:
        assert p.low < p.speedup < p.high
        assert p.speedup == pytest.approx(1.25, rel=0.02)
    assert found.break_even == {"prefill": 4, "decode": None}
    assert found.headline is found.points[0]
    assert "prefill, batch 8, 16 new, 4 past: sparse runs at 1.2" in found.sentence
    assert found.sentence.endswith("break-even: prefill from batch 4 on, decode at no batch")
    assert Comparison.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_layers_get_the_times_of_the_kernels_that_use_them():
    (found,) = run([point(1)])
    assert found.layers == {
        "a.q_proj.weight": (1.0, 1.0),
        "a.up_proj.weight": (2.0, 2.0),
        "a.gate_proj.weight": (2.0, None),  # the dense engine's kernels do not mention it
    }
    assert found.layers_sum_ms == (6.0, 6.0)


def test_a_layers_break_even_needs_all_larger_batches_and_all_lengths():
    def at(batch, sparse, new=16):
        (found,) = run([point(batch, new=new)])
        return dataclasses.replace(found, layers={"w": (sparse, 1.0), "lost": (None, 1.0)})

    assert comparison((at(8, 0.5), at(4, 0.9), at(2, 1.0), at(1, 0.1))).layer_break_even("w") == {"prefill": 4}
    assert comparison((at(8, 0.5), at(4, 0.9), at(4, 1.1, new=32))).layer_break_even("w") == {"prefill": 8}
    assert comparison((at(8, 1.5), at(4, 0.9))).layer_break_even("w") == {"prefill": None}
    assert comparison((at(8, 0.5),)).layer_break_even("lost") == {"prefill": None}


def test_when_the_time_is_up_the_first_point_is_whole_and_the_others_are_left_out():
    (found,) = run([point(8), point(4)], budget_s=0.1)
    assert found.batch == 8
    assert found.speedup is not None
    assert found.low > 1


def test_without_a_gpu_the_sentence_says_so_and_compares_what_is_known():
    found = comparison((), not_measured=NO_GPU, sparse_bytes=1_200_000, dense_bytes=2_000_000)
    assert found.sentence == f"{NO_GPU}; 1.2 MB, dense 2.0 MB"
    assert comparison(()).sentence.startswith("not measured")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [({1: "slower", 4: "faster", 8: "faster"}, 4), ({1: "faster", 4: "slower"}, None), ({1: "faster"}, 1), ({}, None)],
)
def test_break_even_is_the_size_from_which_on_all_are_faster(verdicts, expected):
    assert find_break_even(verdicts) == expected


# -- what runs an engine --------------------------------------------------------------------------------------------------


class HostGpu:
    """Memory of this machine in the place of a GPU's."""

    stream = 7

    def __init__(self, records=True):
        self.blocks, self.records, self.recorded, self.discarded = {}, records, 0, 0

    def allocate(self, size):
        if size > 1 << 24:
            raise OutOfDeviceMemory
        block = ctypes.create_string_buffer(b"x" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def zero(self, address, size):
        ctypes.memset(address, 0, size)

    def upload(self, address, values):
        assert values.nbytes <= len(self.blocks[address])
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def wait(self):
        pass

    def time_ms(self, work):
        work()
        return 1.0

    def capture(self, work):
        self.recorded += self.records
        return work if self.records else None

    def launch(self, graph):
        graph()

    def discard(self, graph):
        self.discarded += 1


class HostEngine:
    """Notes what it is given; its logits are (B, S, 10) floats, its caches as long as they have to be."""

    def __init__(self, point):
        self.calls, self.layer_times = [], None
        self.tensors = {
            name: TensorSpec(dtype="float16" if "past" in name else "int64", shape=shape, is_input=True)
            for name, shape in point.shapes.items()
        }
        self.tensors["logits"] = TensorSpec(dtype="float32", shape=(-1, -1, 10), is_input=False)
        self.tensors["present.0.key"] = TensorSpec(dtype="float16", shape=(-1, 2, -1, 8), is_input=False)

    def bind(self, profile, shapes, addresses, layer_times=None):
        self.used, self.addresses = (profile, shapes), addresses
        self.layer_times = layer_times
        return BoundCall(self, [], shapes, addresses, self.gpu, lambda: "")

    def set_tensor_address(self, name, address):
        return True

    def execute_async_v3(self, stream):
        self.calls.append(stream)
        if self.layer_times is not None:
            self.layer_times["k"] = 2.0
        return True

    def inspect_layers(self):
        return json.dumps({"Layers": [{"Name": "k", "TacticName": "spgemm", "Metadata": "[ONNX Layer: /a]"}]})


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("form", ["cat", "static"])
def test_a_runner_places_all_tensors_and_runs_the_point(records, form):
    at = point(2)
    past = {"past_key_values.0.key": (2, 2, 4 if form == "cat" else 9, 8)}
    shapes = {**at.shapes, **past} if form == "cat" else {"input_ids": (2, 16), "write_indices": (2,), **past}
    at = dataclasses.replace(at, shapes=shapes)
    gpu, engine = HostGpu(records), HostEngine(at)
    engine.gpu = gpu
    runner = EngineRunner(engine, gpu, Buffers(gpu, 50))
    runner.prepare(at)
    assert engine.used == (0, at.shapes)
    assert set(engine.addresses) == {*at.shapes, "logits", "present.0.key"}
    sizes = {name: len(gpu.blocks[address]) for name, address in engine.addresses.items()}
    assert sizes["logits"] == 2 * 16 * 10 * 4
    assert sizes["present.0.key"] == 2 * 2 * (20 if form == "cat" else 9) * 8 * 2
    shared = engine.addresses["present.0.key"] == engine.addresses["past_key_values.0.key"]
    assert shared == (form == "static")
    raw = gpu.blocks[engine.addresses["input_ids"]].raw
    ids = np.frombuffer(raw, np.int64).reshape(2, 16)
    assert len(np.unique(ids)) > 4
    assert ((ids >= 0) & (ids < 50)).all()
    before = len(engine.calls)
    assert runner.time_ms() == 1.0
    assert len(engine.calls) == before + 1
    assert gpu.recorded == records
    assert runner.layers_ms() == {"k": 2.0}
    assert runner.kernels()[0].sparse
    runner.prepare(at)
    assert gpu.discarded == records


def test_buffers_grow_and_are_used_again():
    gpu = HostGpu()
    buffers = Buffers(gpu, 50)
    small, large = point(1), point(4)
    of = [{name: int(np.prod(shape)) * 8 for name, shape in p.shapes.items()} for p in (small, large)]
    least = buffers.place(small, of[0], {})
    first = buffers.place(large, of[1], {})
    assert set(least.values()).isdisjoint(first.values())
    assert buffers.place(small, of[0], {}) == first
    assert buffers.place(large, of[1], {}) == first


def test_memory_that_is_short_is_one_line():
    at = point(2)
    with pytest.raises(MachineError, match=r"no memory left for 34 MB[\s\S]*--profiles"):
        Buffers(HostGpu(), 50).place(at, dict.fromkeys(at.shapes, 1 << 25), {})


def test_positions_go_on_where_the_past_ends():
    values = input_values(point(2), 50)
    assert values["position_ids"].tolist() == [list(range(4, 20))] * 2
    assert values["attention_mask"].shape == (2, 20)
    assert "write_indices" not in values
