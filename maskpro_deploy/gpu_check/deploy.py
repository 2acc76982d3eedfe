"""Item: onnxruntime on the GPU, on a random sparse model exported to fp16; and the bundles that other items use too."""

from __future__ import annotations

import shutil
from pathlib import Path

from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.gpu_check.models import SMOL, TINY, LlamaShape, write_checkpoint, write_sparse
from maskpro_deploy.system.extras import missing

_FILES_PER_WEIGHT = 6  # fp16 copies of the model on disk: two checkpoints, two bundles, two engines
_SPARE_BYTES = 1 << 30
_DTYPE = "fp16"


def bundles(shape: LlamaShape, scratch: Path) -> tuple[Path, Path]:
    """The sparse bundle of a random model and its dense twin; made by the item that first needs them.

    Raises:
        MachineError: there is not enough space.
    """
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / shape.name
    sparse, dense = folder / "sparse-bundle", folder / "dense-bundle"
    if dense.is_dir():  # the last to be made
        return sparse, dense
    if folder.exists():  # an item was ended while it made them
        shutil.rmtree(folder)
    needed, free = _FILES_PER_WEIGHT * 2 * shape.weights + _SPARE_BYTES, shutil.disk_usage(scratch).free
    if free < needed:
        raise MachineError(f"{scratch} needs {needed / 1e9:.1f} GB for a {shape.name} model, {free / 1e9:.1f} GB are free")
    checkpoint = write_checkpoint(shape, folder / "dense")
    config = ExportConfig(dtype=_DTYPE, forms=("cat", "static"))
    reason = "a random model for the GPU check"
    export(write_sparse(checkpoint, folder / "sparse"), sparse, config, unverified=reason)
    export(checkpoint, dense, config, unverified=reason)
    return sparse, dense


def onnxruntime(settings: Settings, record: Record) -> str:
    """Compare onnxruntime on the GPU with the CPU, and time prefill and decode, sparse beside dense.

    Raises:
        MachineError: onnxruntime has no CUDA here.
        CheckFailed: the GPU computes something else than the CPU.
    """
    from maskpro_deploy.exporters import verification_prompts, verify
    from maskpro_deploy.runtime import SessionConfig, open_session

    provider, shape = ("cpu", TINY) if settings.rehearse else ("cuda", SMOL)
    _check_provider(provider)
    sparse, dense = bundles(shape, settings.scratch)
    session = open_session(sparse, SessionConfig(provider=provider))
    record.put(model=shape.name, dtype=_DTYPE, providers=list(session.providers))
    prompts, count = verification_prompts(sparse, session.shape.max_length)
    # the comparison runs the bundle on the CPU; the GPU's session is what it is compared with
    found = verify(sparse, session, prompts, count)
    del session
    record.put(gpu_against_cpu=found.to_json())
    line = latency(provider, sparse, dense, settings, record)
    tokens = f"greedy tokens equal to the CPU's: {found.greedy_equal} of {found.greedy_tokens}"
    if not found.passed:
        raise CheckFailed(f"{provider} differs from the CPU by up to {found.max_logit_difference:.2g} in logits; {tokens}")
    return f"{line}; {tokens}"


def _check_provider(provider: str) -> None:
    if absent := missing("cpu"):
        raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[gpu]'")
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider == "cuda" and "CUDAExecutionProvider" not in available:
        raise MachineError(f"onnxruntime has no CUDA (it has {', '.join(available)}): install onnxruntime-gpu in its place")


def check_gpu() -> None:
    """Refuse a machine without an NVIDIA GPU.

    Raises:
        MachineError: there is none.
    """
    from maskpro_deploy.backends.cuda.driver import compute_capability

    if compute_capability() is None:
        raise MachineError("there is no NVIDIA GPU here, or no driver for it")


def latency(
    provider: str,
    sparse: Path,
    dense: Path,
    settings: Settings,
    record: Record,
    form: str | None = None,
    engine: str | None = None,
) -> str:
    """Prefill and decode at batch 1 and 8. A run that proves nothing says so."""
    from maskpro_deploy.bench.sweeps.latency import LatencyConfig, run_latency
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig
    from maskpro_deploy.targets.arms import open_arms

    lengths = (32,) if settings.rehearse else (512,)
    config = LatencyConfig(
        batches=(1,) if settings.rehearse else (1, 8),
        prompts=lengths,
        contexts=lengths,
        sweep=SweepConfig(budget_s=settings.budget_s, samples=20),
    )
    result = run_latency(open_arms([sparse, dense], provider, None, form=form, engine=engine), config)
    record.put(latency=result.to_json())
    if not result.valid:
        return f"latency not measured: {result.invalid_reasons[0]}"
    parts = []
    for case in result.cases:
        sparse_ms, dense_ms = (s.median if (s := case.summary(arm.name)) is not None else None for arm in result.arms)
        if sparse_ms is not None and dense_ms is not None:
            parts.append(f"{case.case.phase} x{case.case.batch_size} {sparse_ms:.2f} (dense {dense_ms:.2f}) ms")
    return ", ".join(parts)
