"""`maskpro-deploy benchmark kernels`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.benchmark.options import least_difference_option, output_options
from maskpro_deploy.commands.options import DURATION, NAMES, PATH, SIZES, threads_option


@click.command("kernels")
@click.argument("bundle", type=PATH)
@click.option("--tokens", type=SIZES, default=(1, 16, 128), show_default="1,16,128", help="Numbers of tokens: M of the products.")
@click.option(
    "--forms",
    type=NAMES,
    default="fp32,2:4,int8,int4",
    show_default=True,
    help="Forms of the weight; all are compared with the first.",
)
@click.option("--budget", "budget_s", type=DURATION, help="Time for the CPU's products: as many sessions as fit, 8 at least.")
@click.option("--sessions", type=int, show_default="8, up to 40 with --budget", help="Times that everything is opened again.")
@click.option("--samples", type=int, default=16, show_default=True, help="Samples of each form in each case, over all sessions.")
@threads_option
@least_difference_option
@output_options(saved="after each product")
def command(bundle: Path, out: Path | None, resume: bool, append: bool, force: bool, as_json: bool, **settings: Any) -> None:
    r"""Measure the matrix products of BUNDLE one by one: which form of the weight is faster, at which number of tokens.

    On the CPU in onnxruntime: fp32, fp32 with 2:4 zeros, int8 and int4. Where torch sees an NVIDIA GPU, its 2:4 products next to
    dense ones in fp16, bf16 and int8 as well. Times are added up for a layer and for the whole model.

    \b
    Example:
      maskpro-deploy benchmark kernels bundle
      maskpro-deploy benchmark kernels bundle --tokens 1,8,64 --forms fp32,int8 --threads 2 --out report
    """
    from maskpro_deploy.runs.kernels import KernelsConfig, benchmark_kernels
    from maskpro_deploy.runs.output import Output
    from maskpro_deploy.system.extras import require

    require("cpu", "measuring matrix products")
    output = Output(out=out, resume=resume, append=append, force=force, as_json=as_json)
    benchmark_kernels(bundle, KernelsConfig(**settings), output)
