"""Results read back from `result.json`: to go on with a run, to add to it, or to compare it with another.

Raw samples, tokens and the session numbers are in the file, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.bench.arms import Measurement, Sample, Work
from maskpro_deploy.bench.model import DECODE, Agreement, Case, ModelArm
from maskpro_deploy.bench.roofline import Arithmetic, Bandwidth
from maskpro_deploy.bench.sessions import SELF
from maskpro_deploy.bench.sweeps.result import METRIC, RESULT_FILE, SCHEMA, VERSION, CaseResult, arm_json, plain
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import read_json

KINDS = ("latency", "throughput")
# schema -> the command that writes it
_ORIGIN = {
    "maskpro-deploy/kernels": "benchmark kernels",
    "maskpro-deploy/benchmark-comparison": "benchmark compare",
    "maskpro-deploy/eval": "eval",
    "maskpro-deploy/gpu-check": "scripts/gpu_check",
}
_NOT_COMPARED = ("path", "graph_sha256")  # of an arm: where it is, and what follows from the hash of its files
# what has to be the same for samples to belong together
_ENVIRONMENT = ("cpu_model", "machine", "packages")
_JUDGING = ("least_difference",)  # settings that concern the verdicts, not the samples
_MAY_GROW = ("samples", "sessions", "budget_s", "batches", "prompts", "contexts", "prompt", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A result as it was written.

    Attributes:
        path: of the file.
        value: its content.
        cases: the points of the sweep, with their samples.
        self_test: the samples of each attempt at a self-test.
        bandwidth, arithmetic: of the machine, measured then.
        sessions: how many were done: the number of the next one.
    """

    path: Path
    value: Mapping[str, Any]
    cases: dict[Case, CaseResult]
    self_test: list[Measurement]
    bandwidth: Bandwidth
    arithmetic: Arithmetic | None
    sessions: int

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.value["finished"])

    @property
    def planned_sessions(self) -> int:
        """How many the run was to have in all, if it is known; with a budget, at most."""
        return int(self.value.get("planned_sessions", 0))

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return [arm["name"] for arm in self.value["arms"]]


def load(path: Path) -> Saved:
    """Read a result, or the one in a folder.

    Raises:
        InputError: there is none.
        FormatError: it is damaged, or no result of a sweep that this version reads.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    value = read_json(file)
    check_kind(file, value, KINDS, (SCHEMA, VERSION))
    try:
        cases = [_case(c) for c in value["cases"]]
        return Saved(
            path=file,
            value=value,
            cases={c.case: c for c in cases},
            self_test=[self_test(a) for a in value["self_test"]["samples"]],
            bandwidth=Bandwidth(**value["memory_bandwidth"]),
            arithmetic=Arithmetic(**value["arithmetic"]) if value["arithmetic"] is not None else None,
            sessions=_sessions(cases),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise FormatError(f"{file} is damaged: {type(e).__name__}: {e}.\nMeasure again.") from e


def check_kind(file: Path, value: Mapping[str, Any], kinds: Sequence[str], version: tuple[str, int]) -> None:
    """Refuse a result that another command wrote, or another version.

    Args:
        file: where it is.
        value: its content.
        kinds: of results that will do.
        version: schema and its version that will do.

    Raises:
        FormatError: saying what it is.
    """
    schema, kind, wanted = value.get("schema"), value.get("kind"), " or ".join(f"`benchmark {k}`" for k in kinds)
    origin = f"benchmark {kind}" if schema == SCHEMA and kind is not None else _ORIGIN.get(str(schema))
    if origin is not None and origin not in [f"benchmark {k}" for k in kinds]:
        raise FormatError(f"{file} is a result of `{origin}`, and one of {wanted} is expected.")
    if (schema, value.get("version")) != version:
        raise FormatError(
            f"{file} is {schema!r} version {value.get('version')!r}; this command reads {version[0]!r} version {version[1]}.\n"
            f"Give the result of {wanted}, measured by this version."
        )


def _sessions(cases: Sequence[CaseResult]) -> int:
    samples = (s for case in cases for arm in case.measurement.samples.values() for s in arm)
    return 1 + max((s.session for s in samples), default=-1)


def _case(value: Mapping[str, Any]) -> CaseResult:
    case = Case(**{k: value[k] for k in ("phase", "batch_size", "input_len", "output_len")})
    arms = value["arms"]
    measurement = Measurement(
        samples={arm["name"]: _samples(arm["samples"], case) for arm in arms},
        work={arm["name"]: Work(tokens=np.asarray(arm["tokens"], np.int64)) for arm in arms if arm["tokens"] is not None},
        warmup_rounds=value["warmup_rounds"],
        warm=value["warm"],
        failed=value["failed"],
        invalid=value["invalid"],
    )
    agreement = {a["name"]: Agreement(**{k: v for k, v in a.items() if k != "name"}) for a in value["agreement"]}
    return CaseResult(case=case, measurement=measurement, agreement=agreement)


def _samples(value: Mapping[str, Any], case: Case) -> list[Sample]:
    metric = METRIC[case.phase]
    scale = (case.output_len if case.phase == DECODE else 1) / 1e3
    seconds = [scale * float(v) for v in value[f"{metric}_ms"]]
    first: Sequence[float | None] = [None] * len(seconds)
    if metric != "ttft" and value.get("ttft_ms"):
        first = [float(v) / 1e3 for v in value["ttft_ms"]]
    rows = zip(value["session"], value["block"], value["position"], seconds, first, strict=True)
    return [Sample(session=int(s), block=int(b), position=int(p), seconds=t, first_token_s=f) for s, b, p, t, f in rows]


def self_test(value: Mapping[str, Any]) -> Measurement:
    """One attempt at a self-test, as `result.self_test_json` wrote it."""
    return Measurement(samples={name: samples(value[name]) for name in SELF}, invalid=value["invalid"])


def samples(value: Mapping[str, Any]) -> list[Sample]:
    """Samples as `result.samples_json` wrote them."""
    rows = zip(value["session"], value["block"], value["position"], value["seconds"], strict=True)
    return [Sample(session=int(s), block=int(b), position=int(p), seconds=float(t)) for s, b, p, t in rows]


def check_same(
    saved: Saved,
    kind: str,
    arms: Sequence[ModelArm[Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    append: bool,
) -> None:
    """Refuse to mix samples that do not belong together.

    Args:
        saved: what is to be gone on with.
        kind: of the run.
        arms: of the run.
        config: its settings, as the result states them.
        environment: what it runs on.
        append: other cases and other numbers of samples are fine.

    Raises:
        InputError: naming the first difference.
    """
    value, where = saved.value, f"cannot go on with {saved.path}"
    if value["kind"] != kind:
        raise InputError(f"{where}: it is the result of a {value['kind']} run, not of {kind}.\nChoose another --out.")
    now = [plain(arm_json(arm)) for arm in arms]
    for before, arm in zip(value["arms"], now, strict=False):
        for key in sorted({*before, *arm} - {*_NOT_COMPARED}):
            if before.get(key) != arm.get(key):
                raise InputError(
                    f"{where}: {key} of {arm['name']} is {arm.get(key)}, and was {before.get(key)}.\n"
                    "Give the bundles it was measured on, or another --out."
                )
    if len(value["arms"]) != len(now):
        raise InputError(f"{where}: it has {len(value['arms'])} bundles, and this run {len(now)}.\nChoose another --out.")
    check_settings(where, value["config"], config, append=append)
    check_machine(where, value["environment"], environment)


def check_settings(where: str, before: Mapping[str, Any], now: Mapping[str, Any], *, append: bool) -> None:
    """Refuse to go on with other settings.

    Args:
        where: start of the message: what cannot be gone on with.
        before: settings as the result states them.
        now: those of the run.
        append: other cases and other numbers of samples are fine.

    Raises:
        InputError: naming the first difference.
    """
    settings = plain(now)
    for key in sorted({*before, *settings} - {*_JUDGING}):
        if before.get(key) != settings.get(key) and not (append and key in _MAY_GROW):
            raise InputError(
                f"{where}: {key} is {settings.get(key)}, and was {before.get(key)}.\n"
                f"Repeat its settings{'' if append else ', add to it with --append'}, or choose another --out."
            )


def check_machine(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on elsewhere.

    Args:
        where: start of the message: what cannot be gone on with.
        before: the result's environment block.
        now: that of the run.

    Raises:
        InputError: naming the first difference.
    """
    for key in _ENVIRONMENT:
        if before.get(key) != plain(now.get(key)):
            raise InputError(
                f"{where}: it was measured on another machine or with other packages ({key}).\nChoose another --out."
            )


def start_of(value: Mapping[str, Any], sessions: int) -> dict[str, Any]:
    """When and how a run was started that a later one goes on with, and the sessions it had done."""
    kept = ("date", "command_line", "load_average_1min", "git")
    return {"sessions": sessions, **{key: value["environment"].get(key) for key in kept}}
