"""Items: engines served. Built, run in their own library or through onnxruntime, compared with the CPU, and timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.bundles import make_bundles
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.gpu_check.models import SMOL, TINY
from maskpro_deploy.gpu_check.running import check_gpu, check_installed, compare_and_time
from maskpro_deploy.system.extras import missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A way to serve engines.

    Attributes:
        library: that builds them.
        provider: that runs them.
        form: of the cache.
        via_onnxruntime: built through onnxruntime's TensorRT provider.
    """

    library: str
    provider: str
    form: str
    via_onnxruntime: bool = False


# the static form stays in place and repeats its steps, the cat form is what onnxruntime's provider takes
NATIVE = Lane(library="tensorrt", provider="trt-native", form="static")
NATIVE_RTX = Lane(library="tensorrt-rtx", provider="trt-native", form="static")
ONNXRUNTIME = Lane(library="tensorrt", provider="tensorrt", form="cat", via_onnxruntime=True)


def measure_serving(lane: Lane, settings: Settings, record: Record) -> str:
    """Build engines sparse and dense, serve them, compare the logits and tokens with the CPU's, and time prefill and decode.

    A rehearsal builds no engine and runs the same comparisons on the graph.

    Raises:
        MachineError: something that the lane needs is missing.
        CheckFailed: the engine computes something else than the graph.
    """
    from maskpro_deploy.runtime import SessionConfig

    if absent := missing("cpu"):
        raise MachineError(f"{', '.join(absent)} is not installed, which computes what is compared with: pip install onnxruntime")
    if not settings.rehearse:
        _check_lane(lane)
    sparse, dense = make_bundles(TINY if settings.rehearse else SMOL, settings.scratch)
    built = [] if settings.rehearse else [_build_engine(lane, p, dense=p is dense, settings=settings) for p in (sparse, dense)]
    record.put(engines=built)
    files = [str(engine["file"]) for engine in built]
    config = SessionConfig(provider=lane.provider, engine=files[0]) if files else SessionConfig(provider="cpu", form=lane.form)
    engines = ",".join(files) or None
    return compare_and_time((sparse, dense), config, settings, record, key="against_cpu", engines=engines)


def _check_lane(lane: Lane) -> None:
    """What the lane needs, before minutes are spent on models."""
    check_gpu()
    if lane.via_onnxruntime:
        from maskpro_deploy.exporters.engines.provider_builder import check_machine

        check_machine()
        return
    check_installed(lane.library, "native")


def _build_engine(lane: Lane, bundle: Path, *, dense: bool, settings: Settings) -> dict[str, Any]:
    from maskpro_deploy.exporters import EngineConfig, build_engine

    cache = None if lane.via_onnxruntime or lane.library == "tensorrt-rtx" else settings.scratch / "serving.cache"
    config = EngineConfig(
        backend=lane.library, dense=dense, form=lane.form, timing_cache=cache, via_onnxruntime=lane.via_onnxruntime
    )
    report = build_engine(bundle, config)
    return {
        "file": report.engine.file,
        "build_s": report.build_s,
        "bytes": report.bytes,
        "sparse_kernels": report.engine.sparse_kernels,
    }
