"""EPContext: an ONNX file of one node that stands for an engine, so that onnxruntime serves the engine as it serves a graph.

The node (`com.microsoft.EPContext`, version 1) has the graph's inputs and outputs and names the engine by a path relative to its
own folder. Inputs and outputs are known from the graph, so the file is written without a GPU and without loading the engine.
onnxruntime's TensorRT provider reads `embed_mode`, `ep_cache_context`, `hardware_architecture` and, for engines without weights,
`onnx_model_filename`; the TensorRT-RTX provider reads `source`, `ep_sdk_version`, `partition_name` and `main_context` as well.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import onnx
from onnx import helper

from maskpro_deploy._version import __version__
from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.backends.onnxruntime_.tensorrt_provider import wrong_version_reason
from maskpro_deploy.backends.providers import RTX_PROVIDER, TENSORRT_PROVIDER
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.manifest import EngineFile

OPERATOR, DOMAIN, VERSION = "EPContext", "com.microsoft", 1
SUFFIX = "_ctx.onnx"
# engine library -> the onnxruntime provider that loads its engines
PROVIDERS = {"tensorrt": TENSORRT_PROVIDER, "tensorrt-rtx": RTX_PROVIDER}


def wrapper_file(engine: EngineFile) -> str:
    """The path of an engine's wrapper in the bundle."""
    return engine.file.removesuffix(".engine") + SUFFIX


def context_model(graph: Path, engine: EngineFile) -> onnx.ModelProto:
    """The wrapper of an engine of this graph, for the engine's folder; CheckFailed if onnxruntime here cannot load the engine."""
    # the machine that builds need not be the one that serves: without a TensorRT provider here, nothing is known
    if engine.library == "tensorrt" and (reason := wrong_version_reason(engine, onnxruntime_tensorrt())):
        raise CheckFailed(f"{engine.file}: {reason}.")
    source = onnx.load(graph, load_external_data=False)
    name = PurePosixPath(engine.file).stem
    node = helper.make_node(
        OPERATOR,
        [value.name for value in source.graph.input],
        [value.name for value in source.graph.output],
        name=name,
        domain=DOMAIN,
        main_context=1,
        embed_mode=0,
        ep_cache_context=PurePosixPath(engine.file).name,
        ep_sdk_version=engine.library_version,
        hardware_architecture=_architecture(engine),
        partition_name=name,
        source=PROVIDERS[engine.library],
        notes=f"maskpro-deploy {__version__}",
        onnx_model_filename=graph.name,
    )
    made = helper.make_graph([node], name, list(source.graph.input), list(source.graph.output))
    # the standard operators' version is the graph's: onnxruntime asks for one, though no such operator is used
    opsets = [o for o in source.opset_import if o.domain == ""] + [helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=source.ir_version, producer_name="maskpro-deploy")
    onnx.checker.check_model(model)
    return model


def _architecture(engine: EngineFile) -> str:
    """The GPU as onnxruntime writes it: "89", or "80+" for an engine that any GPU from Ampere on can run."""
    if engine.settings.get("hardware_compatibility"):
        return "80+"
    return ",".join(re.findall(r"\d+", engine.target))
