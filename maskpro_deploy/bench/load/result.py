"""The result of a load run as data: what `result.json` holds, with vLLM's field names for each server at each load."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.load.columns import ServerFigures, figures_json
from maskpro_deploy.bench.load.figures import Limits, Slo
from maskpro_deploy.bench.load.point import Point, number_json
from maskpro_deploy.bench.load.schedule import ClosedLoop, OpenLoop
from maskpro_deploy.bench.results.run import RunResult, pair_json, ratio_json

KIND = "serve"
SAME_WORK = 0.01  # part by which the tokens of two servers' answers may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server as the report describes it."""

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoadResult(RunResult):
    """A whole run."""

    kind: str = KIND
    servers: tuple[ServerFacts, ...]  # what the load was put on; the first is compared with the second
    points: tuple[Point, ...]  # the loads in order
    slo: Slo | None  # bounds that goodput counts by, or None
    limits: Limits  # where a run stops being valid
    notes: tuple[str, ...] = ()  # remarks for the reader

    def merge(self, others: Sequence[LoadResult]) -> LoadResult:
        """This session and others of the same servers and loads as one run."""
        results = (self, *others)
        points = []
        for same in zip(*(result.points for result in results), strict=True):
            together = {name: tuple(r for point in same for r in point.recordings[name]) for name in same[0].recordings}
            points.append(Point(load=same[0].load, recordings=together))
        return dataclasses.replace(
            self,
            environment={**self.environment, "load_average_1min_after": results[-1].environment.get("load_average_1min_after")},
            points=tuple(points),
            duration_s=sum(result.duration_s for result in results),
            notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
        )

    def explain_invalid(self, point: Point) -> list[str]:
        reasons = []
        answers = {name: point.figures(name) for name in point.recordings}
        for name, figures in answers.items():
            prefix = f"{name}: " if len(answers) > 1 else ""
            reasons += [prefix + reason for reason in figures.invalid_reasons(self.limits)]
        if len(tokens := {name: f.output_tokens / max(1, len(f.answered)) for name, f in answers.items()}) > 1:
            (first, a), (second, b) = tokens.items()
            if abs(a - b) > SAME_WORK * max(a, b):
                reasons.append(f"{first} and {second} did different amounts of work: {a:.1f} and {b:.1f} tokens an answer.")
        test = point.self_test
        if test is not None and test.differs:
            reasons.append("self-test: a server measured against itself looked different; something else disturbs the timing.")
        return reasons

    @cached_property
    def invalid_reasons(self) -> list[str]:
        return [f"{point.load.label}: {reason}" for point in self.points for reason in self.explain_invalid(point)]

    def comparisons(self, point: Point) -> dict[str, stats.Ratio | None]:
        """Metric -> how the first server compares with the second; empty for an invalid run."""
        if not self.valid:
            return {}
        return {metric: self.judge(ratio) for metric, ratio in point.compared.items()}

    @property
    def same_kernels(self) -> bool:
        """Whether both servers are known to run the same kernels: on a CPU, from graphs that differ in weights only."""
        graphs = [server.facts.get("graphs_sha256") for server in self.servers]
        return len(graphs) == 2 and graphs[0] is not None and graphs[0] == graphs[1]

    @property
    def comparison_count(self) -> int:
        return sum(len(point.compared) for point in self.points)

    @property
    def all_notes(self) -> list[str]:
        """Remarks on the whole run and on how tokens were counted, each once."""
        output_len = self.config.get("output_len")
        counted = [
            f"{name}, {point.load.label}: {note}"
            for point in self.points
            for name in point.recordings
            for note in point.figures(name).notes(output_len)
        ]
        return [*dict.fromkeys(self.notes), *counted]

    @property
    def rows(self) -> list[ServerFigures]:
        return [self._row(point, server) for point in self.points for server in self.servers]

    def _row(self, point: Point, server: ServerFacts) -> ServerFigures:
        return ServerFigures(load=point.load.label, server=server.name, figures=point.figures(server.name), slo=self.slo)

    def _flat_json(self, point: Point, server: ServerFacts) -> dict[str, Any]:
        """One server under one load, as vLLM's `bench serve --save-detailed` writes it, and more."""
        load = point.load
        return {
            "date": self.environment.get("date"),
            "backend": "openai-chat" if self.config.get("endpoint") == "chat" else "openai",
            "label": server.name,
            "model_id": server.facts.get("model_id"),
            "tokenizer_id": server.facts.get("model_id"),
            "request_rate": number_json(load.rate) if isinstance(load, OpenLoop) else "inf",
            "burstiness": number_json(load.burstiness) if isinstance(load, OpenLoop) else 1.0,
            "max_concurrency": load.concurrency if isinstance(load, ClosedLoop) else None,
            "latencies_from": "scheduled send time" if isinstance(load, OpenLoop) else "actual send time",
            **figures_json(self._row(point, server)),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "slo_ms": dict(self.slo.bounds_ms) if self.slo is not None else None,
            "limits": dataclasses.asdict(self.limits),
            "arms": [{"name": server.name, **server.facts} for server in self.servers],
            "points": [self._point_json(point) for point in self.points],
            "notes": self.all_notes,
        }

    def _point_json(self, point: Point) -> dict[str, Any]:
        test, names = point.self_test, [server.name for server in self.servers]
        return {
            "label": point.load.label,
            "mode": "closed" if isinstance(point.load, ClosedLoop) else "open",
            "invalid_reasons": self.explain_invalid(point),
            "arms": [self._flat_json(point, server) for server in self.servers],
            "comparisons": [
                {**pair_json(names[0], names[1], self.same_kernels, metric=metric), **ratio_json(ratio)}
                for metric, ratio in self.comparisons(point).items()
            ],
            "self_test": dataclasses.asdict(test) if test is not None else None,
        }
