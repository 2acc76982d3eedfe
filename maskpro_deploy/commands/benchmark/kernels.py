"""`maskpro-deploy benchmark kernels`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from maskpro_deploy.commands.benchmark.options import SIZES, least_difference_option, out_options
from maskpro_deploy.commands.options import DURATION, PATH, threads_option
from maskpro_deploy.errors import ConfigError


@click.command("kernels")
@click.argument("bundle", type=PATH)
@click.option("--tokens", type=SIZES, default=(1, 16, 128), show_default="1,16,128", help="Numbers of tokens: M of the products.")
@click.option(
    "--forms",
    default="fp32,2:4,int8,int4",
    show_default=True,
    help="Forms of the weight; all are compared with the first.",
)
@click.option("--budget", type=DURATION, help="Time for the CPU's products: as many sessions as fit, 8 at least.")
@click.option("--sessions", type=int, show_default="8, up to 40 with --budget", help="Times that everything is opened anew.")
@click.option("--samples", type=int, default=16, show_default=True, help="Samples of each form in each case, over all sessions.")
@threads_option
@least_difference_option
@partial(out_options, saved="after each product")
def command(
    bundle: Path,
    tokens: tuple[int, ...],
    forms: str,
    budget: float | None,
    sessions: int | None,
    samples: int,
    threads: int | None,
    least_difference: float,
    out: Path | None,
    resume: bool,
    append: bool,
    force: bool,
    as_json: bool,
) -> None:
    r"""Measure the matrix products of BUNDLE one by one: which form of the weight is faster, at which number of tokens.

    On the CPU in onnxruntime: fp32, fp32 with 2:4 zeros, int8 and int4. Where torch sees an NVIDIA GPU, its 2:4 products beside
    dense ones in fp16, bf16 and int8 as well. Times are added up for a layer and for the whole model.

    \b
    Example:
      maskpro-deploy benchmark kernels bundle
      maskpro-deploy benchmark kernels bundle --tokens 1,8,64 --forms fp32,int8 --threads 2 --out report
    """
    from maskpro_deploy.bench.kernels.saved import load
    from maskpro_deploy.bench.kernels.summary import describe
    from maskpro_deploy.reports.kernels import build_page
    from maskpro_deploy.runs.kernels import KernelsConfig, KernelsRun
    from maskpro_deploy.runs.output import Folder, check_out, emit_run, going_on
    from maskpro_deploy.system.extras import require

    require("cpu", "measuring matrix products")
    goes_on = check_out(out, force=force, resume=resume, append=append)
    if out is not None:
        require("report", "writing report.html")
    config = KernelsConfig(
        tokens=tokens,
        forms=_forms(forms),
        budget_s=budget,
        sessions=sessions,
        samples=samples,
        threads=threads,
        least_difference=least_difference,
    )
    folder = Folder(out, fresh=not goes_on, force=force) if out is not None else None
    earlier = load(out) if out is not None and goes_on else None
    run = KernelsRun(
        bundle, config, earlier=earlier, append=append, save=folder.save if folder is not None else lambda result: None
    )
    with going_on(folder):
        result = run.measure()
    if folder is not None:
        folder.save(result)
    emit_run(result, describe(result), lambda: build_page(result), out, as_json=as_json)


def _forms(given: str) -> tuple[str, ...]:
    from maskpro_deploy.targets.products import FORMS

    forms = tuple(dict.fromkeys(part.strip() for part in given.split(",")))
    for form in forms:
        if form not in FORMS:
            raise ConfigError(f"--forms {form!r} is not known. Known: {', '.join(FORMS)}.")
    return forms
