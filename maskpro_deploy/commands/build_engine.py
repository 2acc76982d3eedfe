"""`maskpro-deploy build-engine`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.cache_forms import ENGINE_FORMS
from maskpro_deploy.commands.options import DURATION, NAMES, PATH, PATTERN, flag_of, json_option
from maskpro_deploy.system.output import emit


class BytesType(click.ParamType[int]):
    """A size such as 512MB or 4GB, in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from maskpro_deploy.exporters.engines.config import parse_bytes

        return value if isinstance(value, int) else parse_bytes(str(value), flag_of(param))


BYTES = BytesType()
# the options that are fields of `BuilderFlags`; the others are fields of `EngineConfig`
_FLAGS = (
    *("optimization_level", "workspace_bytes", "aux_streams", "version_compatible", "hardware_compatible"),
    *("weight_streaming", "refit", "strip_weights", "tiling", "strict_nans"),
)

_BUDGET = "Time for the timing of --compare-dense."


@click.command("build-engine")
@click.argument("bundle", type=PATH)
@click.option("--sparsity", type=PATTERN, default="2:4", show_default=True, help="The pattern that the bundle must hold.")
@click.option("--dense", is_flag=True, help="Build with dense kernels, whatever the bundle holds.")
@click.option(
    "--backend", default="auto", show_default=True, metavar="auto|tensorrt|tensorrt-rtx", help="The library to build with."
)
@click.option(
    "--target", "targets", type=NAMES, default="", metavar="SM,...", help="GPUs to build for, such as sm89,sm120 (tensorrt-rtx)."
)
@click.option("--form", metavar="|".join(ENGINE_FORMS), help="The graph to build, by its cache. [default: the bundle's own]")
@click.option("--profiles", metavar="BUCKETS", help="Shapes to build for, such as 'prefill:1x128,4x512 decode:1,8'.")
@click.option("--max-batch", type=int, help="Largest batch of the default profiles. [default: 8]")
@click.option("--max-length", type=int, help="Longest sequence in tokens. [default: the model's, at most 2048]")
@click.option("--max-prefill", type=int, help="Most new tokens in one call of the default profiles. [default: 512]")
@click.option("--timing-cache", type=PATH, help="File of kernel times to reuse and extend (tensorrt).")
@click.option("--via-onnxruntime", is_flag=True, help="Build through onnxruntime's TensorRT provider, which will serve it.")
@click.option("--compare-dense", is_flag=True, help="Build the dense engine too; on a GPU time both, whole and by layer.")
@click.option("--budget", "compare_budget_s", type=DURATION, default="60s", show_default=True, help=_BUDGET)
@click.option("--optimization-level", type=int, metavar="0-5", help="How long the builder searches.")
@click.option("--workspace", "workspace_bytes", type=BYTES, help="Most scratch memory of a kernel on the GPU, such as 4GB.")
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
    from maskpro_deploy.exporters import BuilderFlags, EngineConfig, build_engine
    from maskpro_deploy.reports import engine
    from maskpro_deploy.reports.blocks import check_page, write
    from maskpro_deploy.system.progress import Meter

    flags = BuilderFlags(**{name: options.pop(name) for name in _FLAGS})
    targets = tuple(target.lower() for target in options.pop("targets"))
    config = EngineConfig(flags=flags, targets=targets, **options)
    if report is not None:
        check_page(report, "--report")
    with closing(Meter("building", "s")) as meter:
        built = build_engine(bundle, config, meter)
    if report is not None:
        write(engine.build_page(bundle, built), report)
    emit(as_json, built.to_json(), engine.render_text(bundle, built))
