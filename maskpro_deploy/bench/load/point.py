"""One load, what was recorded under it, and how two servers compare there; and the finished points of a sweep on disk.

The points lie in a work folder next to the report that they are for, one JSON line each, so that an interrupted sweep loses at
most the point it was at. The first line is what they depend on: a run with other settings does not go on from them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.load.client import Failure, Record, Recording
from maskpro_deploy.bench.load.figures import METRICS, Figures, compute_latencies_ms
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load, OpenLoop
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import disk_errors

SELF_TEST_CONFIDENCE = 0.997  # a sound harness fails once in 300 points, not once in 20

PointKey = tuple[int, str]  # session and label


@dataclass(frozen=True, kw_only=True)  # no slots: comparisons are made once and kept
class Point:
    """One load and what was recorded under it, by server; a comparison has several sub-runs of each."""

    load: Load
    recordings: Mapping[str, tuple[Recording, ...]]

    def figures(self, name: str) -> Figures:
        return Figures(self.recordings[name])

    @property
    def sessions(self) -> list[int]:
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
        if not all((times > 0).all() for times in (*first, *second)):  # nan too; tokens of one read have no time between
            return None
        return stats.compare_sessions(first, second) if len(first) > 1 else stats.compare(first[0], second[0])

    @cached_property
    def compared(self) -> dict[str, stats.Ratio | None]:
        """All comparisons; throughput only in a closed loop, where the server decides it."""
        if len(self.recordings) < 2:
            return {}
        metrics = (*METRICS, *(("request_throughput",) if isinstance(self.load, ClosedLoop) else ()))
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
        """The point of `to_json`; a `KeyError`, `TypeError` or `ValueError` where it is none."""
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


POINTS_FILE = "points.jsonl"


class PointsFile:
    """The points of a run that is not over: for the report at `out`, with the settings (JSON values) that they depend on."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.folder = out.resolve().with_name(f"{out.resolve().name}.unfinished")
        self._path = self.folder / POINTS_FILE
        self._head = json.dumps(dict(settings), sort_keys=True)

    def begin(self, *, resume: bool, force: bool) -> dict[PointKey, Point]:
        """Start or go on; the points that are finished.

        An `InputError` for an unfinished run and neither `resume` nor `force`, or one with other settings; a `FormatError` for a
        damaged file.
        """
        if self._path.exists() and not resume and not force:
            raise InputError(f"{self.folder} holds an unfinished run.\nGo on with it with --resume, or start again with --force.")
        if resume and self._path.exists():
            return self._read()
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path.write_text(self._head + "\n", encoding="utf-8")
        return {}

    def _read(self) -> dict[PointKey, Point]:
        text = self._path.read_text(encoding="utf-8")
        head, *lines = text.split("\n")
        if head != self._head:
            raise InputError(
                f"{self.folder} holds a run with other settings.\nRepeat those, or start again with --force instead of --resume."
            )
        whole = text[: text.rindex("\n") + 1]  # a line that was cut short is a point that is measured again
        if whole != text:
            self._path.write_text(whole, encoding="utf-8")
            lines = lines[:-1]
        points = {}
        for number, line in enumerate(filter(None, lines), start=2):
            try:
                point = Point.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise FormatError(f"{self._path}, line {number}: no point of a sweep.\nStart again with --force.") from e
            points[point.key] = point
        return points

    @property
    def any_finished(self) -> bool:
        return self._path.exists() and self._path.read_bytes().count(b"\n") > 1

    def add(self, point: Point) -> None:
        """Append a finished point, durably."""
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(point.to_json(), allow_nan=False) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def finish(self) -> None:
        """The report is written: the points are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
