"""The runs of `eval`: models are found, measured by a protocol of perplexity or on tasks, and their result is written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.errors import ConfigError, InputError, Interrupted
from maskpro_deploy.evaluate.log import AnswerLog, WindowLog
from maskpro_deploy.evaluate.result import PERPLEXITY, TASKS, PerplexityResult, Result, TaskResult, markdown, render_text
from maskpro_deploy.evaluate.scores import WindowScore, score_windows
from maskpro_deploy.evaluate.tasks import Metric, TaskSet, TaskSettings
from maskpro_deploy.lm_eval_model import adapt
from maskpro_deploy.reports.benchmarks import write_run
from maskpro_deploy.reports.quality import build_page
from maskpro_deploy.runs.output import emit_result
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.models import RunConfig, Target, find_target, open_target

if TYPE_CHECKING:
    from maskpro_deploy.data import Text
    from maskpro_deploy.evaluate.harness import Answers
    from maskpro_deploy.evaluate.protocol import EvalProtocol, Windows
    from maskpro_deploy.evaluate.published import ChosenProtocol

Measure = Callable[[Sequence[Target], Target | None], Result]
# what a result has to share with another to be compared with it
_SAME = ("name", "data_sha256", "window", "stride", "joining", "bos", "special_tokens", "windows")


def evaluate_models(measure: Measure, models: Sequence[str], against: str | None, *, out: Path | None, as_json: bool) -> None:
    """Measure models, write the report, print.

    `measure` is given the models, the reference first, and the reference. `out` has the report, and the log to go on from.

    Raises:
        InputError: a model is named twice, or there is none of that name.
        MaskProError: as `measure`.
    """
    names = [*([against] if against is not None else []), *models]
    if len(set(names)) != len(names):
        raise InputError(f"the same target is named twice: {' '.join(names)}.\nName each one once.")
    if out is not None:
        require("report", "writing report.html")
    targets = [find_target(name) for name in names]
    result = measure(targets, targets[0] if against is not None else None)
    if out is not None:
        write_run(out, result.to_json(), markdown(result), build_page(result))
    emit_result(result, render_text(result), out=out, as_json=as_json)


def measure_perplexity(
    targets: Sequence[Target],
    reference: Target | None,
    protocol: ChosenProtocol,
    run: RunConfig,
    out: Path | None,
    *,
    force: bool,
) -> PerplexityResult:
    """Score the windows of the protocol with each model; `reference` is one of them, and stands first.

    Raises:
        ConfigError: a model takes no window of this length.
        InputError: two of them turn the text into different tokens.
        Interrupted: the user stopped it; what was scored is in `out`.
    """
    text = protocol.load()
    windows = _read_common_windows(targets, protocol.settings, text)
    facts = protocol.to_json(text, windows, targets[0].tokenizer)
    name = None if reference is None else reference.name
    if out is None:
        scores = _score(targets, windows, name, run, None)
        models = {t.name: {"engine": t.engine(run)} for t in targets}
        return PerplexityResult(protocol=facts, scores=scores, models=models, reference=name, environment=capture())
    header = {"kind": PERPLEXITY, **{key: facts[key] for key in _SAME}, "reference": name, "tokens": _hash_tokens(windows.tokens)}
    count = len(windows.tokens)
    with WindowLog(out, header, force=force) as log:
        for target in targets:
            log.declare(target.name, target.identity(run))
        left = [t for t in targets if log.scores(t.name, count) is None]
        if left and reference is not None and reference not in left:
            left.insert(0, reference)  # it has to run again, for the distances of the others
        try:
            _score(left, windows, name, run, log)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; what was scored is in {out}.\nThe same command goes on there.") from None
    return _combine_logs(log, facts, name, count)


def _score(
    targets: Sequence[Target], windows: Windows, reference: str | None, run: RunConfig, record: WindowLog | None
) -> dict[str, list[WindowScore]]:
    if not targets:
        return {}
    lms = {target.name: open_target(target, run) for target in targets}
    for name, lm in lms.items():  # an engine may take less than its model
        _check_length(windows.tokens.shape[1], name, lm.max_length)
    with closing(Meter("evaluating", "windows")) as meter:
        return score_windows(lms, windows.tokens, meter, reference=reference, stride=windows.stride, record=record)


def _combine_logs(log: WindowLog, facts: dict[str, Any], reference: str | None, count: int) -> PerplexityResult:
    """All that the folder holds, from this run and from earlier ones."""
    scored = {name: log.scores(name, count) for name in sorted(log.models, key=lambda name: name != reference)}
    scores = {name: windows for name, windows in scored.items() if windows is not None}
    why = "was stopped before its end and is left out: name it again to finish it."
    notes = tuple(f"{name} {why}" for name in scored if name not in scores)
    models = {name: log.models[name] for name in scores}
    return PerplexityResult(protocol=facts, scores=scores, models=models, reference=reference, environment=capture(), notes=notes)


def _read_common_windows(targets: Sequence[Target], settings: EvalProtocol, text: Text) -> Windows:
    """The windows, which must be the same for all targets."""
    windows = []
    for target in targets:
        _check_length(settings.window, target.name, target.max_length)
        windows.append(settings.windows(text, target.tokenizer, separator=target.separator, bos_token=target.bos_token))
        if not np.array_equal(windows[0].tokens, windows[-1].tokens):
            raise InputError(
                f"{targets[0].name} and {target.name} turn the text into different tokens: their perplexities would not "
                f"compare.\nMeasure models with different tokenizers in separate runs."
            )
    return windows[0]


def _check_length(window: int, name: str, longest: int | None) -> None:
    if longest is not None and window > longest:
        raise ConfigError(
            f"--window {window} is out of range: {name} takes {longest} tokens at most.\n"
            f"Give a shorter --window; the figure then compares with no figure of the longer one."
        )


def _hash_tokens(tokens: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest()


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
        metrics = {t.name: _run_tasks(t, tasks, run, batch_size, None) for t in targets}
        models: dict[str, Any] = {t.name: {"engine": t.engine(run)} for t in targets}
        return TaskResult(settings=facts, metrics=metrics, models=models, reference=name, environment=capture())
    with AnswerLog(out, {"kind": TASKS, **facts, "reference": name}, force=force) as log:
        for target in targets:
            log.declare(target.name, target.identity(run))
        try:
            for target in targets:
                if target.name not in log.results:
                    figures = _run_tasks(target, tasks, run, batch_size, _Answers(log, target.name))
                    log.finish(target.name, [dataclasses.asdict(m) for m in figures])
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; the answers so far are in {out}.\nThe same command goes on there.") from None
    finished = sorted((n for n in log.models if n in log.results), key=lambda n: n != name)
    metrics = {n: tuple(Metric(**m) for m in log.results[n]) for n in finished}
    models = {n: log.models[n] for n in finished}
    return TaskResult(settings=facts, metrics=metrics, models=models, reference=name, environment=capture())


class _Answers:
    """The answers of one model in the log."""

    def __init__(self, log: AnswerLog, model: str) -> None:
        self._log, self._model = log, model

    def get(self, request: str) -> Any:
        return self._log.get(self._model, request)

    def put(self, request: str, answer: Any) -> None:
        self._log.put(self._model, request, answer)


def _run_tasks(target: Target, tasks: TaskSet, run: RunConfig, batch_size: int, answers: Answers | None) -> tuple[Metric, ...]:
    with closing(Meter(f"{target.name}", "requests")) as meter:
        return tasks.run(adapt(target, run, batch_size=batch_size, answers=answers, progress=meter))
