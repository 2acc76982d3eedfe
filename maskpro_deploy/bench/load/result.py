"""The result of a load run as data: what `result.json` holds, with vLLM's field names for each server at each load."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from maskpro_deploy.bench.load.client import Failure
from maskpro_deploy.bench.load.figures import Figures, Limits, latencies_ms
from maskpro_deploy.bench.load.record import Record, Recording
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load, OpenLoop
from maskpro_deploy.bench.load.slo import Slo
from maskpro_deploy.bench.results import wording
from maskpro_deploy.bench.statistics import stats
from maskpro_deploy.bench.sweeps.result import SCHEMA, VERSION

KIND = "serve"
SELF_TEST_CONFIDENCE = 0.997  # a sound harness fails once in 300 points, not once in 20
SAME_WORK = 0.01  # part by which the tokens of two servers' answers may differ
COMPARED = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server as the report names and describes it."""

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


PointKey = tuple[int, str]  # session and label


@dataclass(frozen=True, kw_only=True)  # no slots: comparisons are made once and kept
class Point:
    """One load and what was recorded under it, by server; a comparison has several sub-runs of each."""

    load: Load
    recordings: Mapping[str, tuple[Recording, ...]]

    def figures(self, name: str) -> Figures:
        """One server's figures."""
        return Figures(self.recordings[name])

    @property
    def sessions(self) -> list[int]:
        """The sessions that it was measured in."""
        return sorted({recording.session for several in self.recordings.values() for recording in several})

    @property
    def key(self) -> PointKey:
        """What it is found by: its first session and its label."""
        return self.sessions[0], self.load.label

    def compare(self, metric: str) -> stats.Ratio | None:
        """How the first server's times compare with the second's; None where there are too few, or none."""
        first, second = (
            [self._medians([r for r in several if r.session == s], metric) for s in self.sessions]
            for several in self.recordings.values()
        )
        if not all(
            (times > 0).all() for times in (*first, *second)
        ):  # nan too; tokens that come in one read have no time between
            return None
        return stats.compare_sessions(first, second) if len(first) > 1 else stats.compare(first[0], second[0])

    @cached_property
    def compared(self) -> dict[str, stats.Ratio | None]:
        """All comparisons; throughput only in a closed loop, where the server decides it."""
        if len(self.recordings) < 2:
            return {}
        metrics = (*COMPARED, *(("request_throughput",) if isinstance(self.load, ClosedLoop) else ()))
        return {metric: self.compare(metric) for metric in metrics}

    @cached_property
    def self_test(self) -> stats.Ratio | None:
        """The first server's sub-runs of each block against its other ones; None if there are too few.

        Which of the two counts as the first changes every two blocks, so that drift falls on both sides alike.
        """
        if len(self.recordings) < 2:
            return None
        values = self._medians(next(iter(self.recordings.values())), "e2el")  # (K, 2)
        if not (values > 0).all():
            return None
        turned = np.arange(len(values)) // 2 % 2 == 1
        values[turned] = values[turned, ::-1]
        return stats.compare(values[:, :1], values[:, 1:], confidence=SELF_TEST_CONFIDENCE)

    @staticmethod
    def _medians(recordings: Sequence[Recording], metric: str) -> stats.Array:
        """The time of each sub-run; nan where it has none.  # (K, 2)"""
        times = []
        for recording in recordings:
            figures = Figures((recording,))
            if metric == "request_throughput":
                times.append(recording.duration_s / len(figures.answered) if figures.answered else math.nan)
            else:
                values = [v for r in figures.answered if (v := latencies_ms(r)[metric]) is not None]
                times.append(statistics.median(values) if values else math.nan)
        whole = len(times) // 2 * 2
        return np.asarray(times[:whole], dtype=np.float64).reshape(-1, 2)

    def to_json(self) -> dict[str, Any]:
        """All of it, so that `from_json` gives it back."""
        load = {key: _number(value) for key, value in dataclasses.asdict(self.load).items()}
        recordings = {name: [dataclasses.asdict(r) for r in several] for name, several in self.recordings.items()}
        return {"label": self.load.label, "load": load, "recordings": recordings}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        """The point of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        load = value["load"]
        return cls(
            load=ClosedLoop(**load) if "concurrency" in load else OpenLoop(**{key: float(v) for key, v in load.items()}),
            recordings={name: tuple(_recording(r) for r in several) for name, several in value["recordings"].items()},
        )


def _recording(value: Mapping[str, Any]) -> Recording:
    records = tuple(
        Record(
            **{
                **r,
                "arrivals_s": tuple(r["arrivals_s"]),
                "failure": None if r["failure"] is None else Failure(**r["failure"]),
            }
        )
        for r in value["records"]
    )
    return Recording(**{**value, "records": records, "beats_s": tuple(value["beats_s"])})


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """A whole run.

    Attributes:
        environment: what the generator ran on.
        config: the settings.
        servers: what the load was put on; the first is compared with the second.
        points: the loads in order.
        slo: bounds that goodput counts by, or None.
        limits: where a run stops being valid.
        duration_s: of the run.
        notes: remarks for the reader.
    """

    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    servers: tuple[ServerFacts, ...]
    points: tuple[Point, ...]
    slo: Slo | None
    limits: Limits
    duration_s: float
    notes: tuple[str, ...] = ()

    def merged(self, others: Sequence[LoadResult]) -> LoadResult:
        """This session and others of the same servers and loads as one run."""
        results = (self, *others)
        points = [
            Point(
                load=same[0].load,
                recordings={name: tuple(r for point in same for r in point.recordings[name]) for name in same[0].recordings},
            )
            for same in zip(*(result.points for result in results), strict=True)
        ]
        return dataclasses.replace(
            self,
            environment={
                **self.environment,
                "load_average_1min_after": results[-1].environment.get("load_average_1min_after"),
            },
            points=tuple(points),
            duration_s=sum(result.duration_s for result in results),
            notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
        )

    def reasons(self, point: Point) -> list[str]:
        """Why one load's figures prove nothing."""
        found = []
        for name in point.recordings:
            prefix = f"{name}: " if len(point.recordings) > 1 else ""
            found += [prefix + reason for reason in point.figures(name).invalid_reasons(self.limits)]
        if len(tokens := {name: _mean_tokens(point.figures(name)) for name in point.recordings}) > 1:
            (first, a), (second, b) = tokens.items()
            if abs(a - b) > SAME_WORK * max(a, b):
                found.append(f"{first} and {second} did different amounts of work: {a:.1f} and {b:.1f} tokens an answer.")
        test = point.self_test
        if test is not None and test.differs:
            found.append("self-test: a server measured against itself looked different; something else disturbs the timing.")
        return found

    @cached_property
    def invalid_reasons(self) -> list[str]:
        """Why the figures prove nothing; empty if all may be believed."""
        return [f"{point.load.label}: {reason}" for point in self.points for reason in self.reasons(point)]

    @property
    def valid(self) -> bool:
        """Whether the figures may be believed."""
        return not self.invalid_reasons

    def comparisons(self, point: Point) -> dict[str, stats.Ratio | None]:
        """Metric -> how the first server compares with the second; empty for an invalid run."""
        if not self.valid:
            return {}
        judge = self.comparison_count, self.least_difference
        return {metric: None if ratio is None else ratio.judged(*judge) for metric, ratio in point.compared.items()}

    @property
    def same_kernels(self) -> bool:
        """Whether both servers are known to run the same kernels: on a CPU, from graphs that differ in weights only."""
        graphs = [server.facts.get("graphs_sha256") for server in self.servers]
        return len(graphs) == 2 and graphs[0] is not None and graphs[0] == graphs[1]

    @property
    def comparison_count(self) -> int:
        """How many comparisons the run makes; their verdicts hold together."""
        return sum(len(point.compared) for point in self.points)

    @property
    def least_difference(self) -> float:
        """The smallest difference of interest, as a fraction."""
        return float(self.config.get("least_difference", stats.LEAST_DIFFERENCE))

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

    def flat(self, point: Point, server: ServerFacts) -> dict[str, Any]:
        """One server under one load, as vLLM's `bench serve --save-detailed` writes it, and more."""
        load = point.load
        return {
            "date": self.environment.get("date"),
            "backend": "openai-chat" if self.config.get("endpoint") == "chat" else "openai",
            "label": server.name,
            "model_id": server.facts.get("model_id"),
            "tokenizer_id": server.facts.get("model_id"),
            "request_rate": _number(load.rate) if isinstance(load, OpenLoop) else "inf",
            "burstiness": _number(load.burstiness) if isinstance(load, OpenLoop) else 1.0,
            "max_concurrency": load.concurrency if isinstance(load, ClosedLoop) else None,
            "latencies_from": "scheduled send time" if isinstance(load, OpenLoop) else "actual send time",
            **point.figures(server.name).to_json(self.slo),
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": KIND,
            "date": self.environment.get("date"),
            "valid": self.valid,
            "invalid_reasons": self.invalid_reasons,
            "duration": self.duration_s,
            "config": dict(self.config),
            "slo_ms": dict(self.slo.bounds_ms) if self.slo is not None else None,
            "limits": dataclasses.asdict(self.limits),
            "arms": [{"name": server.name, **server.facts} for server in self.servers],
            "points": [self._point_json(point) for point in self.points],
            "verdicts": wording.family_json(self.comparison_count, self.least_difference),
            "notes": self.all_notes,
            "environment": dict(self.environment),
        }

    def _point_json(self, point: Point) -> dict[str, Any]:
        test = point.self_test
        return {
            "label": point.load.label,
            "mode": "closed" if isinstance(point.load, ClosedLoop) else "open",
            "invalid_reasons": self.reasons(point),
            "arms": [self.flat(point, server) for server in self.servers],
            "comparisons": [
                {
                    "candidate": self.servers[0].name,
                    "baseline": self.servers[1].name,
                    "metric": metric,
                    "same_kernels": self.same_kernels,
                    **(dataclasses.asdict(ratio) if ratio else {"verdict": None}),
                }
                for metric, ratio in self.comparisons(point).items()
            ],
            "self_test": dataclasses.asdict(test) if test is not None else None,
        }


def _mean_tokens(figures: Figures) -> float:
    """Tokens of an answer."""
    return figures.output_tokens / max(1, len(figures.answered))


def _number(value: float) -> float | str:
    """JSON has no infinity; vLLM writes it as a word."""
    return value if math.isfinite(value) else "inf"
