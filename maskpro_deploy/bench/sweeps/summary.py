"""A benchmark result in words: the table, the verdict sentences, the caveats; plain text and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.bench.environment import circumstances
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL, ModelArm
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.result import BenchResult, CaseResult
from maskpro_deploy.system.output import table

_ENDS = ("tokens/s", "floor ms", "of ceiling", "samples")
_LATENCY_COLUMNS = ("case", "model", "median ms", "MAD ms", "p90 ms", *_ENDS)
_THROUGHPUT_COLUMNS = ("case", "model", "whole ms", "MAD ms", "first token ms", "per token ms", *_ENDS)
_METRIC_WORDS = {
    PREFILL: "time to first token",
    DECODE: "time per output token",
    GENERATE: "time for the whole batch",
}
UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One comparison in words.

    Attributes:
        sentence: such as "decode, batch 1, context 128: sparse runs at 1.02x the speed of dense, ...: no difference seen."
        ratio: the figures, or None where there were too few sessions.
        same_kernels: both are known to run the same kernels, so no difference is expected.
    """

    case: str
    candidate: str
    baseline: str
    sentence: str
    ratio: stats.Ratio | None
    same_kernels: bool = False


def number(value: float | None, digits: int = 4) -> str:
    """A figure with so many significant digits, or `UNKNOWN`."""
    if value is None:
        return UNKNOWN
    if value == 0 or 10 ** (digits - 1) <= abs(value):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def columns(result: BenchResult) -> tuple[str, ...]:
    """The header of the table."""
    return _THROUGHPUT_COLUMNS if result.kind == "throughput" else _LATENCY_COLUMNS


def row(result: BenchResult, case: CaseResult, arm: ModelArm[Any]) -> list[str]:
    """One line of the table; see `columns`."""
    values = case.values_ms(arm.name)
    found = case.summary(arm.name)
    cells = [case.case.label, arm.name]
    cells += [number(found.median if found else None), number(found.mad if found else None, 2)]
    if result.kind == "throughput":
        cells += [number(_median(values.get("ttft"))), number(_median(values.get("tpot"))), number(case.tokens_per_s(arm.name))]
    else:
        cells += [number(found.p90 if found else None), number(case.tokens_per_s(arm.name))]
    least, share = result.floor(case, arm), result.share_of_ceiling(case, arm)
    cells += [number(1e3 * least.seconds if least else None), UNKNOWN if share is None else f"{100 * share:.0f} %"]
    return [*cells, str(found.count if found else 0)]


def _median(values: Sequence[float] | None) -> float | None:
    return stats.summarise(values).median if values else None


def rows(result: BenchResult) -> list[list[str]]:
    """The table of all cases and arms."""
    return [row(result, case, arm) for case in result.cases for arm in result.arms]


def verdicts(result: BenchResult) -> list[Verdict]:
    """The first arm against each other one, case by case; empty for an invalid run."""
    found = []
    for case in result.cases:
        for baseline, ratio in result.comparisons(case).items():
            candidate, same = result.arms[0].name, result.same_kernels(baseline)
            sentence = f"{case.case.label}: {_sentence(candidate, baseline, ratio, same_kernels=same)}"
            found.append(
                Verdict(
                    case=case.case.label,
                    candidate=candidate,
                    baseline=baseline,
                    sentence=sentence,
                    ratio=ratio,
                    same_kernels=same,
                )
            )
    return found


def _sentence(candidate: str, baseline: str, ratio: stats.Ratio | None, *, same_kernels: bool) -> str:
    if ratio is None:
        return f"too few sessions to compare {candidate} with {baseline} ({stats.MIN_SESSIONS} are needed)."
    return wording.sentence(candidate, baseline, ratio, same_kernels=same_kernels)


def headline(result: BenchResult) -> str:
    """The one sentence of the report."""
    if not result.valid:
        return f"Invalid: {result.invalid_reasons[0]}"
    found = verdicts(result)
    if not found:
        case, name = result.cases[0], result.arms[0].name
        summary = case.summary(name)
        return f"{name}: {number(summary.median if summary else None)} ms {_METRIC_WORDS[case.case.phase]} ({case.case.label})."
    if len(found) == 1:
        return found[0].sentence
    name, others = found[0].candidate, " and ".join(dict.fromkeys(v.baseline for v in found))
    return f"{name} compared with {others}: {wording.tally([v.ratio for v in found], [v.same_kernels for v in found])}."


def best_batches(result: BenchResult) -> list[str]:
    """For a throughput run: each arm's best batch size, in words."""
    if result.kind != "throughput" or not result.valid:
        return []
    bound_ms = result.config.get("latency_bound_ms")
    within = f" with a median of {number(bound_ms)} ms or less per token" if bound_ms is not None else ""
    lines = []
    for arm in result.arms:
        best = result.best_batch(arm.name)
        if best is None:
            lines.append(f"{arm.name}: none of the batch sizes tried has{within.removeprefix(' with') or ' been measured'}.")
        else:
            rate = number(best.tokens_per_s(arm.name))
            lines.append(f"{arm.name}: most tokens per second{within} at batch {best.case.batch_size}: {rate} tokens/s.")
    return lines


def self_test_line(result: BenchResult) -> str:
    """The A/A self-test in words."""
    test = result.self_test
    if test.invalid is not None:
        return f"Self-test: not made: {test.invalid}"
    if test.passed is None:
        return f"Self-test: too few sessions for one ({stats.MIN_SESSIONS} are needed)."
    last = test.attempts[-1]
    found = f"{result.arms[0].name} against itself gave {last.speedup:.3f}x [{last.low:.3f}, {last.high:.3f}]"
    if last.session_sd is not None:
        found += f" over {last.sessions} pairs of sessions (one pair alone is off by {100 * last.session_sd:.1f} % or so)"
    if test.passed:
        again = " at the second attempt (5 % of attempts see one by chance)" if len(test.attempts) > 1 else ""
        return f"Self-test: {found}, no difference seen{again}, as it should be."
    return f"Self-test: {found}: a difference twice in a row where there is none. The timing here cannot be trusted."


def caveats(result: BenchResult) -> list[str]:
    """What the reader has to know beside the figures."""
    lines = [self_test_line(result), *_agreement_lines(result), *_ceiling_lines(result)]
    cold = [case.case.label for case in result.cases if not case.measurement.warm and case.measurement.invalid is None]
    if cold:
        lines.append(f"Times were still changing when the warm-up ended in: {'; '.join(cold)}.")
    budget_s = result.config.get("budget_s")
    if budget_s is not None and not result.earlier and result.duration_s > 1.5 * budget_s:
        lines.append(f"The budget of {budget_s:g} s was too short for {stats.MIN_SESSIONS} sessions: {result.duration_s:.0f} s.")
    if verdicts(result):
        lines.append(wording.family_note(result.comparison_count, result.least_difference))
    lines += circumstances(result.environment, result.earlier)
    return [*lines, *result.notes]


def _agreement_lines(result: BenchResult) -> list[str]:
    """How near the outputs of the arms are, the worst case of each."""
    lines = []
    for arm in result.arms[1:]:
        found = [case.agreement[arm.name] for case in result.cases if arm.name in case.agreement]
        if not found:
            continue
        worst = max(a.max_logit_difference for a in found)
        same = sum(a.same_top_token * a.positions for a in found) / sum(a.positions for a in found)
        same_weights = result.arms[0].facts.get("weights_sha256") == arm.facts.get("weights_sha256") is not None
        kind = "the same weights" if same_weights else "different weights"
        lines.append(
            f"Outputs of {result.arms[0].name} and {arm.name} ({kind}), on random tokens: logits differ by up to "
            f"{number(worst, 3)}, the same likeliest token at {100 * same:.1f} % of {sum(a.positions for a in found)} positions."
        )
        if same_weights and worst > 0 and not (result.config.get("same_model") or result.config.get("logit_tolerance")):
            lines.append("Give --same-model or --logit-tolerance to let that difference decide whether speeds are compared.")
    return lines


def _ceiling_lines(result: BenchResult) -> list[str]:
    """The ceilings that the floors are computed from."""
    bandwidth, arithmetic = result.bandwidth, result.arithmetic
    if bandwidth.bytes_per_s is None:
        return [f"Memory bandwidth: {bandwidth.method}."]
    lines = [f"Memory bandwidth measured in this run: {bandwidth.bytes_per_s / 1e9:.1f} GB/s ({bandwidth.method})."]
    if arithmetic is not None:
        lines.append(f"Arithmetic measured in this run: {arithmetic.operations_per_s / 1e9:.1f} GFLOP/s ({arithmetic.method}).")
    floors = [least for case in result.cases for arm in result.arms if (least := result.floor(case, arm)) is not None]
    if floors:
        by_bytes = "bytes of weights and cache over this bandwidth"
        known = any(arm.operations_per_token is not None for arm in result.arms) and arithmetic is not None
        what = f"the longer of {by_bytes} and operations over this arithmetic" if known else by_bytes
        lines.append(f"The floor is {what}; of ceiling is the floor over the median.")
    cache = result.environment.get("cpu_last_level_cache_bytes")
    if isinstance(cache, int) and any(a.weight_bytes is not None and a.weight_bytes < cache for a in result.arms):
        lines.append("The weights fit in the processor's cache, so the floor from memory bandwidth does not bind here.")
    return lines


def machine_line(result: BenchResult) -> str:
    """Where it ran, in a line."""
    e = result.environment
    parts = [e.get("cpu_model"), f"{e.get('cpu_count')} cores", e.get("platform")]
    runtime = (e.get("packages") or {}).get("onnxruntime")
    if runtime:
        parts.append(f"onnxruntime {runtime}")
    threads = result.arms[0].facts.get("threads")
    spin = result.arms[0].facts.get("threads_spin")
    waiting = "" if spin is None else " that spin" if spin else " that sleep while they wait"
    parts.append(f"threads: {threads or 'all cores'}{waiting}")
    return ", ".join(str(p) for p in parts if p)


def render_text(result: BenchResult) -> str:
    """The result as it is printed."""
    lines = [table(rows(result), columns(result)), ""]
    if not result.valid:
        lines += [f"INVALID: {reason}" for reason in result.invalid_reasons] + [""]
    lines += [*(verdict.sentence for verdict in verdicts(result)), *best_batches(result)]
    return "\n".join([*lines, "", *caveats(result), f"Machine: {machine_line(result)}"])


def markdown(result: BenchResult) -> str:
    """`report.md`."""
    lines = [f"# Benchmark: {result.kind}", "", f"**{escape(headline(result))}**", ""]
    if not result.valid:
        lines += ["Why this run is invalid:", "", *[f"- {escape(reason)}" for reason in result.invalid_reasons], ""]
    lines += [markdown_table(columns(result), rows(result)), ""]
    if found := [*(v.sentence for v in verdicts(result)), *best_batches(result)]:
        lines += ["## Verdicts", "", *[f"- {escape(line)}" for line in found], ""]
    lines += ["## How to read this", "", *[f"- {escape(line)}" for line in caveats(result)], ""]
    lines += [
        "## Where and how",
        "",
        f"{escape(machine_line(result))}",
        "",
        "```",
        str(result.environment["command_line"]),
        "```",
    ]
    return "\n".join(lines) + "\n"


def markdown_page(
    title: str,
    sentence: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    points: Mapping[str, Sequence[str]],
    command: str,
) -> str:
    """A page of tables (title, header, rows) and lists; empty lists are left out."""
    lines = [f"# {title}", "", f"**{escape(sentence)}**", ""]
    for name, header, body in tables:
        lines += [f"## {name}", "", markdown_table(header, body), ""]
    for name, found in points.items():
        if found:
            lines += [f"## {name}", "", *[f"- {escape(line)}" for line in found], ""]
    return "\n".join([*lines, "## How to reproduce", "", "```", command, "```"]) + "\n"


def escape(text: str) -> str:
    """Text that Markdown takes literally."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(" --- " for _ in header) + "|"]
    lines += ["| " + " | ".join(escape(cell) for cell in line) + " |" for line in body]
    return "\n".join(lines)
