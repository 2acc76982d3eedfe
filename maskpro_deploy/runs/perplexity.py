"""`maskpro-deploy eval` without tasks: perplexity by a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskpro_deploy.bench.environment import capture
from maskpro_deploy.errors import ConfigError, InputError, Interrupted
from maskpro_deploy.evaluate.log import WindowLog
from maskpro_deploy.evaluate.result import PERPLEXITY, PerplexityResult
from maskpro_deploy.evaluate.scores import WindowScore, score_windows
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.models import RunConfig, Target, open_target

if TYPE_CHECKING:
    from maskpro_deploy.data import Text
    from maskpro_deploy.evaluate.protocol import EvalProtocol, Windows
    from maskpro_deploy.evaluate.published import ChosenProtocol

# what a result has to share with another to be compared with it
_SAME = ("name", "data_sha256", "window", "stride", "joining", "bos", "special_tokens", "windows")


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
        Interrupted: the user stopped it; what was scored is in `out`.
    """
    text = protocol.load()
    windows = read_common_windows(targets, protocol.settings, text)
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
    meter = Meter("evaluating", "windows")
    try:
        return score_windows(lms, windows.tokens, meter, reference=reference, stride=windows.stride, record=record)
    finally:
        meter.close()


def _combine_logs(log: WindowLog, facts: dict[str, Any], reference: str | None, count: int) -> PerplexityResult:
    """All that the folder holds, from this run and from earlier ones."""
    order = sorted(log.models, key=lambda name: name != reference)
    scores, notes = {}, []
    for name in order:
        windows = log.scores(name, count)
        if windows is None:
            notes.append(f"{name} was stopped before its end and is left out: name it again to finish it.")
        else:
            scores[name] = windows
    models = {name: log.models[name] for name in scores}
    return PerplexityResult(
        protocol=facts, scores=scores, models=models, reference=reference, environment=capture(), notes=tuple(notes)
    )


def read_common_windows(targets: Sequence[Target], settings: EvalProtocol, text: Text) -> Windows:
    """The windows, which must be the same for all targets.

    Raises:
        ConfigError: a model takes no window of this length.
        InputError: two of them turn the text into different tokens.
    """
    common: Windows | None = None
    for target in targets:
        _check_length(settings.window, target.name, target.max_length)
        own = settings.windows(text, target.tokenizer, separator=target.separator, bos_token=target.bos_token)
        if common is None:
            common = own
        elif not np.array_equal(common.tokens, own.tokens):
            raise InputError(
                f"{targets[0].name} and {target.name} turn the text into different tokens: their perplexities would not "
                f"compare.\nMeasure models with different tokenizers in separate runs."
            )
    assert common is not None
    return common


def _check_length(window: int, name: str, longest: int | None) -> None:
    if longest is not None and window > longest:
        raise ConfigError(
            f"--window {window} is out of range: {name} takes {longest} tokens at most.\n"
            f"Give a shorter --window; the figure then compares with no figure of the longer one."
        )


def _hash_tokens(tokens: np.ndarray[Any, Any]) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest()
