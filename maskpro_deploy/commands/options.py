"""Options that mean the same in every command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.pattern import NMPattern

F = TypeVar("F", bound=Callable[..., Any])


class PatternType(click.ParamType[NMPattern]):
    """An N:M pattern on the command line."""

    name = "N:M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NMPattern:
        return value if isinstance(value, NMPattern) else NMPattern.parse(value)


class DurationType(click.ParamType[float]):
    """A length of time such as 90s, 5m or 1.5h, as seconds."""

    name = "TIME"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero  # whether no time at all is a length, too

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", str(value).strip())
        if match is None or float(match[1]) < 0 or (float(match[1]) == 0 and not self._zero):
            flag = param.opts[0] if param is not None and param.opts else "the time"
            raise ConfigError(
                f"{flag} {value!r} is no length of time.\nGive a number above 0 and a unit, for example 90s, 5m or 1.5h."
            )
        return float(match[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[match[2] or "s"]


PATTERN = PatternType()
DURATION = DurationType()
PATH = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness.")
form_option = click.option(
    "--form", metavar="|".join(CACHE_FORMS), help="The graph to run, by its cache. [default: the bundle's own]"
)
engine_option = click.option("--engine", metavar="FILE", help="The engine to run (tensorrt, trt-native). [default: the best]")
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads to use; all cores by default.")
