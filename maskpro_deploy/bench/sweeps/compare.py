"""Two results that were measured at different times: the same cases compared.

Nothing was interleaved, so whatever changed between the runs (load, temperature, packages) counts as a difference. What is known
to have changed is listed first. A bundle that is the same in both runs, by its hash, shows how far the machine drifted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.model import Case
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.results.document import (
    Column,
    ComparedRow,
    Document,
    Table,
    columns_json,
    comparison_columns,
    make_table,
    number_column,
    plain_column,
)
from maskpro_deploy.bench.results.run import ratio_json
from maskpro_deploy.bench.sweeps.result import Saved
from maskpro_deploy.errors import InputError

SCHEMA, VERSION = "maskpro-deploy/benchmark-comparison", 1
WARNING = "Two runs, not interleaved: drift counts. A verdict says that the runs differ, not why."
_ALWAYS_OTHER = ("date", "command_line")  # not worth a line
_SETTINGS = ("seed", "threads", "same_model", "logit_tolerance", "decode_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(ComparedRow):
    """One case of one arm in both runs: how much faster B is than A."""

    case: Case
    name: str
    a_ms: float
    b_ms: float
    same_files: bool  # the bundle is the same in both, so a difference is drift


COLUMNS: tuple[Column[Pair], ...] = (
    plain_column("case", lambda p: p.case.label),
    Column(header="model", cell=lambda p: p.name + " (same files)" * p.same_files, key="model", value=lambda p: p.name),
    number_column("A ms", lambda p: p.a_ms, meaning="median in run A", key="a_ms"),
    number_column("B ms", lambda p: p.b_ms, meaning="median in run B", key="b_ms"),
    *comparison_columns("B against A"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two results, case by case."""

    a: str
    b: str
    kind: str
    differences: tuple[tuple[str, str, str], ...]  # of environment, settings and bundles: (what, in A, in B)
    pairs: tuple[Pair, ...]  # what both runs have
    left_out: tuple[str, ...]  # cases and models that only one of them has
    environment: Mapping[str, Any]
    least_difference: float = stats.LEAST_DIFFERENCE  # the smallest difference of interest, as a fraction

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": self.kind,
            "a": self.a,
            "b": self.b,
            "note": WARNING,
            "differences": [{"what": what, "a": a, "b": b} for what, a, b in self.differences],
            "comparisons": [
                {**dataclasses.asdict(p.case), **columns_json(COLUMNS, p), "same_files": p.same_files, **ratio_json(p.ratio)}
                for p in self.pairs
            ],
            "verdicts": wording.family_json(len(self.pairs), self.least_difference),
            "left_out": list(self.left_out),
            "date": self.environment["date"],
            "command_line": self.environment["command_line"],
        }


def compare_results(
    a: Saved, b: Saved, environment: Mapping[str, Any], *, least_difference: float = stats.LEAST_DIFFERENCE
) -> Comparison:
    """Match cases and models of two results, of which `a` may be the one from before a change.

    An `InputError` where a run is invalid or not finished, or they have nothing in common.
    """
    stats.check_least_difference(least_difference)
    for saved in (a, b):
        if not saved.finished:
            raise InputError(f"{saved.path} is not finished: go on with that run with --resume first.")
        if not saved.value["valid"]:
            raise InputError(f"{saved.path} is invalid, and proves nothing: {saved.value['invalid_reasons'][0]}")
    kinds = a.value["kind"], b.value["kind"]
    if kinds[0] != kinds[1]:
        raise InputError(f"{a.path} is a {kinds[0]} run and {b.path} a {kinds[1]} run: their times mean different things.")
    names = _match_names(a, b)
    common = [case for case in a.cases if case in b.cases]
    if not names or not common:
        contents = [f"{s.path}: {', '.join(s.arms)}: {'; '.join(case.label for case in s.cases)}" for s in (a, b)]
        what = "case" if names else "model"
        raise InputError("\n".join([f"{a.path} and {b.path} have no {what} in common.", *contents]))
    count = len(common) * len(names)
    pairs = [_make_pair(a, b, case, *both) for case in common for both in names]
    pairs = [p if p.ratio is None else replace(p, ratio=p.ratio.judge(count, least_difference)) for p in pairs]
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        kind=kinds[0],
        differences=tuple(_list_differences(a, b, names)),
        pairs=tuple(pairs),
        left_out=tuple(_list_left_out(a, b, {n for n, _ in names}, {n for _, n in names}, set(common))),
        environment=environment,
        least_difference=least_difference,
    )


def describe(comparison: Comparison) -> Document:
    """What is said of the comparison, in all forms of its report."""
    differences = Table(title="What differs between the runs", header=("what", "A", "B"), rows=comparison.differences)
    headline = _say_headline(comparison)
    return Document(
        title=f"Benchmark: two {comparison.kind} runs",
        headline=headline,
        tables=[differences, make_table("Compared", COLUMNS, comparison.pairs)],
        verdicts=[headline],
        notes=_list_notes(comparison),
        environment=comparison.environment,
        preface=[f"A: {comparison.a}", f"B: {comparison.b}"],
    )


def _match_names(a: Saved, b: Saved) -> list[tuple[str, str]]:
    """Models of one name; or the only one of each run, whatever their names."""
    same = [(name, name) for name in a.arms if name in b.arms]
    if not same and len(a.arms) == len(b.arms) == 1:
        return [(a.arms[0], b.arms[0])]
    return same


def _make_pair(a: Saved, b: Saved, case: Case, name: str, other: str) -> Pair:
    left, right = a.cases[case], b.cases[case]
    before, after = left.summary(name), right.summary(other)
    if before is None or after is None:
        raise InputError(f"{(a if before is None else b).path} has no samples of {case.label}.")
    return Pair(
        case=case,
        name=name if name == other else f"{other} against {name}",
        a_ms=before.median,
        b_ms=after.median,
        same_files=a.facts(name).get("files_sha256") == b.facts(other).get("files_sha256") is not None,
        ratio=stats.compare_unpaired(right.measurement.portions(other), left.measurement.portions(name)),
    )


def _list_differences(a: Saved, b: Saved, names: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """What is known to differ between the runs."""
    differences = []
    environments = a.value["environment"], b.value["environment"]
    for key in dict.fromkeys([*environments[0], *environments[1]]):
        before, after = (e.get(key) for e in environments)
        if key == "packages":
            old, new = before or {}, after or {}
            differences += [(package, old.get(package), new.get(package)) for package in sorted({*old, *new})]
        elif key not in _ALWAYS_OTHER:
            differences.append((key.replace("_", " "), before, after))
    differences += [(key, a.value["config"].get(key), b.value["config"].get(key)) for key in _SETTINGS]
    for name, other in names:
        before, after = a.facts(name), b.facts(other)
        keys = [key for key in dict.fromkeys([*before, *after]) if key not in ("name", "path")]
        differences += [(f"{name}: {key}", before.get(key), after.get(key)) for key in keys]
    return [(what, _show(old), _show(new)) for what, old, new in differences if old != new]


def _show(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    text = str(value)
    return text if len(text) <= 60 else text[:12] + "..."


def _list_left_out(a: Saved, b: Saved, in_a: set[str], in_b: set[str], common: set[Case]) -> list[str]:
    lines = []
    for letter, saved, names in (("A", a, in_a), ("B", b, in_b)):
        lines += [f"only in {letter}: {case.label}" for case in saved.cases if case not in common]
        lines += [f"only in {letter}: {name}" for name in saved.arms if name not in names]
    return lines


def _say_headline(comparison: Comparison) -> str:
    ratios = [p.ratio for p in comparison.pairs if p.ratio is not None]
    if not ratios:
        return f"Too few sessions to compare the runs ({stats.MIN_SESSIONS} of each are needed)."
    if len(comparison.pairs) == 1:
        return wording.describe_comparison("B", "A", ratios[0])
    return f"B compared with A: {wording.count_outcomes([p.ratio for p in comparison.pairs])}."


def _list_notes(comparison: Comparison) -> list[str]:
    lines = [WARNING]
    for p in comparison.pairs:
        if p.same_files and p.ratio is not None and p.ratio.differs:
            lines.append(
                f"{p.name} is the same bundle in both runs, and yet B runs at {p.ratio.speedup:.3f}x the speed of A "
                f"({p.case.label}): the machine drifted, by about as much."
            )
    lines.append(wording.describe_family(len(comparison.pairs), comparison.least_difference))
    lines += ["The interval takes the sessions of the two runs as independent.", *comparison.left_out]
    return lines
