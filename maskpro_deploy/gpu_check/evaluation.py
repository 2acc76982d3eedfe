"""Item: perplexity of one sparse random model in every way that this machine runs it, on the same windows of random tokens.

The reference is torch in fp32 on the CPU. What a GPU computes in half precision has to stay beside it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from maskpro_deploy.bench.products.timing import CPU
from maskpro_deploy.errors import CheckFailed, InputError, MachineError, first_line
from maskpro_deploy.gpu_check.items import Record, Settings, import_torch
from maskpro_deploy.gpu_check.models import SMOL, TINY, make_bundles

REFERENCE = "torch fp32 on the CPU"
_WINDOW, _WINDOWS = 128, 4
_LARGEST_RATIO, _LEAST_AGREEMENT = 0.01, 0.97


def compare_perplexities(settings: Settings, record: Record) -> str:
    """Compare perplexities; a `CheckFailed` where a way of running the model is at a distance from the reference."""
    from maskpro_deploy.evaluate import compare_all
    from maskpro_deploy.targets.models import OpenTarget, RunConfig, Target, open_target

    import_torch(settings.device)
    shape = TINY if settings.rehearse else SMOL
    bundle, _ = make_bundles(shape, settings.scratch)
    checkpoint = Target("checkpoint", settings.scratch / shape.name / "sparse")
    device = settings.device
    wanted = {
        f"torch fp16 on {device}": (checkpoint, RunConfig(provider=device, dtype="fp16")),
        f"torch bf16 on {device}": (checkpoint, RunConfig(provider=device, dtype="bf16")),
        f"onnxruntime fp16 on {device}": (Target("bundle", bundle), RunConfig(provider=device)),
    }
    if device != CPU:
        wanted[f"torch fp32 on {device}"] = (checkpoint, RunConfig(provider=device))
        wanted["TensorRT fp16"] = (Target("bundle", bundle), RunConfig(provider="trt-native"))
    opened: dict[str, OpenTarget] = {}
    lacks = {}
    for name, (target, run) in wanted.items():
        try:
            opened[name] = open_target(target, run)
        except (MachineError, InputError) as e:  # no such provider here, or no engine was built
            lacks[name] = first_line(e)
    record.put(lacks=lacks)
    windows = np.random.default_rng(0).integers(0, shape.vocabulary, (_WINDOWS, min(_WINDOW, shape.length)))
    _, compared = compare_all(opened, open_target(checkpoint, RunConfig(provider=CPU)), windows)
    left_out = ("model", "reference")
    figures = {name: {k: v for k, v in dataclasses.asdict(c).items() if k not in left_out} for name, c in compared.items()}
    record.put(against=REFERENCE, found=figures)
    for name, c in compared.items():
        far = abs(c.ratio - 1) > _LARGEST_RATIO or c.top1_agreement < _LEAST_AGREEMENT
        if far and "bf16" not in name:  # bf16 has too few digits for a bound on its tokens
            tokens = f"same token in {100 * c.top1_agreement:.1f} % of positions"
            raise CheckFailed(f"{name}: {c.ratio:.4f}x the perplexity of {REFERENCE}, {tokens}")
    return ", ".join(f"{name} {c.ratio:.4f}x" for name, c in compared.items())
