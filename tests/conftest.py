"""Fixtures shared by all tests: a tiny real LLaMA checkpoint, dense and sparse, and its bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bench_results import latency_result as latency_result
from bench_results import throughput_result as throughput_result
from hypothesis import HealthCheck, settings
from serial_files import FIRST, SERIAL
from tiny_engines import LENGTH
from tiny_model import magnitude_masks, write_tiny

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.pattern import NMPattern

# how fast a machine draws inputs is no property of this project: on a busy one the first draw alone can take over a second
settings.register_profile("any speed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Choose between the files of `SERIAL` and all others; a marker would replace the `-m` of the caller."""
    parser.addoption("--serial", choices=("with", "without", "only"), default="with", help="tests that have to run alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--serial` leaves out, and put first what takes long."""
    choice = config.getoption("serial")
    if choice != "with":
        kept = [item for item in items if (item.path.name in SERIAL) == (choice == "only")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = sorted(kept, key=lambda item: item.path.name not in FIRST)


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
def forms_bundle(tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sparse model as a bundle with a graph of every cache form, for short texts (read only)."""
    out = tmp_path_factory.mktemp("forms") / "bundle"
    export(tiny_sparse, out, ExportConfig(forms=tuple(CACHE_FORMS), max_length=LENGTH), compare=False)
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
