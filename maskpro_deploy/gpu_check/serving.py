"""Items: random sparse models in fp16 run by onnxruntime or as engines, compared with the CPU, and timed next to dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.backends.providers import RTX
from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.gpu_check.items import Record, Settings, check_installed
from maskpro_deploy.gpu_check.models import DTYPE, SMOL, TINY, make_bundles
from maskpro_deploy.system.extras import missing

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.runtime import SessionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A way to serve engines: the library that builds them (maybe through onnxruntime), the provider that runs them, a form."""

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
    from maskpro_deploy.backends.cuda.driver import compute_capability

    if compute_capability() is None:
        raise MachineError("there is no NVIDIA GPU here, or no driver for it")
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
    engine = report.engine
    return {"file": engine.file, "build_s": report.build_s, "bytes": report.bytes, "sparse_kernels": engine.sparse_kernels}


def measure_onnxruntime(wanted: str, settings: Settings, record: Record) -> str:
    """Compare a graph in onnxruntime's provider `wanted` with the CPU, and time prefill and decode, sparse next to dense."""
    from maskpro_deploy.runtime import SessionConfig

    provider, shape = ("cpu", TINY) if settings.rehearse else (wanted, SMOL)
    _check_provider(provider)
    bundles = make_bundles(shape, settings.scratch)
    record.put(model=shape.name, dtype=DTYPE)
    return compare_and_time(bundles, SessionConfig(provider=provider), settings, record, key="gpu_against_cpu")


def _check_provider(provider: str) -> None:
    if absent := missing("cpu"):
        raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[gpu]'")
    if provider == RTX:
        _check_plugin()
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider == "cuda" and "CUDAExecutionProvider" not in available:
        raise MachineError(f"onnxruntime has no CUDA (it has {', '.join(available)}): install onnxruntime-gpu in its place")


def _check_plugin() -> None:
    from maskpro_deploy.backends.cuda.driver import compute_capability
    from maskpro_deploy.backends.onnxruntime_.rtx_plugin import EXTRA

    if compute_capability() is None:
        raise MachineError("there is no NVIDIA GPU here, or no driver for it")
    if absent := missing(EXTRA):
        raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[{EXTRA}]'")


def compare_and_time(
    bundles: tuple[Path, Path], config: SessionConfig, settings: Settings, record: Record, *, key: str, engines: str | None = None
) -> str:
    """Compare logits and tokens of the sparse bundle with the CPU's, and time prefill and decode, sparse next to dense.

    `key` is that of the comparison in the record; `engines` are those of both bundles, if engines run them. A `CheckFailed` where
    something else is computed than on the CPU.
    """
    from maskpro_deploy.exporters import verification_prompts, verify
    from maskpro_deploy.runtime import open_session
    from maskpro_deploy.targets.arms import open_arms

    session = open_session(bundles[0], config)
    record.put(providers=list(session.providers), max_length=session.shape.max_length)
    prompts, count = verification_prompts(bundles[0], session.shape.max_length)
    verified = verify(bundles[0], session, prompts, count)  # against the bundle on the CPU
    del session
    record.put(**{key: verified.to_json()})
    line = _measure_latency(open_arms(list(bundles), config.provider, None, form=config.form, engine=engines), settings, record)
    tokens = f"greedy tokens equal to the CPU's: {verified.greedy_equal} of {verified.greedy_tokens}"
    if not verified.passed:
        far = f"{verified.max_logit_difference:.2g}"
        raise CheckFailed(f"{config.provider} differs from the CPU by up to {far} in logits; {tokens}")
    return f"{line}; {tokens}"


def _measure_latency(arms: list[ModelArm[Any]], settings: Settings, record: Record) -> str:
    """Prefill and decode at batch 1 and 8. A run that proves nothing says so."""
    from maskpro_deploy.bench.sweeps.measure import LatencyConfig, run_latency
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig

    batches, lengths = ((1,), (32,)) if settings.rehearse else ((1, 8), (512,))
    sweep = SweepConfig(budget_s=settings.budget_s, samples=20)
    result = run_latency(arms, LatencyConfig(batches=batches, prompts=lengths, contexts=lengths, sweep=sweep))
    record.put(latency=result.to_json())
    if not result.valid:
        return f"latency not measured: {result.invalid_reasons[0]}"
    parts = []
    for case in result.cases:
        sparse_ms, dense_ms = (s.median if (s := case.summary(arm.name)) is not None else None for arm in result.arms)
        if sparse_ms is not None and dense_ms is not None:
            parts.append(f"{case.case.phase} x{case.case.batch_size} {sparse_ms:.2f} (dense {dense_ms:.2f}) ms")
    return ", ".join(parts)
