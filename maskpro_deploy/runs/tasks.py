"""`maskpro-deploy eval --tasks`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.errors import Interrupted
from maskpro_deploy.evaluate.log import AnswerLog
from maskpro_deploy.evaluate.result import TASKS, TaskResult
from maskpro_deploy.evaluate.tasks import Metric, TaskSet, TaskSettings
from maskpro_deploy.lm_eval_model import adapt
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.models import RunConfig, Target

if TYPE_CHECKING:
    from maskpro_deploy.evaluate.harness import Answers


def measure_tasks(
    targets: Sequence[Target],
    reference: Target | None,
    settings: TaskSettings,
    run: RunConfig,
    batch_size: int,
    out: Path | None,
    *,
    force: bool,
) -> TaskResult:
    """Run the tasks on each model, one model after the other; `reference` is one of them, and stands first.

    Raises:
        Interrupted: the user stopped it; the answers so far are in `out`.
    """
    require("eval", "running tasks")
    tasks = TaskSet(settings)
    name = None if reference is None else reference.name
    facts = settings.to_json()
    if out is None:
        metrics = {t.name: _run(t, tasks, run, batch_size, None) for t in targets}
        models: dict[str, Any] = {t.name: {"engine": t.engine(run)} for t in targets}
        return TaskResult(settings=facts, metrics=metrics, models=models, reference=name, environment=capture())
    with AnswerLog(out, {"kind": TASKS, **facts, "reference": name}, force=force) as log:
        for target in targets:
            log.declare(target.name, target.identity(run))
        try:
            for target in targets:
                if target.name not in log.results:
                    figures = _run(target, tasks, run, batch_size, _Answers(log, target.name))
                    log.finish(target.name, [dataclasses.asdict(m) for m in figures])
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; the answers so far are in {out}.\nThe same command goes on there.") from None
    order = sorted((n for n in log.models if n in log.results), key=lambda n: n != name)
    metrics = {n: tuple(Metric(**m) for m in log.results[n]) for n in order}
    models = {n: log.models[n] for n in order}
    return TaskResult(settings=facts, metrics=metrics, models=models, reference=name, environment=capture())


class _Answers:
    """The answers of one model in the log."""

    def __init__(self, log: AnswerLog, model: str) -> None:
        self._log, self._model = log, model

    def get(self, request: str) -> Any:
        return self._log.get(self._model, request)

    def put(self, request: str, answer: Any) -> None:
        self._log.put(self._model, request, answer)


def _run(target: Target, tasks: TaskSet, run: RunConfig, batch_size: int, answers: Answers | None) -> tuple[Metric, ...]:
    meter = Meter(f"{target.name}", "requests")
    try:
        return tasks.run(adapt(target, run, batch_size=batch_size, answers=answers, progress=meter))
    finally:
        meter.close()
