"""Entries of engines as a manifest has them."""

from __future__ import annotations

from typing import Any

from maskpro_deploy.manifest import EngineFile


def engine_file(**changes: Any) -> EngineFile:
    """An engine of TensorRT 10 for SM89; `changes` replace some of its fields."""
    base = {"library": "tensorrt", "library_version": "10.16.1.11", "target": "sm89", "dtype": "fp16", "sparse_kernels": ""}
    return EngineFile(**({"file": "engines/x.engine", "settings": {}} | base | changes))
