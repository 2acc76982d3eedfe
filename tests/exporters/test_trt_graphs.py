"""TensorRT-RTX's parser takes every kind of graph, and its builder makes an engine of it, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from architectures import make

from maskpro_deploy.exporters import EngineConfig, ExportConfig, export
from maskpro_deploy.exporters.engine import profiles
from maskpro_deploy.extras import missing

pytestmark = [
    pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed"),
    pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed"),
]
# the kinds of operators that differ: softcap spelled out, two windows and ropes, normed heads and cut heads, LayerNorm
DECODERS = ["gemma2", "gemma3", "phi4 with longrope", "gpt2"]
STORED = [("fp16", None), ("bf16", None), ("fp16", "int8"), ("fp16", "int4")]
# the library is loaded in a process of its own, as the package does it
BUILD = """
import json, sys
from pathlib import Path
from maskpro_deploy.exporters.trt_library import Library
library = Library("tensorrt-rtx")
for job in json.loads(sys.argv[1]):
    engine = library.build(Path(job["graph"]), job["profiles"], sparse=False, targets=["sm89"], timing_cache=None,
                           on_step=lambda *_: None)
    print(engine.nbytes)
"""


def static_profiles(manifest, graph):
    """Shapes for one to many new tokens over a cache of fixed length."""
    model = manifest.model
    one, more = (1, model.num_kv_heads, graph.length, model.head_dim), (2, model.num_kv_heads, graph.length, model.head_dim)
    shapes = dict.fromkeys(("input_ids", "position_ids"), ((1, 1), (1, 16), (2, 64)))
    shapes["write_indices"] = ((1,), (1,), (2,))
    for i in range(model.num_layers):
        shapes |= {f"past_key_values.{i}.{kind}": (one, one, more) for kind in ("key", "value")}
    return [shapes]


def build(out, manifest):
    settings = EngineConfig(max_batch=2, max_length=64, max_prefill=32)
    jobs = [
        {
            "graph": str(out / graph.file),
            "profiles": profiles(manifest, settings) if graph.form == "cat" else static_profiles(manifest, graph),
        }
        for graph in (manifest.graph, *manifest.siblings)
    ]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, json.dumps(jobs)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [int(size) > 100_000 for size in done.stdout.split()] == [True] * len(jobs)


@pytest.mark.parametrize("name", DECODERS)
def test_cat_and_static_are_parsed_and_built(name, tiny_checkpoint, tmp_path):
    checkpoint = make(name, tmp_path / "checkpoint", tiny_checkpoint)
    build(
        tmp_path / "out", export(checkpoint, tmp_path / "out", ExportConfig(dtype="fp16", forms=("cat", "static"), max_length=64))
    )


@pytest.mark.parametrize(("dtype", "quantize"), STORED)
def test_every_way_to_store_weights_is_parsed_and_built(dtype, quantize, tiny_sparse, tmp_path):
    config = ExportConfig(dtype=dtype, quantize=quantize, forms=("cat", "static"), max_length=64)
    build(tmp_path / "out", export(tiny_sparse, tmp_path / "out", config, compare=False))
