"""Item: onnxruntime on the GPU, on a random sparse model exported to fp16."""

from __future__ import annotations

from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.bundles import DTYPE, make_bundles
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.gpu_check.models import SMOL, TINY
from maskpro_deploy.gpu_check.running import compare_and_time
from maskpro_deploy.system.extras import missing


def measure_onnxruntime(settings: Settings, record: Record) -> str:
    """Compare onnxruntime on the GPU with the CPU, and time prefill and decode, sparse next to dense.

    Raises:
        MachineError: onnxruntime has no CUDA here.
        CheckFailed: the GPU computes something else than the CPU.
    """
    from maskpro_deploy.runtime import SessionConfig

    provider, shape = ("cpu", TINY) if settings.rehearse else ("cuda", SMOL)
    _check_provider(provider)
    bundles = make_bundles(shape, settings.scratch)
    record.put(model=shape.name, dtype=DTYPE)
    return compare_and_time(bundles, SessionConfig(provider=provider), settings, record, key="gpu_against_cpu")


def _check_provider(provider: str) -> None:
    if absent := missing("cpu"):
        raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[gpu]'")
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider == "cuda" and "CUDAExecutionProvider" not in available:
        raise MachineError(f"onnxruntime has no CUDA (it has {', '.join(available)}): install onnxruntime-gpu in its place")
