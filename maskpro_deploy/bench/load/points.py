"""Finished points of a sweep on disk, one JSON line each, so that an interrupted sweep loses at most the point it was at.

They lie in a work folder beside the report that they are for. Its first line is what the points depend on: a run with other
settings does not go on from them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.load.point import Point, PointKey
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import disk_errors

POINTS_FILE = "points.jsonl"


class PointsFile:
    """The points of a run that is not over.

    Args:
        out: folder of the report.
        settings: what the points depend on, as JSON values.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.folder = out.resolve().with_name(f"{out.resolve().name}.unfinished")
        self._path = self.folder / POINTS_FILE
        self._head = json.dumps(dict(settings), sort_keys=True)

    def begin(self, *, resume: bool, force: bool) -> dict[PointKey, Point]:
        """Start or go on; the points that are finished.

        Raises:
            InputError: there is an unfinished run and neither `resume` nor `force`, or it had other settings.
            FormatError: the file is damaged.
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
        """Whether there is a point on disk."""
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
