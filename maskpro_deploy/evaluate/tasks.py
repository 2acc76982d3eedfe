"""Tasks of lm-evaluation-harness, run as a library (needs the `eval` extra).

Tasks are named as the harness names them; a folder of one's own task files (YAML, with their data next to them) is read first.
Task files may name Python functions, which are then run: read such a folder as you would read a program.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import (
    CheckFailed,
    ConfigError,
    DownloadError,
    FormatError,
    InputError,
    MaskProError,
    check_range,
    first_line,
    in_one_line,
)
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import sha256_file

BOOTSTRAPS = 1000  # resamples for standard errors that have no closed form
SEED = 1234  # of few-shot examples; the harness's own


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What is asked."""

    names: tuple[str, ...]  # of tasks, groups or tags
    path: Path | None = None  # a folder of task files, or None
    num_fewshot: int | None = None  # examples before each question; None leaves it to each task
    limit: int | None = None  # only so many documents of each task; None takes all
    chat: bool = False  # whether prompts go through the model's chat template

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise ConfigError("--tasks is empty.\nName one or more tasks, such as --tasks hellaswag,piqa.")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"--tasks {','.join(self.names)} names a task twice.")
        check_range("--num-fewshot", self.num_fewshot, least=0)
        check_range("--limit", self.limit, least=1)
        if self.path is not None and not self.path.is_dir():
            raise InputError(f"{self.path} does not exist or is not a folder.\nGive --task-path a folder of task files.")

    def to_json(self) -> dict[str, Any]:
        """The settings as they are written with a figure."""
        from importlib.metadata import version

        return {
            "tasks": list(self.names),
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "chat_template": self.chat,
            "fewshot_seed": SEED,
            "harness": f"lm-eval {version('lm_eval')}",
            "task_files_sha256": None if self.path is None else _hash_folder(self.path),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of one task."""

    task: str  # its name
    metric: str  # such as "acc" or "acc_norm"
    filter: str  # how answers were read from the text; "none" where they were not
    value: float | None  # the figure; None where it is not a finite number
    stderr: float | None  # its standard error; None where the harness gives none
    higher_is_better: bool | None  # None where the task does not say
    num_fewshot: int | None  # examples before each question
    documents: int | None  # how many were asked
    version: str | None  # of the task

    @property
    def label(self) -> str:
        """Metric, and filter where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"


class TaskSet:
    """Tasks that are loaded; they can be run on any number of models.

    Args:
        settings: which tasks.

    Raises:
        InputError: a task is unknown, or its files are broken.
        DownloadError: its data cannot be loaded.
        MissingExtraError: the harness is not installed.
    """

    def __init__(self, settings: TaskSettings) -> None:
        require("eval", "running tasks")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.settings = settings
        self._manager = self._find_tasks()

    def run(self, lm: Any) -> tuple[Metric, ...]:
        """Run the tasks on a `HarnessLM`.

        Raises:
            CheckFailed: the harness gave no result.
            DownloadError, InputError: as above.
        """
        from lm_eval.evaluator import evaluate

        loaded = self._load_tasks()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bars; ours say how far it is
                results = evaluate(
                    lm=lm,
                    task_dict=loaded,
                    limit=self.settings.limit,
                    bootstrap_iters=BOOTSTRAPS,
                    log_samples=False,
                    apply_chat_template=self.settings.chat,
                    fewshot_as_multiturn=self.settings.chat,
                )
        except MaskProError:
            raise
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as e:
            raise InputError(f"the tasks {', '.join(self.settings.names)} could not be run: {first_line(e)}") from e
        if results is None:
            raise CheckFailed("the harness gave no result.")
        return _read_metrics(results)

    def _find_tasks(self) -> Any:
        """The harness's task manager: the user's own tasks alone where they are enough (reading all others takes seconds)."""
        from lm_eval.tasks import TaskManager

        path = None if self.settings.path is None else str(self.settings.path)
        try:
            if path is not None:
                manager = TaskManager(include_path=path, include_defaults=False)
                if all(name in manager.all_tasks for name in self.settings.names):
                    return manager
            manager = TaskManager(include_path=path)
        except Exception as e:  # whatever a task file makes the reader stumble over
            raise InputError(f"the task files in {path} cannot be read: {first_line(e)}") from e
        if unknown := [name for name in self.settings.names if name not in manager.all_tasks]:
            self._check_syntax()
            near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=5)
            hint = f" (there is: {', '.join(near)})" if near else ""
            raise InputError(f"there is no task {', '.join(unknown)}{hint}.\nTasks of your own: --task-path FOLDER.")
        return manager

    def _check_syntax(self) -> None:
        """The harness passes over task files that it cannot parse; here they are the likely reason."""
        import yaml

        for file in sorted(self.settings.path.rglob("*.yaml")) if self.settings.path is not None else ():
            try:
                for _ in yaml.parse(file.read_text(encoding="utf-8")):  # syntax alone: nothing is constructed
                    pass
            except (yaml.YAMLError, UnicodeDecodeError) as e:
                raise FormatError(f"{file} cannot be parsed: {in_one_line(e)}") from None

    def _load_tasks(self) -> Any:
        """Fresh tasks with their data: the harness keeps a model's answers in them."""
        import datasets

        datasets.disable_progress_bars()
        try:
            loaded = self._manager.load(list(self.settings.names))
        except (OSError, datasets.exceptions.DatasetsError) as e:  # network errors are OSErrors
            raise DownloadError(f"the data of {', '.join(self.settings.names)} could not be loaded: {first_line(e)}") from e
        except Exception as e:
            raise InputError(f"the tasks {', '.join(self.settings.names)} cannot be loaded: {first_line(e)}") from e
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if self.settings.num_fewshot is not None and own != 0:  # a task that says 0 means it
                task.set_config(key="num_fewshot", value=self.settings.num_fewshot)
            elif own is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        return loaded


def _read_metrics(results: Any) -> tuple[Metric, ...]:
    """The harness's nested result as a flat table."""
    metrics = []
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        better = results.get("higher_is_better", {}).get(task, {})
        count = results.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            metrics.append(
                Metric(
                    task=task,
                    metric=metric,
                    filter=name,
                    value=_read_figure(value),
                    stderr=_read_figure(values.get(f"{metric}_stderr,{name}")),
                    higher_is_better=better.get(metric),
                    num_fewshot=results.get("n-shot", {}).get(task),
                    documents=count.get("effective"),
                    version=_read_version(results.get("versions", {}).get(task)),
                )
            )
    return tuple(metrics)


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _read_figure(value: Any) -> float | None:
    """A number; None for what is none, such as the harness's "N/A"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _read_version(value: Any) -> str | None:
    """A task's version; for one without, the harness gives the kind of its file."""
    return None if value in (None, "Yaml", "N/A") else str(value)
