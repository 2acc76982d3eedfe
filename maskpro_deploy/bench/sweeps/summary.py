"""The result of a sweep in words: the document with its table, the verdict sentences, the caveats."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.environment import describe_circumstances
from maskpro_deploy.bench.model import DECODE, GENERATE, PREFILL
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.results.document import Document, describe_machine, format_number, headline_of, make_table
from maskpro_deploy.bench.sweeps.columns import choose_columns
from maskpro_deploy.bench.sweeps.result import BenchResult

_METRIC_WORDS = {PREFILL: "time to first token", DECODE: "time per output token", GENERATE: "time for the whole batch"}


def describe(result: BenchResult) -> Document:
    """What is said of a run, in all forms of its report."""
    return Document(
        title=f"Benchmark: {result.kind}",
        headline=headline_of(result.invalid_reasons, _say_headline(result)),
        tables=[make_table("Measured", choose_columns(result.kind), result.rows)],
        verdicts=[*(verdict.sentence for verdict in verdicts(result)), *_best_batches(result)],
        notes=_caveats(result),
        environment=result.environment,
        machine=_machine_line(result),
        invalid_reasons=result.invalid_reasons,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison in words."""

    case: str
    candidate: str
    baseline: str
    sentence: str  # such as "decode, batch 1, context 128: sparse runs at 1.02x the speed of dense, ...: no difference seen."
    ratio: stats.Ratio | None  # the figures, or None where there were too few sessions
    same_kernels: bool = False  # both are known to run the same kernels, so no difference is expected


def verdicts(result: BenchResult) -> list[Verdict]:
    """The first arm against each other one, case by case; empty for an invalid run."""
    compared = []
    for case in result.cases:
        for baseline, ratio in result.comparisons(case).items():
            label, candidate, same = case.case.label, result.arms[0].name, result.same_kernels(baseline)
            said = f"too few sessions to compare {candidate} with {baseline} ({stats.MIN_SESSIONS} are needed)."
            if ratio is not None:
                said = wording.describe_comparison(candidate, baseline, ratio, same_kernels=same)
            compared.append(Verdict(label, candidate, baseline, f"{label}: {said}", ratio, same))
    return compared


def _say_headline(result: BenchResult) -> str:
    compared = verdicts(result)
    if not compared:
        case, name = result.cases[0], result.arms[0].name
        summary = case.summary(name)
        median = format_number(summary.median if summary else None)
        return f"{name}: {median} ms {_METRIC_WORDS[case.case.phase]} ({case.case.label})."
    if len(compared) == 1:
        return compared[0].sentence
    name, others = compared[0].candidate, " and ".join(dict.fromkeys(v.baseline for v in compared))
    outcomes = wording.count_outcomes([v.ratio for v in compared], [v.same_kernels for v in compared])
    return f"{name} compared with {others}: {outcomes}."


def _best_batches(result: BenchResult) -> list[str]:
    if result.kind != "throughput" or not result.valid:
        return []
    bound_ms = result.config.get("latency_bound_ms")
    within = f" with a median of {format_number(bound_ms)} ms or less per token" if bound_ms is not None else ""
    lines = []
    for arm in result.arms:
        best = result.best_batch(arm.name)
        if best is None:
            lines.append(f"{arm.name}: none of the batch sizes tried has{within.removeprefix(' with') or ' been measured'}.")
        else:
            rate = format_number(best.tokens_per_s(arm.name))
            lines.append(f"{arm.name}: most tokens per second{within} at batch {best.case.batch_size}: {rate} tokens/s.")
    return lines


def _self_test_line(result: BenchResult) -> str:
    test = result.self_test
    if test.invalid is not None:
        return f"Self-test: not made: {test.invalid}"
    if test.passed is None:
        return f"Self-test: too few sessions for one ({stats.MIN_SESSIONS} are needed)."
    last = test.attempts[-1]
    seen = f"{result.arms[0].name} against itself gave {last.speedup:.3f}x [{last.low:.3f}, {last.high:.3f}]"
    if last.session_sd is not None:
        seen += f" over {last.sessions} pairs of sessions (one pair alone is off by {100 * last.session_sd:.1f} % or so)"
    if test.passed:
        again = " at the second attempt (5 % of attempts see one by chance)" if len(test.attempts) > 1 else ""
        return f"Self-test: {seen}, no difference seen{again}, as it should be."
    return f"Self-test: {seen}: a difference twice in a row where there is none. The timing here cannot be trusted."


def _caveats(result: BenchResult) -> list[str]:
    lines = [_self_test_line(result), *_agreement_lines(result), *_ceiling_lines(result)]
    cold = [case.case.label for case in result.cases if not case.measurement.warm and case.measurement.invalid is None]
    if cold:
        lines.append(f"Times were still changing when the warm-up ended in: {'; '.join(cold)}.")
    budget_s = result.config.get("budget_s")
    if budget_s is not None and not result.earlier and result.duration_s > 1.5 * budget_s:
        lines.append(f"The budget of {budget_s:g} s was too short for {stats.MIN_SESSIONS} sessions: {result.duration_s:.0f} s.")
    if verdicts(result):
        lines.append(wording.describe_family(result.comparison_count, result.least_difference))
    lines += describe_circumstances(result.environment, result.earlier)
    return [*lines, *result.notes]


def _agreement_lines(result: BenchResult) -> list[str]:
    """How near the outputs of the arms are, the worst case of each."""
    lines = []
    for arm in result.arms[1:]:
        near = [case.agreement[arm.name] for case in result.cases if arm.name in case.agreement]
        if not near:
            continue
        worst = max(a.max_logit_difference for a in near)
        positions = sum(a.positions for a in near)
        same = sum(a.same_top_token * a.positions for a in near) / positions
        same_weights = result.arms[0].facts.get("weights_sha256") == arm.facts.get("weights_sha256") is not None
        kind = "the same weights" if same_weights else "different weights"
        lines.append(
            f"Outputs of {result.arms[0].name} and {arm.name} ({kind}), on random tokens: logits differ by up to "
            f"{format_number(worst, 3)}, the same likeliest token at {100 * same:.1f} % of {positions} positions."
        )
        if same_weights and worst > 0 and not (result.config.get("same_model") or result.config.get("logit_tolerance")):
            lines.append("Give --same-model or --logit-tolerance to let that difference decide whether speeds are compared.")
    return lines


def _ceiling_lines(result: BenchResult) -> list[str]:
    bandwidth, arithmetic = result.bandwidth, result.arithmetic
    if bandwidth.bytes_per_s is None:
        return [f"Memory bandwidth: {bandwidth.method}."]
    lines = [f"Memory bandwidth measured in this run: {bandwidth.bytes_per_s / 1e9:.1f} GB/s ({bandwidth.method})."]
    if arithmetic is not None:
        lines.append(f"Arithmetic measured in this run: {arithmetic.operations_per_s / 1e9:.1f} GFLOP/s ({arithmetic.method}).")
    if any(row.floor is not None for row in result.rows):
        by_bytes = "bytes of weights and cache over this bandwidth"
        known = any(arm.operations_per_token is not None for arm in result.arms) and arithmetic is not None
        what = f"the longer of {by_bytes} and operations over this arithmetic" if known else by_bytes
        lines.append(f"The floor is {what}; of ceiling is the floor over the median.")
    cache = result.environment.get("cpu_last_level_cache_bytes")
    if isinstance(cache, int) and any(a.weight_bytes is not None and a.weight_bytes < cache for a in result.arms):
        lines.append("The weights fit in the processor's cache, so the floor from memory bandwidth does not bind here.")
    return lines


def _machine_line(result: BenchResult) -> str:
    runtime = (result.environment.get("packages") or {}).get("onnxruntime")
    threads, spin = (result.arms[0].facts.get(key) for key in ("threads", "threads_spin"))
    waiting = "" if spin is None else " that spin" if spin else " that sleep while they wait"
    parts = [f"onnxruntime {runtime}"] if runtime else []
    return describe_machine(result.environment, *parts, f"threads: {threads or 'all cores'}{waiting}")
