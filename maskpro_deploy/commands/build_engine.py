"""`maskpro-deploy build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands._shared import PATH, PATTERN, emit, json_option, table
from maskpro_deploy.pattern import NMPattern

if TYPE_CHECKING:
    from maskpro_deploy.exporters import EngineReport


@click.command("build-engine")
@click.argument("bundle", type=PATH)
@click.option("--sparsity", type=PATTERN, default="2:4", show_default=True, help="The pattern that the bundle must hold.")
@click.option("--dense", is_flag=True, help="Build with dense kernels, whatever the bundle holds.")
@click.option(
    "--backend", default="auto", show_default=True, metavar="auto|tensorrt|tensorrt-rtx", help="The library to build with."
)
@click.option("--target", default="", metavar="SM,...", help="GPUs to build for, such as sm89,sm120 (tensorrt-rtx).")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Largest batch.")
@click.option("--max-length", type=int, help="Longest sequence in tokens. [default: the model's, at most 2048]")
@click.option("--max-prefill", type=int, help="Most new tokens in one call. [default: 512]")
@click.option("--timing-cache", type=PATH, help="File of kernel times to reuse and extend (tensorrt).")
@json_option
def command(
    bundle: Path,
    sparsity: NMPattern,
    dense: bool,
    backend: str,
    target: str,
    max_batch: int,
    max_length: int | None,
    max_prefill: int | None,
    timing_cache: Path | None,
    as_json: bool,
) -> None:
    r"""Build a TensorRT engine from BUNDLE and add it to the bundle.

    The weights are proven to hold the pattern before anything is built. `tensorrt` times sparse kernels against dense ones on
    the GPU of this machine; `tensorrt-rtx` builds ahead of time on any machine, with dense kernels.

    \b
    Example:
      maskpro-deploy build-engine bundle --sparsity 2:4
      maskpro-deploy build-engine bundle --backend tensorrt-rtx --target sm89,sm120
    """
    from maskpro_deploy.exporters import EngineConfig, build_engine
    from maskpro_deploy.progress import Meter

    config = EngineConfig(
        sparsity=sparsity,
        dense=dense,
        backend=backend,
        targets=tuple(t.strip().lower() for t in target.split(",") if t.strip()),
        max_batch=max_batch,
        max_length=max_length,
        max_prefill=max_prefill,
        timing_cache=timing_cache,
    )
    meter = Meter("building", "s")
    report = build_engine(bundle, config, meter)
    meter.close()
    emit(as_json, report.to_json(), _text(bundle, report))


def _text(bundle: Path, report: EngineReport) -> str:
    engine = report.engine
    how = "up to date, not built again" if report.reused else f"built in {report.build_s:.1f} s"
    groups: dict[tuple[str, tuple[int, ...], str, str], int] = {}
    for row in report.layers:
        kind = row.weight.removesuffix(".weight").rsplit(".", 1)[-1]
        key = (kind, row.shape, "yes" if row.eligible else row.reason, row.chosen)
        groups[key] = groups.get(key, 0) + 1
    rows = [(kind, count, shape[0], shape[1], eligible, chosen) for (kind, shape, eligible, chosen), count in groups.items()]
    return "\n".join(
        [
            f"{bundle / engine.file}: {engine.library} {engine.library_version}, {engine.target}, {engine.dtype}, "
            f"{report.bytes / 1e6:.1f} MB, {how}",
            table(rows, ("layers", "count", "K", "N", "eligible", "sparse kernel chosen")),
            f"sparse kernels: {engine.sparse_kernels}",
            f"speed gained by sparsity: {report.gain}",
        ]
    )
