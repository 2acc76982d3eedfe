"""Products in words: the document with its tables, verdicts and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskpro_deploy.bench.environment import describe_circumstances
from maskpro_deploy.bench.kernels.columns import GPU, GpuRow, product_columns, total_columns
from maskpro_deploy.bench.kernels.result import KernelResult
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.results.document import UNKNOWN, Document, describe_machine, headline_of, make_table


def describe(result: KernelResult) -> Document:
    """What is said of a run, in all forms of its report."""
    first, whole = result.forms[0], result.gpu.get("whole_model", [])
    gpu_rows = [GpuRow(dtype=total["dtype"], m=total["m"], arm=arm, ms=total["ms"]) for total in whole for arm in total["ms"]]
    return Document(
        title="Benchmark: kernels",
        headline=headline_of(result.invalid_reasons, _say_headline(result)),
        tables=[
            make_table("Each product", product_columns(first), result.product_rows),
            make_table("The whole model", total_columns(first), result.total_rows),
            make_table("The whole model on the GPU", GPU, gpu_rows),
        ],
        verdicts=_list_verdicts(result),
        notes=_list_notes(result),
        environment=result.environment,
        machine=describe_machine(result.environment, f"threads: {result.config['threads'] or 'all cores'}"),
        invalid_reasons=result.invalid_reasons,
    )


def _list_verdicts(result: KernelResult) -> list[str]:
    """For each form: where it is faster than the first."""
    if not result.valid:
        return []
    lines = []
    for form in result.forms[1:]:
        for m in result.tokens:
            if (ratio := result.model_ratio(m, form)) is not None:
                same = result.same_kernels(form)
                words = wording.describe_comparison(form, result.forms[0], ratio, same_kernels=same)
                lines.append(f"all products of the model, M {m}: {words}")
        if result.same_kernels(form):
            continue
        shapes = dict.fromkeys((c.k, c.n) for c in result.cases)
        faster = {shape: result.faster_at(form, shape) for shape in shapes}
        parts = [f"{k} x {n} at {', '.join(map(str, at))}" for (k, n), at in faster.items() if at]
        lines.append(f"{form} is faster than {result.forms[0]} at M: {'; '.join(parts) or 'none of those measured'}.")
    return lines


def _say_headline(result: KernelResult) -> str:
    parts = []
    for form in result.forms[1:]:
        ratios = [(m, r) for m in result.tokens if (r := result.model_ratio(m, form)) is not None]
        said = [f"{r.speedup:.2f}x at M {m}" for m, r in ratios if r.differs]
        if even := [str(m) for m, r in ratios if not r.differs]:
            said.append(f"no difference seen at M {', '.join(even)}")
        expected = f" ({wording.SAME_KERNELS})" if result.same_kernels(form) else ""
        parts.append(f"{form} {', '.join(said) or 'not compared (too few sessions)'}{expected}")
    return f"All matrix products of {result.facts['name']} against {result.forms[0]}: {'; '.join(parts)}."


def _list_notes(result: KernelResult) -> list[str]:
    lines = []
    for last in result.run.judge_self_test().attempts[-1:]:
        gave = f"{result.forms[0]} against itself gave {last.speedup:.3f}x [{last.low:.3f}, {last.high:.3f}]"
        lines.append(f"Self-test: {gave} over {last.sessions} pairs of sessions.")
    lines += [
        "Each sample is several products of one shape with different weights, after the caches were emptied. Weights are random, "
        "and the same numbers in all forms"
        + (", but for 2:4, which has two of every four zero." if "2:4" in result.forms else "."),
        f"Memory bandwidth {_show_giga(result.bandwidth.bytes_per_s)} GB/s, arithmetic "
        f"{_show_giga(result.arithmetic.operations_per_s)} GFLOP/s, measured in this run; the floor is the longer of "
        "both, for fp32.",
        "Layer: the mean over the layers, without the product that makes the logits.",
    ]
    if "2:4" in result.forms:
        lines.append("Stock onnxruntime has no 2:4 kernels on a CPU: the form shows that zeros are multiplied like any value.")
    if result.valid and result.comparison_count:
        lines.append(wording.describe_family(result.comparison_count, result.least_difference))
    lines += describe_circumstances(result.environment, result.earlier)
    return [*lines, *_list_gpu_notes(result.gpu)]


def _show_giga(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value / 1e9:.1f}"


def _list_gpu_notes(gpu: Mapping[str, Any]) -> list[str]:
    if not gpu["measured"]:
        return [f"Sparse kernels on a GPU: not measured ({gpu['reason']})."]
    cells = gpu["cells"]
    lines = [f"GPU: {gpu['device']}, torch's 2:4 products against dense ones, {len(cells)} of {gpu['planned']} measured."]
    for b in gpu["break_even"]:
        at = "at none of the M measured up to the largest" if b["from_m"] is None else f"from M {b['from_m']} on"
        lines.append(f"{b['dtype']}, {b['k']} x {b['n']}, {b['backend']}: faster than dense {at}.")
    lines += [f"Not on this GPU: {name}: {why}" for name, why in gpu["refused"].items()]
    if padded := {(c["dtype"], c["m"], name, rows) for c in cells for name, rows in c.get("rows", {}).items()}:
        said = ", ".join(f"{dtype} {name} M {m} as {rows}" for dtype, m, name, rows in sorted(padded))
        lines.append(f"Padded inside the timed call, as the library takes no smaller M: {said}.")
    lines.append("Verdicts on the GPU hold for one product at a time: among many products, some differ by chance.")
    if any("cusparselt-tuned" in c["against_dense"] for c in cells):
        lines.append("cusparselt-tuned: by the fastest algorithm that cuSPARSELt's search finds; cusparselt: by torch's default.")
    if any(c["dtype"] == "int8" for c in cells):
        lines.append("int8: the products alone, 8 bits to 32-bit sums; a layer also quantises its input and scales its output.")
    if some := {f"{c['dtype']} {name}: {why}" for c in cells for name, why in c["refused"].items()}:
        lines.append(f"Refused for some products: {'; '.join(sorted(some))}")
    if failed := [c["failed"] for c in cells if c["failed"]]:
        lines.append(f"Failed on the GPU, and not measured: {failed[0]} ({len(failed)} in all).")
    if wrong := [c["wrong"] for c in cells if c["wrong"]]:
        lines.append(f"WRONG products on the GPU, not timed: {wrong[0]} ({len(wrong)} in all). Do not use that way to multiply.")
    return lines
