"""Bundles as jobs for TensorRT-RTX: which shapes their graphs are built for, and a process that builds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskpro_deploy.exporters import EngineConfig
from maskpro_deploy.exporters.engines.profiles import profiles
from maskpro_deploy.manifest import Graph, Manifest

# the library is loaded in a process of its own, as the package does it; one process for many jobs, because it starts slowly
_BUILD = """
import json, sys
from pathlib import Path
from maskpro_deploy.exporters.engines.builder import EngineBuilder
library = EngineBuilder("tensorrt-rtx")
for job in json.load(sys.stdin):
    try:
        if job["build"]:
            engine = library.build(Path(job["graph"]), job["profiles"], sparse=False, targets=job["targets"], timing_cache=None,
                                   on_step=lambda *_: None)
            print(json.dumps(engine.nbytes), flush=True)
        else:
            builder = library._trt.Builder(library._logger)
            library._check_supported(builder, Path(job["graph"]))
            network = builder.create_network(library._network_flags())
            library._parse(network, Path(job["graph"]))
            print(json.dumps(network.num_layers), flush=True)
    except Exception as error:
        print(json.dumps(str(error)), flush=True)
"""


def static_profiles(manifest: Manifest, graph: Graph) -> list[dict[str, Any]]:
    """Shapes for one to many new tokens over a cache of fixed length."""
    model = manifest.model
    one, more = (1, model.num_kv_heads, graph.length, model.head_dim), (2, model.num_kv_heads, graph.length, model.head_dim)
    shapes: dict[str, Any] = dict.fromkeys(("input_ids", "position_ids"), ((1, 1), (1, 16), (2, 64)))
    shapes["write_indices"] = ((1,), (1,), (2,))
    for i in range(model.num_layers):
        shapes |= {f"past_key_values.{i}.{kind}": (one, one, more) for kind in ("key", "value")}
    return [shapes]


def jobs(bundle: Path, *, build: bool, targets: Sequence[str] = ("sm89",)) -> list[dict[str, Any]]:
    """One job for each graph of a bundle: build an engine of it that runs on all targets, or only parse it."""
    manifest = Manifest.load(bundle)
    settings = EngineConfig(max_batch=2, max_length=64, max_prefill=32)
    return [
        {
            "graph": str(bundle / graph.file),
            "profiles": profiles(manifest, settings) if graph.form == "cat" else static_profiles(manifest, graph),
            "build": build,
            "targets": list(targets),
        }
        for graph in (manifest.graph, *manifest.siblings)
    ]


def run(todo: list[dict[str, Any]], timeout: float | None = None) -> list[int | str]:
    """The bytes of each engine, or layers of each parsed network; the error, in words, where there is none."""
    command = [sys.executable, "-c", _BUILD]
    done = subprocess.run(command, input=json.dumps(todo), capture_output=True, text=True, timeout=timeout, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    missing = [f"the process ended with {done.returncode}: {done.stderr[-500:]}"] * (len(todo) - len(results))
    return [*results, *missing]
