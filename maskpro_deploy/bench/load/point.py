"""One load, what was recorded under it, and how two servers compare there."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskpro_deploy.bench.load.figures import Figures, compute_latencies_ms
from maskpro_deploy.bench.load.sending.client import Failure
from maskpro_deploy.bench.load.sending.record import Record, Recording
from maskpro_deploy.bench.load.sending.schedule import ClosedLoop, Load, OpenLoop
from maskpro_deploy.bench.statistics import stats

SELF_TEST_CONFIDENCE = 0.997  # a sound harness fails once in 300 points, not once in 20
COMPARED = ("ttft", "tpot", "e2el")

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
                values = [v for r in figures.answered if (v := compute_latencies_ms(r)[metric]) is not None]
                times.append(statistics.median(values) if values else math.nan)
        whole = len(times) // 2 * 2
        return np.asarray(times[:whole], dtype=np.float64).reshape(-1, 2)

    def to_json(self) -> dict[str, Any]:
        """All of it, so that `from_json` gives it back."""
        load = {key: number_json(value) for key, value in dataclasses.asdict(self.load).items()}
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
            recordings={name: tuple(_read_recording(r) for r in several) for name, several in value["recordings"].items()},
        )


def _read_recording(value: Mapping[str, Any]) -> Recording:
    records = tuple(
        Record(
            **{**r, "arrivals_s": tuple(r["arrivals_s"]), "failure": None if r["failure"] is None else Failure(**r["failure"])}
        )
        for r in value["records"]
    )
    return Recording(**{**value, "records": records, "beats_s": tuple(value["beats_s"])})


def number_json(value: float) -> float | str:
    """JSON has no infinity; vLLM writes it as a word."""
    return value if math.isfinite(value) else "inf"
