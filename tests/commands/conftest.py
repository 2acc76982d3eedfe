"""The tiny models as bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maskpro_deploy.exporters import ExportConfig, export


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
