"""Fixtures shared by all tests: a tiny real LLaMA checkpoint, dense and sparse, and its bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bench_results import latency_result as latency_result
from bench_results import throughput_result as throughput_result
from hypothesis import HealthCheck, settings
from tiny_model import magnitude_masks, write_tiny

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.pattern import NMPattern

# Files whose tests run alone, after all others (`scripts/test`): they measure time or keep to it, or use all cores themselves.
SERIAL = {
    "test_bench_trust.py": "real comparisons with verdicts",
    "test_benchmark_command.py": "real measurements",
    "test_benchmark_kernels.py": "real measurements",
    "test_benchmark_serve.py": "a server under load",
    "test_cuda_device.py": "measures a pause",
    "test_demo_command.py": "the whole path, on all cores, with time limits",
    "test_engine_build.py": "waits for processes to start and end",
    "test_engine_on_host.py": "measures pauses",
    "test_export_commands.py": "waits for processes to start and end",
    "test_file_verdicts.py": "many inputs, each with a time limit",
    "test_foreign_graphs.py": "about a minute on all cores",
    "test_generator.py": "requests at set times",
    "test_gpu_check.py": "time budgets",
    "test_kernels.py": "real measurements",
    "test_load_sweep.py": "requests at set times",
    "test_monitor.py": "waits for a run to stop",
    "test_native_step.py": "thread counts, and two builds at once in the cache folder",
    "test_plan.py": "peak memory and seconds of a real run",
    "test_progress.py": "measures a pause",
    "test_readme.py": "every command of the README",
    "test_runtime_bindings.py": "downloads into the cache folder",
    "test_serve_command.py": "signals to a server, and its deadlines",
    "test_serving.py": "deadlines of a server",
    "test_trt_bindings.py": "downloads into the cache folder",
}

# how fast a machine draws inputs is no property of this project: on a busy one the first draw alone can take over a second
settings.register_profile("any speed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Choose between the files of `SERIAL` and all others; a marker would replace the `-m` of the caller."""
    parser.addoption("--serial", choices=("with", "without", "only"), default="with", help="tests that have to run alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--serial` leaves out."""
    choice = config.getoption("serial")
    if choice != "with":
        kept = [item for item in items if (item.path.name in SERIAL) == (choice == "only")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense tiny LLaMA checkpoint (read only)."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "dense")


@pytest.fixture(scope="session")
def tiny_sparse(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a 2:4 mask on its 14 projections (read only)."""
    out = tmp_path_factory.mktemp("tiny") / "sparse"
    dense = Checkpoint.open(tiny_checkpoint)
    save_sparse(dense, magnitude_masks(dense, NMPattern(2, 4)), out, {"method": "magnitude"})
    return out


@pytest.fixture(scope="session")
def dense_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny model as a bundle (read only)."""
    out = tmp_path_factory.mktemp("bundles") / "dense-bundle"
    export(tiny_checkpoint, out, ExportConfig())
    return out


@pytest.fixture(scope="session")
def sparse_bundle(tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2:4 tiny model as a bundle (read only)."""
    out = tmp_path_factory.mktemp("bundles") / "sparse-bundle"
    export(tiny_sparse, out, ExportConfig())
    return out


@pytest.fixture(scope="session")
def other_tokenizer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny model with two tokens of its vocabulary swapped (read only)."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def half_bundle(tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2:4 tiny model as an fp16 bundle (read only)."""
    out = tmp_path_factory.mktemp("bundles") / "half-bundle"
    export(tiny_sparse, out, ExportConfig(dtype="fp16"))
    return out
