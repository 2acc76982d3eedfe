"""What items share that run bundles: what must be installed, and the comparison with the CPU and with the dense twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.system.extras import missing

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.runtime import SessionConfig


def check_installed(*extras: str) -> None:
    """Refuse a machine that lacks the packages of an extra.

    Raises:
        MachineError: naming them.
    """
    for extra in extras:
        if absent := missing(extra):
            raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[{extra}]'")


def check_gpu() -> None:
    """Refuse a machine without an NVIDIA GPU.

    Raises:
        MachineError: there is none.
    """
    from maskpro_deploy.backends.cuda.driver import compute_capability

    if compute_capability() is None:
        raise MachineError("there is no NVIDIA GPU here, or no driver for it")


def compare_and_time(
    bundles: tuple[Path, Path], config: SessionConfig, settings: Settings, record: Record, *, key: str, engines: str | None = None
) -> str:
    """Compare logits and tokens of the sparse bundle with the CPU's, and time prefill and decode, sparse next to dense.

    Args:
        bundles: sparse and dense.
        config: how the sparse one runs.
        settings: of the check.
        record: takes the figures.
        key: of the comparison in the record.
        engines: of both, if engines run them.

    Raises:
        CheckFailed: it computes something else than the CPU.
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

    lengths = (32,) if settings.rehearse else (512,)
    config = LatencyConfig(
        batches=(1,) if settings.rehearse else (1, 8),
        prompts=lengths,
        contexts=lengths,
        sweep=SweepConfig(budget_s=settings.budget_s, samples=20),
    )
    result = run_latency(arms, config)
    record.put(latency=result.to_json())
    if not result.valid:
        return f"latency not measured: {result.invalid_reasons[0]}"
    parts = []
    for case in result.cases:
        sparse_ms, dense_ms = (s.median if (s := case.summary(arm.name)) is not None else None for arm in result.arms)
        if sparse_ms is not None and dense_ms is not None:
            parts.append(f"{case.case.phase} x{case.case.batch_size} {sparse_ms:.2f} (dense {dense_ms:.2f}) ms")
    return ", ".join(parts)
