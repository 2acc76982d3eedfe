"""From a checkpoint and a text to a sparse checkpoint."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.data import (
    HELD_OUT,
    Text,
    load_text,
    load_texts,
)
from maskpro_deploy.errors import InputError, Interrupted
from maskpro_deploy.learn.choices import AUTO, FROZEN
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.dense_layers import DenseChoice
from maskpro_deploy.learn.loading import add_change, check_space, learning_device, learning_dtype, load_windows, memory_errors
from maskpro_deploy.learn.loop import Point
from maskpro_deploy.learn.measuring import Spent
from maskpro_deploy.learn.model.memory import tuned_process
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.norm_cache import NormCache
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.monitor import Observer
from maskpro_deploy.learn.ranks.group import ALONE, Ranks
from maskpro_deploy.learn.self_text import write_text
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.learn.transforms.search import Found
from maskpro_deploy.mask_inference import check_origin, open_masks
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.models import resolve
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnResult:
    """The result of a run."""

    masks: MaskSet
    prior_masks: MaskSet  # the one-shot masks they started from
    curve: tuple[Point, ...]  # held-out loss and more, from the prior to the end
    dense_loss: float  # held-out loss of the dense model, nats a token
    seconds: float  # of learning, calibration included
    spent: Spent  # what the seconds went into
    tokens: int  # seen while learning
    dtype: str  # of the weights while learning
    device: str  # "cpu" or "cuda"
    weights_moved_by: str | None = None  # by what kept weights were moved, see `KeptStep`; None where they are frozen
    objective: str = "ce"  # what a step minimised, a name of `choices.OBJECTIVES`
    moved_by: str | None = None  # by what logits were moved, see `SiteStep`; None where the estimator has one way only
    memorised: bool = False  # whether the model was overfitting to the learning text, see `monitor.memorises`
    # length of what was added to a layer's kept weights, relative to theirs in the dense model; empty where weights are frozen
    moved_by_layer: Mapping[str, float] = field(default_factory=dict)
    choice: DenseChoice | None = None  # which layers stay dense, where that was chosen; names as in the checkpoint
    found: Found | None = None  # which channels changed places, if the run found that

    def summary(self) -> dict[str, Any]:
        """The figures, as they go into `learn.json`."""
        first, last = self.curve[0], self.curve[-1]
        best = min(self.curve, key=lambda p: p.heldout_loss)  # the point whose masks are the result
        losses = {"dense": self.dense_loss, "prior": first.heldout_loss, "learned": best.heldout_loss}
        return {
            "heldout_perplexity": {name: math.exp(loss) for name, loss in losses.items()},
            "groups_changed": best.flips,
            "groups_changed_by_kind": self.masks.flips_by_kind(self.prior_masks),
            "groups_changed_by_layer": self.masks.flips_by_layer(self.prior_masks),
            "weights_moved": best.moved,
            "weights_moved_by_layer": dict(self.moved_by_layer),
            "memorised": self.memorised,
            "steps": last.step,
            "best_step": best.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            **self.spent.to_json(),
            "layers": len(self.masks),
            "weights": self.masks.num_weights,
            "left_dense": dict(self.masks.dense),
            "dense_choice": self.choice.to_json() if self.choice is not None else None,
            "transform": self.found.to_json() if self.found is not None else None,
            "curve": [asdict(p) for p in self.curve],
        }

    def _describe_dense(self) -> str:
        count = str(len(self.masks.dense))
        return count if self.choice is None else f"{count}, {100 * self.choice.taken:.1f} % of the multiply-adds"

    def rows(self) -> list[tuple[str, str]]:
        """The figures that people look at first, as a table."""
        figures = self.summary()
        both_ways = " along both axes" if self.masks.transposable else ""
        perplexity = figures["heldout_perplexity"]
        return [
            (f"layers with a strict {self.masks.describe_patterns()} mask{both_ways}", str(figures["layers"])),
            ("weights covered", f"{figures['weights']:,}"),
            *([("layers left dense", self._describe_dense())] if self.masks.dense else []),
            *([("channels that changed places", self.found.describe())] if self.found is not None else []),
            ("tokens seen", f"{figures['tokens']:,}"),
            ("time", f"{figures['seconds']:.0f} s: {self.spent.describe()}"),
            ("groups changed against the prior", f"{100 * figures['groups_changed']:.1f} %"),
            ("held-out perplexity, dense", f"{perplexity['dense']:.2f}"),
            ("held-out perplexity, one-shot prior", f"{perplexity['prior']:.2f}"),
            ("held-out perplexity, learned", f"{perplexity['learned']:.2f}"),
        ]


def learn_masks(
    model: str | Path, data: str | Sequence[str] | Text, config: LearnConfig, *,
    heldout: str | Text = HELD_OUT, progress: Progress = SILENT, observers: Sequence[Observer] = (),
) -> MaskSet:  # fmt: skip
    """Learn the masks of a model and return them; its weights stay frozen unless `config` names another choice.

    Args:
        model: whatever `models.resolve` takes: a checkpoint folder, `demo`, a `.gguf` file or a Hub id.
        data: the text to learn from, of one source or several (see `data.load_text`).
        config: the settings.
        heldout: the text to measure on; `split:0.1` takes a part of `data` itself.
        progress: updated after every step.
        observers: see every step and measurement, see `monitor`.

    Raises:
        InputError, ConfigError, PatternError, FormatError: something given cannot be used; the message says what.
    """
    checkpoint = Checkpoint.open(resolve(str(model)))
    config = replace(config, weights=FROZEN) if config.weights == AUTO else config
    write = partial(write_text, checkpoint.folder, seed=config.seed)
    if isinstance(data, Text):
        text, held = data, load_text(heldout) if isinstance(heldout, str) else heldout
    elif isinstance(heldout, str):
        text, held = load_texts(data, heldout, write)
    else:
        text, held = load_texts(data, HELD_OUT, write)[0], heldout
    place = learning_device("auto")
    trainer = _load_trainer(checkpoint, text, held, config, place, progress=progress, observers=observers)
    if not _run(trainer, checkpoint):
        raise Interrupted("learning was stopped before its end.")
    return trainer.masks(checkpoint.dense_sha256(_list_masked_names(trainer)))


def learn_checkpoint(
    folder: Path, out: Path, text: Text, heldout: Text, config: LearnConfig, *,
    device: str = "auto", resume: bool = False, force: bool = False,
    progress: Progress = SILENT, observers: Sequence[Observer] = (), prior_progress: Progress = SILENT,
    choice_progress: Progress = SILENT, transform_progress: Progress = SILENT, ranks: Ranks = ALONE,
) -> LearnResult:  # fmt: skip
    """Learn the masks of a checkpoint and write a sparse checkpoint.

    Args:
        folder: the dense checkpoint.
        out: the folder to make.
        text: what to learn from.
        heldout: what to measure on.
        config: the settings.
        device: "cpu", "cuda" or "auto".
        resume: go on with the saved state of an interrupted run.
        force: replace `out`, and discard the state of an interrupted run.
        progress: updated after every step.
        observers: see every step and measurement, see `monitor`.
        prior_progress: updated after every block of a prior that goes block by block.
        choice_progress: updated after every layer that is measured for `dense_share`.
        transform_progress: updated after every axis whose channels were ordered.
        ranks: the processes that learn together; the first of them writes.

    Raises:
        Interrupted: the user stopped it; the state is saved.
        InputError, ConfigError, PatternError, FormatError: something given cannot be used; the message says what.
    """
    checkpoint, store = Checkpoint.open(folder), StateStore(StateStore.folder_for(out))
    if checkpoint.masks is not None:
        raise InputError(f"{folder} is a sparse checkpoint already.\nLearn from the dense one.")
    if ranks.leads:
        check_free(out, force=force)
        check_space(checkpoint, out)
        store.check_free(resume=resume, force=force)
    config, place = config.among(ranks.size), learning_device(device)
    trainer = _load_trainer(checkpoint, text, heldout, config, place, progress=progress, observers=observers)
    trainer.ranks = ranks
    whole_sha256, dense_sha256 = checkpoint.dense_sha256s(checkpoint.names, _list_masked_names(trainer))
    store = replace(store, fingerprint=_fingerprint(trainer, whole_sha256, text, heldout))
    ranks.check_equal({"run": store.fingerprint, "version": __version__, "torch": torch.__version__, "resume": resume})
    trainer.norms = NormCache(whole_sha256)
    if ranks.leads:
        trainer.store = store
        store.check() if resume else store.discard()
    if not _run(trainer, checkpoint, prior_progress, choice_progress, transform_progress, resume=resume):
        raise Interrupted(
            f"stopped after step {trainer.counters.step}; the state is saved.\nGo on with the same command and --resume."
        )
    if trainer.choice is not None:  # fewer weights have masks than could have had one
        dense_sha256 = checkpoint.dense_sha256(_list_masked_names(trainer))
    result = _result(trainer, dense_sha256)
    if ranks.leads:
        record = _provenance(checkpoint, text, heldout, trainer.config, result)
        save_sparse(checkpoint, result.masks, out, record, force=force, weights=_collect_weights(trainer, checkpoint))
        store.discard()
    ranks.tell(None)  # no rank ends before the result is there
    return result


def _load_trainer(checkpoint: Checkpoint, text: Text, heldout: Text, config: LearnConfig, place: str, **watching: Any) -> Trainer:
    """Load everything that a run needs; `watching` has progress and observers."""
    loaded = load_windows(checkpoint, text, heldout, config)
    model = LearningModel(load_causal_lm(checkpoint.folder, learning_dtype(config, place)).to(place))
    trainer = Trainer(model, loaded.learning, loaded.heldout, config, names=find_tensors(model, checkpoint), **watching)
    trainer.take_texts(loaded.parts, text.written_s)
    return trainer


def _list_masked_names(trainer: Trainer) -> list[str]:
    """Names in the checkpoint of all weights that get a mask."""
    return [trainer.names[name] for name in trainer.layers]


def _run(
    trainer: Trainer, checkpoint: Checkpoint, prior_progress: Progress = SILENT, choice_progress: Progress = SILENT,
    transform_progress: Progress = SILENT, *, resume: bool = False,
) -> bool:  # fmt: skip
    """Prepare and learn; False if the user stopped it."""
    given = _read_given_masks(checkpoint, trainer) if trainer.config.prior_file is not None and not resume else None
    place = trainer.model.head.device.type
    with tuned_process(place), memory_errors(place):
        if resume:
            trainer.read_saved()
        trainer.prepare(prior_progress, given, choice_progress, transform_progress)
        if resume:
            trainer.restore()
        return trainer.run()


def _result(trainer: Trainer, dense_sha256: str) -> LearnResult:
    head, counters = trainer.model.head, trainer.counters
    return LearnResult(
        masks=trainer.masks(dense_sha256), prior_masks=trainer.prior_masks(dense_sha256), curve=tuple(counters.curve),
        dense_loss=trainer.dense_loss, seconds=counters.seconds, spent=trainer.spent(), tokens=counters.tokens,
        dtype=str(head.dtype).removeprefix("torch."), device=head.device.type, moved_by=trainer.estimator.moved_by,
        weights_moved_by=trainer.estimator.weights_moved_by,
        objective=trainer.config.minimised,
        moved_by_layer=trainer.moved_by_layer(),
        memorised=counters.memorised,
        choice=None if trainer.choice is None else trainer.choice.rename(trainer.names), found=trainer.found,
    )  # fmt: skip


def _collect_weights(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, npt.NDArray[np.float32]]:
    """The weights that are not the checkpoint's; trained ones with the digits that the run's dtype lacks."""
    weights = trainer.collect_changed_weights()
    if trainer.config.prior_update:  # far from the checkpoint's
        return weights
    dtype, transform = trainer.model.head.dtype, trainer.transform
    return {
        name: add_change(transform.apply(name, checkpoint.tensor(name)), torch.from_numpy(now), dtype)
        for name, now in weights.items()
    }


def _read_given_masks(checkpoint: Checkpoint, trainer: Trainer) -> MaskSet:
    """The masks that `--prior file:PATH` names, checked against the model, under the names that weights have in the model."""
    config, names = trainer.config, {name: trainer.names[name] for name in trainer.layers}
    source = f"--prior file:{config.prior_file}"
    axes = {theirs: int(own not in trainer.model.transposed) for own, theirs in names.items()}

    def list_axes(sparse: Checkpoint) -> dict[str, int]:
        return {name: axis for name, axis in axes.items() if len(sparse.shapes.get(name, ())) == 2}

    given = open_masks(Path(str(config.prior_file)), source, list_axes, config.pattern)
    masks = given.masks
    for own, theirs in names.items():
        if theirs in masks and masks.pattern_of(theirs) != (wanted := config.patterns.of(own)):
            raise InputError(f"{source} holds {masks.pattern_of(theirs)} masks, --sparsity is {wanted} for {theirs}.")
    if absent := sorted(set(names.values()) - set(masks)):
        holder = f"no weight {absent[0]} that holds {config.pattern}" if given.weights is not None else f"no mask for {absent[0]}"
        raise InputError(f"{source} has {holder}.\nOmit the layer with --exclude.")
    if config.transposable and (bad := [n for n in names.values() if not masks.pattern.holds_both_ways(masks.mask(n))]):
        raise InputError(
            f"{source} has masks that are not transposable, such as that of {bad[0]}.\n"
            f"Start from another --prior, or omit --transposable."
        )
    check_origin(given, checkpoint, source, other_weights=config.other_weights)
    return masks.rename({theirs: own for own, theirs in names.items()})


def _fingerprint(trainer: Trainer, weights_sha256: str, text: Text, heldout: Text) -> str:
    """Hash of all that decides on the result of a run, and on the points of its curve."""
    head = trainer.model.head
    run = f"{trainer.config.fingerprint()} {head.device.type} {head.dtype}"
    return hashlib.sha256(f"{run} {weights_sha256} {text.sha256} {heldout.sha256}".encode()).hexdigest()


def _provenance(checkpoint: Checkpoint, text: Text, heldout: Text, config: LearnConfig, result: LearnResult) -> dict[str, Any]:
    return {
        "tool": f"maskpro-deploy {__version__}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": checkpoint.folder.name,
        "dense": str(checkpoint.folder.resolve()),  # where `recover` finds the teacher
        "dense_sha256": result.masks.dense_sha256,
        "masks_sha256": result.masks.sha256(),
        "estimator": config.estimator,
        "weights_changed": config.prior_update or config.trains_weights,
        "settings": config.to_json(),
        "dtype": result.dtype,
        "device": result.device,
        "logits_moved_by": result.moved_by,
        "weights_moved_by": result.weights_moved_by,
        "text": {"name": text.title, "sha256": text.sha256, "documents": len(text.documents)},
        "heldout": {"name": heldout.title, "sha256": heldout.sha256, "documents": len(heldout.documents)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **result.summary(),
    }
