"""Results read back from `result.json`: to go on with a run, to add to it, or to compare it with another.

Raw samples, tokens and the session numbers are in the file, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from maskpro_deploy.bench.arms import Measurement, Sample, Work
from maskpro_deploy.bench.results.run import RESULT_FILE, SCHEMA, RunResult, plain
from maskpro_deploy.bench.sessions import SELF
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import read_json

T = TypeVar("T")

# schema -> the command that writes it
_ORIGIN = {
    "maskpro-deploy/kernels": "benchmark kernels",
    "maskpro-deploy/benchmark-comparison": "benchmark compare",
    "maskpro-deploy/eval": "eval",
    "maskpro-deploy/gpu-check": "scripts/gpu_check",
}
# what has to be the same for samples to belong together
_ENVIRONMENT = ("cpu_model", "machine", "packages")
_JUDGING = ("least_difference",)  # settings that concern the verdicts, not the samples
_MAY_GROW = ("samples", "sessions", "budget_s", "batches", "prompts", "contexts", "prompt", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedResult:
    """A result as it was written."""

    path: Path  # of the file
    value: Mapping[str, Any]  # its content
    self_test: list[Measurement]  # the samples of each attempt at a self-test
    sessions: int  # how many were done: the number of the next one, of which some cases may be done

    @property
    def finished(self) -> bool:
        return bool(self.value["finished"])

    @property
    def planned_sessions(self) -> int:
        """How many the run was to have in all, if it is known; with a budget, at most."""
        return int(self.value.get("planned_sessions", 0))

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """When and how this run and those before it were started, and the sessions they had done."""
        kept = ("date", "command_line", "load_average_1min", "git")
        start = {"sessions": self.sessions, **{key: self.value["environment"].get(key) for key in kept}}
        return (*self.value["earlier"], start)


def read_result(path: Path, kinds: Sequence[str], schema: type[RunResult], decode: Callable[[Path, dict[str, Any]], T]) -> T:
    """Read the result at `path`, or in that folder: one of these kinds, which `schema` writes and `decode` makes out.

    An `InputError` where there is none; a `FormatError` where it is damaged, or no result that this version reads.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    value = read_json(file)
    _check_kind(file, value, kinds, schema)
    try:
        return decode(file, value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise FormatError(f"{file} is damaged: {type(e).__name__}: {e}.\nMeasure again.") from e


def _check_kind(file: Path, value: Mapping[str, Any], kinds: Sequence[str], schema: type[RunResult]) -> None:
    """Refuse a result that another command wrote, or another version."""
    name, kind, wanted = value.get("schema"), value.get("kind"), " or ".join(f"`benchmark {k}`" for k in kinds)
    origin = f"benchmark {kind}" if name == SCHEMA and kind is not None else _ORIGIN.get(str(name))
    if origin is not None and origin not in [f"benchmark {k}" for k in kinds]:
        raise FormatError(f"{file} is a result of `{origin}`, and one of {wanted} is expected.")
    if (name, value.get("version")) != (schema.SCHEMA, schema.VERSION):
        raise FormatError(
            f"{file} is {name!r} version {value.get('version')!r}; this command reads {schema.SCHEMA!r} version "
            f"{schema.VERSION}.\nGive the result of {wanted}, measured by this version."
        )


def place_samples(
    value: Mapping[str, Any], seconds: Sequence[float], first_token_s: Sequence[float | None] | None = None
) -> list[Sample]:
    """Samples of these times at the places that `run.places_json` wrote."""
    first = [None] * len(seconds) if first_token_s is None else first_token_s
    rows = zip(value["session"], value["block"], value["position"], seconds, first, strict=True)
    return [Sample(session=int(s), block=int(b), position=int(p), seconds=t, first_token_s=f) for s, b, p, t, f in rows]


def read_samples(value: Mapping[str, Any]) -> list[Sample]:
    """Samples as `run.samples_json` wrote them."""
    return place_samples(value, [float(seconds) for seconds in value["seconds"]])


def read_self_test(value: Mapping[str, Any]) -> list[Measurement]:
    """The samples of each attempt at a self-test, as `run.self_test_json` wrote them."""
    return [
        Measurement(samples={name: read_samples(attempt[name]) for name in SELF}, invalid=attempt["invalid"])
        for attempt in value["self_test"]["samples"]
    ]


def read_measurement(
    value: Mapping[str, Any],
    arms: Iterable[Mapping[str, Any]],
    name_key: str = "name",
    samples: Callable[[Mapping[str, Any]], list[Sample]] = read_samples,
) -> Measurement:
    """One case, as `run.state_json` wrote it, with the samples and tokens of its arms; `samples` reads those of an arm."""
    arms = list(arms)
    return Measurement(
        samples={arm[name_key]: samples(arm["samples"]) for arm in arms},
        work={arm[name_key]: Work(tokens=np.asarray(arm["tokens"], np.int64)) for arm in arms if arm["tokens"] is not None},
        **{name: value[name] for name in ("warmup_rounds", "warm", "failed", "invalid")},
    )


def check_goes_on(saved: SavedResult, config: Mapping[str, Any], environment: Mapping[str, Any], *, append: bool) -> None:
    """Refuse to mix samples that were measured with other settings, or in another environment, naming the first difference.

    With `append`, other cases and other numbers of samples are fine.
    """
    before, settings = saved.value["config"], plain(config)
    for key in sorted({*before, *settings} - {*_JUDGING}):
        if before.get(key) != settings.get(key) and not (append and key in _MAY_GROW):
            advice = f"Repeat its settings{'' if append else ', add to it with --append'}, or choose another --out."
            refuse(saved, f"{key} is {settings.get(key)}, and was {before.get(key)}.\n{advice}")
    for key in _ENVIRONMENT:
        if saved.value["environment"].get(key) != plain(environment.get(key)):
            refuse(saved, f"it was measured on another machine or with other packages ({key}).\nChoose another --out.")


def refuse(saved: SavedResult, why: str) -> NoReturn:
    """Refuse to go on with a result, by an `InputError`."""
    raise InputError(f"cannot go on with {saved.path}: {why}")
