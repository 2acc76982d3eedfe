"""The options that the session-level benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.commands.options import (
    DURATION,
    PATH,
    force_option,
    json_option,
    seed_option,
    threads_option,
)
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runs.output import Measure, measure_and_emit
from maskpro_deploy.targets.arms import open_arms

if TYPE_CHECKING:
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig

F = TypeVar("F", bound=Callable[..., Any])


class SizesType(click.ParamType[tuple[int, ...]]):
    """Sizes separated by commas, such as 1,4,16."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            flag = param.opts[0] if param is not None else "sizes"
            raise ConfigError(f"{flag} {value!r}: expected whole numbers separated by commas, such as 1,4,16.") from None
        return tuple(dict.fromkeys(sizes))


SIZES = SizesType()
PROVIDERS = "cpu|cuda|tensorrt|trt-native|auto"


least_difference_option = click.option(
    "--least-difference",
    type=float,
    default=0.02,
    show_default=True,
    metavar="D",
    help="Smallest difference of interest, as a fraction; concerns the verdicts only.",
)


def arm_options(function: F) -> F:
    """The options that these benchmarks have in common."""
    options = [
        click.argument("bundle", type=PATH),
        click.option("--against", type=PATH, metavar="BUNDLE", help="A second bundle, measured in the same run."),
        click.option("--budget", type=DURATION, help="Time for the whole run: as many sessions as fit, 8 at least."),
        click.option(
            "--sessions",
            type=int,
            show_default="10, up to 40 with --budget",
            help="Times that each bundle is opened anew; 8 or more for a comparison.",
        ),
        click.option("--same-model", is_flag=True, help="The bundles are the same model: they have to choose the same tokens."),
        click.option(
            "--logit-tolerance",
            type=float,
            metavar="X",
            help="The bundles are the same model up to rounding: no logit may differ by more than X.",
        ),
        click.option("--provider", default="cpu", show_default=True, metavar=PROVIDERS, help="What runs it."),
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
    ]
    return _with(options, out_options(function, saved="after each session"))


def out_options(function: F, *, saved: str) -> F:
    """Where a result goes, and how a run goes on from it."""
    options = [
        click.option("--out", type=PATH, help=f"Folder for result.json, report.md and report.html; saved {saved}."),
        click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out."),
        click.option("--append", is_flag=True, help="Add sessions or cases to the result in --out."),
        force_option,
        json_option,
    ]
    return _with(options, function)


def _with(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def shared_options(samples: int, options: dict[str, Any]) -> tuple[SweepConfig, Callable[[Measure], None]]:
    """The settings of a sweep from the options of `arm_options`, and what runs one: opens the bundles, measures, saves, prints.

    Args:
        samples: of each arm in each case.
        options: the options that these benchmarks have in common, by name.
    """
    from maskpro_deploy.bench.sweeps.sweep import SweepConfig

    taken = {name: options.pop(name) for name in ("sessions", "same_model", "logit_tolerance", "seed", "least_difference")}
    sweep = SweepConfig(samples=samples, threads=options["threads"], budget_s=options.pop("budget"), **taken)
    bundle, against = options.pop("bundle"), options.pop("against")
    arms = {name: options.pop(name) for name in ("provider", "spin", "form", "engine")}
    bundles = [bundle, *([against] if against is not None else [])]
    opened = partial(open_arms, bundles, threads=options["threads"], **arms)
    return sweep, lambda measure: measure_and_emit(measure, opened, **options)
