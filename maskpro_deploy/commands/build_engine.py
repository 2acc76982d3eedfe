"""`maskpro-deploy build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands.options import DURATION, PATH, PATTERN, json_option
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.output import emit, table

if TYPE_CHECKING:
    from maskpro_deploy.exporters import EngineReport
    from maskpro_deploy.exporters.engines.report import LayerRow


@click.command("build-engine")
@click.argument("bundle", type=PATH)
@click.option("--sparsity", type=PATTERN, default="2:4", show_default=True, help="The pattern that the bundle must hold.")
@click.option("--dense", is_flag=True, help="Build with dense kernels, whatever the bundle holds.")
@click.option(
    "--backend", default="auto", show_default=True, metavar="auto|tensorrt|tensorrt-rtx", help="The library to build with."
)
@click.option("--target", default="", metavar="SM,...", help="GPUs to build for, such as sm89,sm120 (tensorrt-rtx).")
@click.option("--form", metavar="cat|static", help="The graph to build, by its cache. [default: the bundle's own]")
@click.option("--profiles", metavar="BUCKETS", help="Shapes to build for, such as 'prefill:1x128,4x512 decode:1,8'.")
@click.option("--max-batch", type=int, help="Largest batch of the default profiles. [default: 8]")
@click.option("--max-length", type=int, help="Longest sequence in tokens. [default: the model's, at most 2048]")
@click.option("--max-prefill", type=int, help="Most new tokens in one call of the default profiles. [default: 512]")
@click.option("--timing-cache", type=PATH, help="File of kernel times to reuse and extend (tensorrt).")
@click.option("--via-onnxruntime", is_flag=True, help="Build through onnxruntime's TensorRT provider, which will serve it.")
@click.option("--compare-dense", is_flag=True, help="Build the dense engine too; on a GPU time both, whole and by layer.")
@click.option("--budget", type=DURATION, default="60s", show_default=True, help="Time for the timing of --compare-dense.")
@click.option("--optimization-level", type=int, metavar="0-5", help="How long the builder searches.")
@click.option("--workspace", metavar="SIZE", help="Most scratch memory of a kernel on the GPU, such as 4GB.")
@click.option("--aux-streams", type=int, help="Further streams that the engine may use at once.")
@click.option("--version-compatible", is_flag=True, help="Run in later versions of the library too.")
@click.option("--hardware-compatible", metavar="ampere+|same-cc", help="Run on other GPUs too.")
@click.option("--weight-streaming", is_flag=True, help="Let weights stay in the host's memory.")
@click.option("--refit", metavar="identical|all", help="Let weights be exchanged; a sparse engine's for identical ones only.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out of the engine; who loads it brings them.")
@click.option("--tiling", metavar="none|fast|moderate|full", help="How far kernels are tiled across layers.")
@click.option("--strict-nans", is_flag=True, help="Keep NaN and infinity at pruned weights NaN.")
@click.option("--report", type=PATH, help="Write a report page (HTML).")
@json_option
def command(bundle: Path, report: Path | None, as_json: bool, **options: Any) -> None:
    r"""Build a TensorRT engine from BUNDLE and add it to the bundle.

    The weights are proven to hold the pattern before anything is built. `tensorrt` times sparse kernels against dense ones on
    the GPU of this machine; `tensorrt-rtx` builds ahead of time on any machine, with dense kernels.

    --profiles: prefill:BxS takes up to B sequences of up to S new tokens, decode:B up to B sequences of one, mixed:BxS both.
    A size is optimum and largest; MIN/OPT/MAX sets the three apart. A flag that the library does not know is an error.

    \b
    Example:
      maskpro-deploy build-engine bundle --sparsity 2:4
      maskpro-deploy build-engine bundle --backend tensorrt-rtx --target sm89,sm120
      maskpro-deploy build-engine bundle --profiles 'prefill:1x128,4x512 decode:1,8' --compare-dense --report engine.html
    """
    from maskpro_deploy.exporters import build_engine
    from maskpro_deploy.system.progress import Meter

    config = _config(options)
    if report is not None:
        from maskpro_deploy.system.extras import require

        require("report", "writing an HTML report")
    meter = Meter("building", "s")
    built = build_engine(bundle, config, meter)
    meter.close()
    if report is not None:
        from maskpro_deploy.reports.blocks import write
        from maskpro_deploy.reports.engine import build_page

        write(build_page(bundle, built), report)
    emit(as_json, built.to_json(), _text(bundle, built))


def _config(options: dict[str, Any]) -> Any:
    from maskpro_deploy.exporters import EngineConfig
    from maskpro_deploy.exporters.engines.builder_flags import BuilderFlags, parse_bytes

    sparsity: NMPattern = options["sparsity"]
    workspace = options["workspace"]
    flags = BuilderFlags(
        optimization_level=options["optimization_level"],
        workspace_bytes=parse_bytes(workspace, "--workspace") if workspace is not None else None,
        aux_streams=options["aux_streams"],
        version_compatible=options["version_compatible"],
        hardware_compatible=options["hardware_compatible"],
        weight_streaming=options["weight_streaming"],
        refit=options["refit"],
        strip_weights=options["strip_weights"],
        tiling=options["tiling"],
        strict_nans=options["strict_nans"],
    )
    return EngineConfig(
        sparsity=sparsity,
        dense=options["dense"],
        backend=options["backend"],
        targets=tuple(t.strip().lower() for t in options["target"].split(",") if t.strip()),
        form=options["form"],
        profiles=options["profiles"],
        max_batch=options["max_batch"],
        max_length=options["max_length"],
        max_prefill=options["max_prefill"],
        timing_cache=options["timing_cache"],
        flags=flags,
        compare_dense=options["compare_dense"],
        compare_budget_s=options["budget"],
        via_onnxruntime=options["via_onnxruntime"],
    )


def _text(bundle: Path, report: EngineReport) -> str:
    engine = report.engine
    how = "up to date, not built again" if report.reused else f"built in {report.build_s:.1f} s"
    lines = [
        f"{bundle / engine.file}: {engine.library} {engine.library_version}, {engine.target}, {engine.dtype}, "
        f"{report.bytes / 1e6:.1f} MB, {how}",
        f"profiles: {', '.join(p['name'] for p in engine.settings['profiles'])}",
        _layers(report),
    ]
    if report.comparison is not None and report.comparison.points:
        rows = [
            (p.name, f"{p.sparse_ms:.3f}", f"{p.dense_ms:.3f}", f"{p.speedup:.3f}x" if p.speedup else "-", p.verdict)
            for p in report.comparison.points
        ]
        lines.append(table(rows, ("call", "sparse ms", "dense ms", "ratio", "sparse is")))
    if spoiled := [f"{count} {cause}" for cause, count in report.spoiled.items() if count]:
        lines.append(f"pruned layers that the graph keeps from sparse tensor cores: {', '.join(spoiled)}")
    return "\n".join([*lines, f"sparse kernels: {engine.sparse_kernels}", f"speed gained by sparsity: {report.gain}"])


def _layers(report: EngineReport) -> str:
    """The layers as a table, equal ones in one row."""
    groups: dict[tuple[str, tuple[int, ...], str, str], list[LayerRow]] = {}
    for row in report.layers:
        key = (row.kind, row.shape, "yes" if row.eligible else row.reason, row.chosen)
        groups.setdefault(key, []).append(row)
    head = report.comparison.headline if report.comparison is not None else None
    header = ["layers", "count", "K", "N", "eligible", "sparse kernel chosen"]
    rows: list[list[object]] = []
    for (kind, shape, eligible, chosen), members in groups.items():
        rows.append([kind, len(members), shape[0], shape[1], eligible, chosen])
        if head is not None:
            rows[-1] += [_sum_ms([head.layers[m.weight][side] for m in members]) for side in (0, 1)]
    if head is not None:
        header += ["sparse ms", "dense ms"]
    return table(rows, header)


def _sum_ms(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known):.3f}" if known else "-"
