"""A validation as a report page, and as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from maskpro_deploy.reports.blocks import ListSection, Report, Section, TableSection, warning_list
from maskpro_deploy.system.output import table

if TYPE_CHECKING:
    from maskpro_deploy.validation import TensorReport, Unchecked, ValidationReport

_HEADER = ("tensor", "shape", "dtype", "axis", "satisfies", "groups", "violations", "short", "density", "-0.0", "cores", "result")
_SHOWN = 20  # lines of a kind in the text
_SHOWN_DENSE = 3  # and of layers that stay dense on purpose
_EXEMPT = "Every stored tensor is in one of these classes; one that is unaccounted for forbids a pass."
_HOW_TO_READ = (
    "Groups lie along the axis. A short group has fewer nonzeros than N and is lawful: its mask is known and strict, or fewer "
    "are allowed. Cores says whether shape and dtype suit sparse tensor cores, not what is faster."
)


def build_page(report: ValidationReport) -> Report:
    """The page: verdict, totals, what fails, one row a tensor."""
    sections: list[Section] = [TableSection(title="Totals", rows=_totals(report))]
    sections += warning_list("What fails", [f"{t.name}: {t.why()}" for t in report.failed])
    sections += warning_list("Contradictions", report.problems)
    sections += warning_list("Unaccounted for", [f"{u.name}: {u.reason}{_users(u)}" for u in report.unchecked])
    account = [(name, f"{size:,}", f"{100 * share:.2f} %") for name, size, share in report.account.rows()]
    account.append(("all", f"{report.account.total:,}", "100.00 %"))
    sections.append(TableSection(title="Account", header=("stored tensors", "bytes", "share"), rows=account, note=_EXEMPT))
    if report.left_dense:
        left = list(report.left_dense.items())
        sections.append(TableSection(title="Left dense on purpose", header=("layer", "why"), rows=left))
    if report.notes:
        sections.append(ListSection(title="To know", points=report.notes))
    if report.tensors:
        rows = [_row(t) for t in report.tensors]
        sections.append(TableSection(title="Tensors", header=_HEADER, rows=rows, note=_HOW_TO_READ))
    return Report(
        title="N:M validation",
        headline=report.verdict.replace("\n", "; "),
        subtitle=f"{report.path} ({report.kind})",
        sections=sections,
        invalid=not report.holds,
    )


def _users(item: Unchecked) -> str:
    return f" (used by {', '.join(item.consumers)})" if item.consumers else ""


def _totals(report: ValidationReport) -> list[tuple[str, str]]:
    required = report.required
    macs = report.share_of_multiply_adds
    kinds = Counter(t.tensor_cores for t in required)
    shapes = [f"{kinds[k]} {k}" for k in ("fits", "small", "misaligned") if kinds[k]]
    law = "at most N of every M" if report.at_most else "exactly N of every M"
    law += " along both axes" if report.transposable else ""
    return [
        ("pattern", f"{report.pattern or 'none'}{' (detected)' if report.detected else ''}, {law}"),
        ("required tensors", f"{len(required)}, {len(report.failed)} of them fail"),
        ("groups", f"{sum(t.groups for t in required):,}"),
        ("violations", f"{sum(t.violations for t in required):,}"),
        ("short groups", f"{sum(t.short for t in required):,}"),
        ("zeros with a sign (-0.0)", f"{sum(t.negative_zeros for t in required):,}"),
        ("NaN or infinite values", f"{sum(t.not_finite for t in required):,}"),
        ("unaccounted for", str(len(report.unchecked))),
        ("share of the parameters", f"{100 * report.share:.1f} %"),
        ("share of the multiply-adds", "not known" if macs is None else f"{100 * macs:.1f} %"),
        ("shapes for sparse tensor cores", ", ".join(shapes) or "-"),
    ]


def _row(t: TensorReport) -> tuple[str, ...]:
    result = "holds" if t.holds else "fails" if t.required else "does not hold"
    return (
        t.name,
        "x".join(map(str, t.shape)),
        t.dtype,
        str(t.axis),
        ", ".join(map(str, t.satisfies)) or "none",
        f"{t.groups:,}",
        f"{t.violations:,}",
        f"{t.short:,}",
        f"{t.density:.4f}",
        f"{t.negative_zeros:,}",
        t.tensor_cores,
        result if t.required else f"{result} (not required)",
    )


def render_text(report: ValidationReport) -> str:
    """The report as it is printed: one line a kind of layer, then every tensor that fails, then the verdict."""
    blocks = [f"{report.path} ({report.kind})"]
    if report.tensors:
        header = ["layers", "tensors", "shape", "dtype", "axis", "pattern", "groups", "violations", "short", "density", "cores"]
        blocks.append(table(_kind_rows(report), header))
    parts = ", ".join(f"{name} {size:,} ({100 * share:.1f} %)" for name, size, share in report.account.rows())
    blocks.append(f"account of {report.account.total:,} bytes in stored tensors: {parts}")
    failed = report.failed if report.pattern is not None else ()
    blocks.extend(_lines("fails", [(t.name, t.why()) for t in failed]))
    blocks.extend(_lines("unaccounted for", [(u.name, f"{u.reason}{_users(u)}") for u in report.unchecked]))
    blocks.extend(_lines("contradiction", [("", p) for p in report.problems]))
    blocks.extend(_lines("left dense on purpose", list(report.left_dense.items()), _SHOWN_DENSE))
    if signed := sum(t.negative_zeros for t in report.required):
        blocks.append(f"note: {signed} zeros are -0.0, which some sparse kernels take for values")
    if short := sum(t.short for t in report.required):
        why = "fewer nonzeros, as --at-most allows" if report.at_most else "a kept weight that is itself zero"
        blocks.append(f"note: {short:,} groups are short: {why}")
    blocks.extend(f"note: {note}" for note in report.notes)
    if any(t.tensor_cores == "fits" for t in report.required):
        blocks.append("note: cores says whether the shape suits sparse tensor cores (f32: once it is 16 bit), not what is faster")
    blocks.append(report.verdict)
    return "\n".join(blocks)


def _lines(label: str, items: list[tuple[str, str]], shown: int = _SHOWN) -> list[str]:
    lines = [f"{label}: {name}: {why}" if name else f"{label}: {why}" for name, why in items[:shown]]
    if len(items) > shown:
        lines.append(f"{label}: {len(items) - shown} more (--json lists all)")
    return lines


def _kind_rows(report: ValidationReport) -> list[list[str]]:
    """The tensors whose names differ by the layer number only, in one row."""
    kinds: dict[tuple[object, ...], list[TensorReport]] = defaultdict(list)
    for t in report.tensors:
        layers = ".".join("*" if part.isdigit() else part for part in t.name.split("."))
        kinds[(layers, t.shape, t.dtype, t.axis, t.required)].append(t)
    rows = []
    for (kind, shape, dtype, axis, required), tensors in kinds.items():
        size = sum(t.size for t in tensors)
        held = sum(t.holds for t in tensors)
        pattern = str(report.pattern) if report.pattern and held == len(tensors) else f"{held} of {len(tensors)}"
        if report.detected:  # each kind with the finest that it holds
            pattern = ", ".join(sorted({str(t.satisfies[0]) if t.satisfies else "none" for t in tensors}))
        rows.append(
            [
                f"{kind}" if required else f"{kind} (not required)",
                str(len(tensors)),
                "x".join(map(str, shape)) if isinstance(shape, tuple) else "",
                str(dtype),
                str(axis),
                pattern if report.pattern else "none",
                f"{sum(t.groups for t in tensors):,}",
                f"{sum(t.violations for t in tensors):,}",
                f"{sum(t.short for t in tensors):,}",
                f"{sum(t.nonzeros for t in tensors) / size:.4f}" if size else "-",
                tensors[0].tensor_cores,
            ]
        )
    return rows
