"""Results on disk as they come: a file of JSON lines that only grows, one header and then a line for each result.

A run that was stopped resumes where it was, and a later run adds to what is there, by the same rule: what the file holds is not
done again. The header says what the results were measured with; a run that would measure something else is refused. A line that
was cut off by a crash is dropped. The file is locked while a run writes to it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.evaluate.scores import WindowScore
from maskpro_deploy.system.files import disk_errors

LOG_FILE = "results.jsonl"
SCHEMA = "maskpro-deploy/eval-log"
_RESULTS = "results"


class ResultLog:
    """The file of one result folder; results belong to models, which are known by name and content.

    Args:
        folder: made if it does not exist.
        header: what is measured and how; equal for all runs that share the file.
        force: forget what is there.

    Attributes:
        models: name -> what it is, in the order in which they were declared.

    Raises:
        InputError: the folder holds something else, results of another kind, or another run writes to it.
        FormatError: the file is damaged.
        DiskFullError: no space left.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = folder / LOG_FILE
        self._force = force
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is not a folder.\nChoose another --out.")
        if not force and not self.path.exists() and folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"{folder} exists already and holds no evaluation.\nChoose another --out, or write there with --force."
            )
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b")
        try:
            self._lock()
            rows = self._read(header)
        except BaseException:
            self._file.close()
            raise
        self.models: dict[str, dict[str, Any]] = {}
        self._kept: dict[tuple[str, str | int], dict[str, Any]] = {}  # by model, and window or request
        for row in rows:
            self._remember(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def declare(self, name: str, facts: Mapping[str, Any]) -> None:
        """Say what a model is.

        Raises:
            InputError: there are results of another model under this name.
        """
        if name not in self.models:
            self._add({"model": name, "facts": dict(facts)})
        for key, value in facts.items():
            if (before := self.models[name].get(key)) != value:
                raise InputError(
                    f"{self.path.parent} has results of another {name}: {key.replace('_', ' ')} {before} there, {value} "
                    "here.\nChoose another --out, or replace it with --force."
                )

    def close(self) -> None:
        """Make all of it durable, and let other runs in."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._file.close()

    def _add(self, row: dict[str, Any]) -> None:
        self._write(row)
        self._remember(row)

    def _remember(self, row: dict[str, Any]) -> None:
        if "facts" in row:
            self.models[row["model"]] = row["facts"]
        else:
            self._kept[row["model"], row.get("window", row.get("request", _RESULTS))] = row

    def _write(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run writes to {self.path.parent} now.\nWait for it, or choose another --out.") from None

    def _read(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._force:
            self._file.truncate(0)
        self._file.seek(0)
        whole = self._file.read()
        end = whole.rfind(b"\n") + 1
        self._file.truncate(end)
        try:
            rows = [json.loads(line) for line in whole[:end].splitlines()]
            _check_rows(rows[1:])
        except ValueError as e:
            raise FormatError(f"{self.path} is damaged: {e}\nReplace it with --force.") from e
        wanted = {"schema": SCHEMA, **header}
        if not rows:
            self._write(wanted)
            return []
        self._check_header(rows[0], json.loads(json.dumps(wanted)))
        return rows[1:]

    def _check_header(self, header: Any, wanted: dict[str, Any]) -> None:
        if not isinstance(header, dict) or header.get("schema") != SCHEMA:
            raise InputError(f"{self.path} is not the log of an evaluation.\nChoose another --out, or replace it with --force.")
        for key in [*wanted, *header]:
            if header.get(key) != wanted.get(key):
                raise InputError(
                    f"{self.path.parent} holds results of another protocol: {key.replace('_', ' ')} is {header.get(key)} there, "
                    f"{wanted.get(key)} here.\nMeasure with the same, choose another --out, or replace it with --force."
                )


def _check_rows(rows: list[Any]) -> None:
    """Refuse what this module cannot have written.

    Raises:
        ValueError: naming the line.
    """
    needed = {"facts": {"facts"}, "window": {"window", "tokens", "nll"}, "request": {"request", "answer"}, "results": {"results"}}
    for number, row in enumerate(rows, start=2):
        kinds = [k for k in needed if k in row] if isinstance(row, dict) and isinstance(row.get("model"), str) else []
        if len(kinds) != 1 or not needed[kinds[0]] <= set(row):
            raise ValueError(f"line {number} is not a result")


class WindowLog(ResultLog):
    """Scores of windows: the `Record` of `score_windows`."""

    def get(self, model: str, window: int) -> WindowScore | None:
        row = self._kept.get((model, window))
        if row is None:
            return None
        return WindowScore(tokens=row["tokens"], nll=row["nll"], kl=row.get("kl"), agreed=row.get("agreed"))

    def put(self, model: str, window: int, score: WindowScore) -> None:
        distance = {} if score.kl is None else {"kl": score.kl, "agreed": score.agreed}
        self._add({"model": model, "window": window, "tokens": score.tokens, "nll": score.nll, **distance})

    def scores(self, model: str, windows: int) -> list[WindowScore] | None:
        """All scores of a model, or None if some are missing."""
        scores = [score for window in range(windows) if (score := self.get(model, window)) is not None]
        return scores if len(scores) == windows else None


class AnswerLog(ResultLog):
    """Answers of models to requests of lm-evaluation-harness, and the results of whole models."""

    def get(self, model: str, request: str) -> Any:
        """The answer, or None."""
        row = self._kept.get((model, request))
        return None if row is None else row["answer"]

    def put(self, model: str, request: str, answer: Any) -> None:
        self._add({"model": model, "request": request, "answer": answer})

    def finish(self, model: str, results: Any) -> None:
        """Keep a model's results."""
        self._add({"model": model, "results": results})

    @property
    def results(self) -> dict[str, Any]:
        """The results of the models that are finished."""
        return {model: self._kept[model, _RESULTS]["results"] for model in self.models if (model, _RESULTS) in self._kept}
