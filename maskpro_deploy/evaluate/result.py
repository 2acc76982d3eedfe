"""A finished evaluation as data, as a table, and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.evaluate.figures import Comparison, Perplexity, comparison_of, perplexity_of
from maskpro_deploy.evaluate.published import describe_protocol
from maskpro_deploy.evaluate.scores import WindowScore
from maskpro_deploy.evaluate.tasks import Metric
from maskpro_deploy.system.output import table

SCHEMA, VERSION = "maskpro-deploy/eval", 1
RESULT_FILE, MARKDOWN_FILE = "result.json", "report.md"
PERPLEXITY, TASKS = "perplexity", "tasks"
UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelResult:
    """What the results of several models have in common."""

    models: Mapping[str, Mapping[str, Any]]  # name -> what runs it and what it is
    reference: str | None = None  # the name of the model that the others are compared with, or None
    environment: Mapping[str, Any] | None = None  # what it ran on, or None
    notes: tuple[str, ...] = ()  # remarks for the reader

    def _document(self, kind: str, asked: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The content of `result.json`, given what was asked by key, and each model's own figures by name."""
        rows = {name: {"name": name, **self.models.get(name, {}), **own} for name, own in figures.items()}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": kind,
            **asked,
            "reference": rows.get(self.reference) if self.reference is not None else None,
            "targets": [row for name, row in rows.items() if name != self.reference],
            "notes": list(self.notes),
            "environment": self.environment and dict(self.environment),
        }

    def _label(self, name: str) -> str:
        return f"{name} (reference)" if name == self.reference else name


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityResult(_ModelResult):
    """Perplexity of several models on the same windows."""

    protocol: Mapping[str, Any]  # the facts of `ChosenProtocol.to_json`
    scores: Mapping[str, Sequence[WindowScore]]  # name -> scores of all windows, the reference first if there is one

    @property
    def perplexities(self) -> dict[str, Perplexity]:
        """Each model's perplexity."""
        return {name: perplexity_of(scores) for name, scores in self.scores.items()}

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Each model compared with the reference; empty without one."""
        if self.reference is None or self.reference not in self.scores:
            return {}
        own = self.scores[self.reference]
        return {name: comparison_of(scores, own) for name, scores in self.scores.items() if name != self.reference}

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        compared, figures = self.comparisons, {}
        for name, value in self.perplexities.items():
            figures[name] = row = dataclasses.asdict(value)
            if name in compared:
                comparison = compared[name]
                row["against_reference"] = {
                    f.name: getattr(comparison, f.name)
                    for f in dataclasses.fields(comparison)
                    if f.name not in ("model", "reference")
                }
                row["window_kl"] = [s.kl / s.tokens for s in self.scores[name] if s.kl is not None]
        return self._document(PERPLEXITY, {"protocol": dict(self.protocol)}, figures)

    @property
    def header(self) -> list[str]:
        """Columns of the table."""
        own = ["model", "perplexity", "±", "bits/token"]
        return [*own, "ratio", "±", "KL (nats)", "±", "same top token"] if self.reference is not None else own

    def rows(self) -> list[list[str]]:
        """The table, one line a model."""
        compared, lines = self.comparisons, []
        for name, value in self.perplexities.items():
            line = [self._label(name), f"{value.perplexity:.3f}", _format_error(value.stderr), f"{value.bits_per_token:.3f}"]
            if name == self.reference:
                line += ["1", UNKNOWN, "0", UNKNOWN, "100.0 %"]
            elif name in compared:
                c = compared[name]
                line += [f"{c.ratio:.4f}", _format_error(c.ratio_stderr), f"{c.kl:.3g}", _format_error(c.kl_stderr)]
                line += [f"{100 * c.top1_agreement:.1f} %"]
            lines.append(line)
        return lines

    def statements(self) -> list[str]:
        """What has to be said below the table."""
        return [*describe_protocol(dict(self.protocol)).splitlines(), *self.notes]

    def headline(self) -> str:
        """The result in one sentence."""
        perplexities, compared = self.perplexities, self.comparisons
        if not compared:
            return "; ".join(f"{name}: perplexity {value.perplexity:.2f}" for name, value in perplexities.items()) + "."
        parts = [f"{name} has {c.ratio:.3f}x the perplexity ({c.model.perplexity:.2f})" for name, c in compared.items()]
        return f"Against {self.reference} ({perplexities[str(self.reference)].perplexity:.2f}): {'; '.join(parts)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult(_ModelResult):
    """Tasks on several models."""

    settings: Mapping[str, Any]  # what was asked
    metrics: Mapping[str, Sequence[Metric]]  # name of a model -> its figures; the reference first if there is one

    def to_json(self) -> dict[str, Any]:
        figures = {name: {"metrics": [dataclasses.asdict(m) for m in metrics]} for name, metrics in self.metrics.items()}
        return self._document(TASKS, {"settings": dict(self.settings)}, figures)

    @property
    def header(self) -> list[str]:
        names = [self._label(name) for name in self.metrics]
        return ["task", "metric", "shots", "documents", *(cell for name in names for cell in (name, "±"))]

    def rows(self) -> list[list[str]]:
        """The table, one line a task and metric."""
        by_model = {name: {(m.task, m.label): m for m in metrics} for name, metrics in self.metrics.items()}
        keys = list(dict.fromkeys(key for metrics in by_model.values() for key in metrics))
        lines = []
        for key in keys:
            first = next(metrics[key] for metrics in by_model.values() if key in metrics)
            line = [first.task, first.label, _format_known(first.num_fewshot), _format_known(first.documents)]
            for metrics in by_model.values():
                metric = metrics.get(key)
                line += [UNKNOWN, UNKNOWN] if metric is None else [_format_figure(metric.value), _format_error(metric.stderr)]
            lines.append(line)
        return lines

    def statements(self) -> list[str]:
        s = self.settings
        parts = [str(s["harness"])]
        parts.append("examples as each task says" if s["num_fewshot"] is None else f"{s['num_fewshot']} examples")
        parts.append("all documents" if s["limit"] is None else f"the first {s['limit']} documents of each task")
        parts.append("with the chat template" if s["chat_template"] else "no chat template")
        limited = [] if s["limit"] is None else ["Limited runs are for trying out: they compare with no published figure."]
        return [f"{', '.join(parts)}; ± is one standard error, as the harness gives it.", *limited, *self.notes]

    def headline(self) -> str:
        names = list(dict.fromkeys(m.task for metrics in self.metrics.values() for m in metrics))
        return f"{', '.join(names)} on {', '.join(self.metrics)}."


Result = PerplexityResult | TaskResult


def render_text(result: Result) -> str:
    """The result as it is printed."""
    return "\n".join([table(result.rows(), result.header), "", *result.statements()])


def markdown(result: Result) -> str:
    """The result as Markdown."""
    cells = [result.header, ["---"] * len(result.header), *result.rows()]
    body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells)
    points = "\n".join(f"- {line}" for line in result.statements())
    lines = ["# Evaluation", result.headline(), body, points]
    if result.environment is not None:
        lines.append(f"Made with `{result.environment.get('command_line')}` on {result.environment.get('date')}.")
    return "\n\n".join(lines) + "\n"


def _format_error(value: float | None) -> str:
    """A standard error with two digits."""
    return UNKNOWN if value is None else f"{value:.2g}"


def _format_figure(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _format_known(value: object) -> str:
    return UNKNOWN if value is None else str(value)
