"""What several commands share: types of values, options that mean the same everywhere, and groups of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from maskpro_deploy.backends.providers import AUTO, ENGINE_PROVIDERS, PROVIDER_HELP, PROVIDER_NAMES
from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.choices import DEVICES
from maskpro_deploy.pattern import LayerPatterns, NMPattern

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)


def flag_of(param: click.Parameter | None) -> str:
    """The flag by which a message calls an option."""
    return param.opts[0] if param is not None and param.opts else "the value"


class PatternType(click.ParamType[NMPattern]):
    """An N:M pattern on the command line."""

    name = "N:M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NMPattern:
        return value if isinstance(value, NMPattern) else NMPattern.parse(value)


class LayerPatternsType(click.ParamType[LayerPatterns]):
    """An N:M pattern, and others for some layers: 2:4,down_proj=4:8."""

    name = "N:M[,LAYERS=N:M]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LayerPatterns:
        return value if isinstance(value, LayerPatterns) else LayerPatterns.parse(str(value))


class DurationType(click.ParamType[float]):
    """A duration such as 90s, 5m or 1.5h, as seconds."""

    name = "TIME"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero  # whether 0 is allowed too

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", str(value).strip())
        if match is None or (float(match[1]) == 0 and not self._zero):
            raise ConfigError(
                f"{flag_of(param)} {value!r} is not a duration.\nGive a number above 0 and a unit, for example 90s, 5m or 1.5h."
            )
        return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2] or "s"]


class ShareType(click.ParamType[float]):
    """A share such as 10% or 0.1."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise ConfigError(f"{flag_of(param)} {value!r} is not a share.\nGive one such as 10% or 0.1.") from None


class NamesType(click.ParamType[tuple[str, ...]]):
    """Names separated by commas."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(",") if part.strip())


class NumbersType(click.ParamType[tuple[N, ...]]):
    """Numbers separated by commas; each counts once. `read` makes a number of its text, `expected` is for the error."""

    def __init__(self, read: Callable[[str], N], name: str, expected: str) -> None:
        self.name, self._expected = name, expected
        self._read: Callable[[str], N] = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[N, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(self._read(part) for part in str(value).split(",")))
        except ValueError:
            raise ConfigError(f"{flag_of(param)} {value!r}: expected {self._expected}.") from None


PATTERN = PatternType()
DURATION = DurationType()
NAMES = NamesType()
SIZES = NumbersType(int, "N,N...", "whole numbers separated by commas, such as 1,4,16")
RATES = NumbersType(float, "R,R...", "numbers separated by commas, such as 1,2.5,inf")
PATH = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness.")
form_option = click.option(
    "--form", metavar="|".join(CACHE_FORMS), help="The graph to run, by its cache. [default: the bundle's own]"
)
engine_option = click.option(
    "--engine", metavar="FILE", help=f"The engine to run ({', '.join(ENGINE_PROVIDERS)}). [default: the best]"
)
least_difference_option = click.option(
    "--least-difference",
    type=float,
    default=0.02,
    show_default=True,
    metavar="D",
    help="Smallest difference of interest, as a fraction; concerns the verdicts only.",
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads to use; all cores by default.")
model_option = click.option("--model", required=True, help="Checkpoint folder, .gguf file, Hub id, or `demo`.")
sparsity_option = click.option(
    "--sparsity",
    "patterns",
    type=LayerPatternsType(),
    default="2:4",
    show_default=True,
    help="N kept of every M weights; others for layers that a regular expression names: 2:4,down_proj=4:8.",
)
device_option = click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True)


def provider_option(default: str, help_text: str) -> Callable[[F], F]:
    """`--provider`, with the choices and the help of the registry; `help_text` says what it runs."""
    help_text = f"{help_text} {PROVIDER_HELP}"
    return click.option("--provider", type=click.Choice(PROVIDER_NAMES), default=default, show_default=True, help=help_text)


def combine(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds several options; the help shows them in this order."""

    def add_options(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add_options


def run_options(help_text: str) -> Callable[[F], F]:
    """What runs a bundle: `--provider`, `--form`, `--engine` and `--threads`."""
    return combine(provider_option(AUTO, help_text), form_option, engine_option, threads_option)


def refuse_given(context: click.Context, names: Sequence[str], reason: str) -> None:
    """Refuse parameters that the command would ignore; `reason` stands behind the flag.

    Raises:
        ConfigError: one of them was given on the command line.
    """
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name in names and source is click.core.ParameterSource.COMMANDLINE:
            raise ConfigError(f"{flag_of(param)} {reason}.")
