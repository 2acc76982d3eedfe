"""The options that benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.commands.options import (
    DURATION,
    PATH,
    combine,
    force_option,
    json_option,
    provider_option,
    seed_option,
    threads_option,
)

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig
    from maskpro_deploy.runs.sessions import Measure

F = TypeVar("F", bound=Callable[..., Any])

least_difference_option = click.option(
    "--least-difference",
    type=float,
    default=0.02,
    show_default=True,
    metavar="D",
    help="Smallest difference of interest, as a fraction; concerns the verdicts only.",
)


def output_options(saved: str) -> Callable[[F], F]:
    """Where a result goes, and how a run goes on from it: the fields of `runs.output.Output`.

    Args:
        saved: when the result so far is saved.
    """
    return combine(
        click.option("--out", type=PATH, help=f"Folder for result.json, report.md and report.html; saved {saved}."),
        click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out."),
        click.option("--append", is_flag=True, help="Add sessions or cases to the result in --out."),
        force_option,
        json_option,
    )


session_options: Callable[[F], F] = combine(
    click.argument("bundle", type=PATH),
    click.option("--against", type=PATH, metavar="BUNDLE", help="A second bundle, measured in the same run."),
    click.option("--budget", type=DURATION, help="Time for the whole run: as many sessions as fit, 8 at least."),
    click.option(
        "--sessions",
        type=int,
        show_default="10, up to 40 with --budget",
        help="Times that each bundle is opened again; 8 or more for a comparison.",
    ),
    click.option("--same-model", is_flag=True, help="The bundles are the same model: they have to choose the same tokens."),
    click.option(
        "--logit-tolerance",
        type=float,
        metavar="X",
        help="The bundles are the same model up to rounding: no logit may differ by more than X.",
    ),
    provider_option("cpu", "What runs it."),
    click.option(
        "--form",
        metavar="FORM[,FORM]",
        help=f"{', '.join(CACHE_FORMS)}: the graph of BUNDLE to run, and that of --against.",
    ),
    click.option("--engine", metavar="FILE[,FILE]", help="The engine of BUNDLE to run, and that of --against."),
    threads_option,
    click.option("--spin", is_flag=True, help="Let waiting threads spin (as in `serve --spin`); off, they sleep."),
    seed_option,
    least_difference_option,
    output_options(saved="after each session"),
)


def take_session_options(samples: int, options: dict[str, Any]) -> tuple[SweepConfig, Callable[[Measure], None]]:
    """The settings of a sweep from the options of `session_options`, and what runs one.

    Args:
        samples: of each arm in each case.
        options: the options that these benchmarks share, by name.
    """
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig
    from maskpro_deploy.runs.output import Output
    from maskpro_deploy.runs.sessions import benchmark_bundles
    from maskpro_deploy.targets.arms import open_arms

    taken = {name: options.pop(name) for name in ("sessions", "same_model", "logit_tolerance", "seed", "least_difference")}
    sweep = SweepConfig(samples=samples, threads=options["threads"], budget_s=options.pop("budget"), **taken)
    bundles = [path for path in (options.pop("bundle"), options.pop("against")) if path is not None]
    arms = {name: options.pop(name) for name in ("provider", "threads", "spin", "form", "engine")}
    return sweep, partial(benchmark_bundles, open_all=partial(open_arms, bundles, **arms), sweep=sweep, output=Output(**options))
