"""Exporters: sparse checkpoint -> ONNX bundle -> TensorRT engine.

    from maskpro_deploy.exporters import ExportConfig, export

    export(Path("sparse"), Path("bundle"), ExportConfig(dtype="fp16"))

Nothing here needs torch: graphs are built from `config.json` and the weights alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskpro_deploy.exporters.bundle import export
    from maskpro_deploy.exporters.checks.logit_figures import Verification
    from maskpro_deploy.exporters.checks.parity import Reference, verification_prompts, verify
    from maskpro_deploy.exporters.config import ExportConfig
    from maskpro_deploy.exporters.engines.build import build_engine
    from maskpro_deploy.exporters.engines.config import BuilderFlags, EngineConfig
    from maskpro_deploy.exporters.engines.report import EngineReport

_WHERE = {
    "BuilderFlags": "engines.config",
    "EngineConfig": "engines.config",
    "EngineReport": "engines.report",
    "ExportConfig": "config",
    "Reference": "checks.parity",
    "Verification": "checks.logit_figures",
    "build_engine": "engines.build",
    "export": "bundle",
    "verification_prompts": "checks.parity",
    "verify": "checks.parity",
}
__all__ = [
    "BuilderFlags", "EngineConfig", "EngineReport", "ExportConfig", "Reference", "Verification",
    "build_engine", "export", "verification_prompts", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"maskpro_deploy.exporters.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
