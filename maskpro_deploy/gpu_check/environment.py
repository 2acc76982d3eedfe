"""Item: the GPU, its driver, and the versions of everything that uses it."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.items import Record, Settings, import_torch


def report_environment(settings: Settings, record: Record) -> str:
    """Tell the GPU, its driver, and the versions of everything that uses it."""
    from maskpro_deploy.backends.cuda.driver import compute_capability
    from maskpro_deploy.bench.environment import capture
    from maskpro_deploy.doctor.abilities import onnxruntime_providers, tensorrt_lanes
    from maskpro_deploy.doctor.hardware import find_gpus

    gpus, providers = find_gpus(), onnxruntime_providers()
    lanes = {lane.name: lane.detail or f"lacks {', '.join(lane.lacks)}" for lane in tensorrt_lanes(gpus, providers)}
    record.put(
        gpus=[dataclasses.asdict(g) | {"sparse_tensor_cores": g.sparse_tensor_cores} for g in gpus],
        compute_capability=compute_capability(),
        onnxruntime_providers=providers,
        tensorrt_lanes=lanes,
        environment=capture(),
    )
    names = ", ".join(f"{g.name}, compute capability {g.compute_capability}, driver {g.driver}" for g in gpus)
    try:
        record.put(torch=_read_torch_facts(import_torch(settings.device), settings.device))
    except MachineError as e:
        record.put(torch={"lacks": str(e)})
    return names or f"nvidia-smi knows no GPU; the driver: {compute_capability() or 'none'}"


def _read_torch_facts(torch: Any, device: str) -> dict[str, Any]:
    facts = {"version": torch.__version__, "cuda": torch.version.cuda}
    if device == "cpu":
        return facts
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
