"""Models and tasks behind the interface of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tasks import write_tasks

from maskpro_deploy.exporters import ExportConfig, export


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny model as a bundle (read only)."""
    out = tmp_path_factory.mktemp("bundle") / "dense"
    export(tiny_checkpoint, out, ExportConfig(forms=("cat", "static")))
    return out


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files (read only)."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))
