"""From a sparse checkpoint and a text to a better sparse checkpoint with the same masks."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.data import HELD_OUT, Text, load_texts
from maskpro_deploy.errors import ConfigError, InputError, Interrupted
from maskpro_deploy.learn.loading import add_change, check_space, learning_device, learning_dtype, load_windows, memory_errors
from maskpro_deploy.learn.loop import Point
from maskpro_deploy.learn.measuring import Spent
from maskpro_deploy.learn.model.memory import tuned_process
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.paged_blocks import open_paged
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.monitor import Observer
from maskpro_deploy.learn.ranks.group import ALONE, Ranks
from maskpro_deploy.learn.recovery.adapters import hash_adapter, read_adapter
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.recovery.dense_model import find_dense, find_dense_folder
from maskpro_deploy.learn.recovery.trainer import RecoveryTrainer
from maskpro_deploy.learn.self_text import write_text
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.mask_inference import open_masks
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.models import resolve
from maskpro_deploy.system.files import check_free
from maskpro_deploy.system.on_demand import OnDemand
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm
from maskpro_deploy.transform import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverResult:
    """The result of a run."""

    masks: MaskSet  # under the checkpoint's names
    curve: tuple[Point, ...]  # held-out loss and more, from the start to the end
    dense_loss: float  # held-out loss of the dense model, nats a token; NaN where no teacher was asked
    seconds: float
    spent: Spent  # what the seconds went into
    tokens: int  # seen
    dtype: str  # of the weights while they were trained
    device: str  # "cpu" or "cuda"
    objective: str  # what a step minimised, a name of `choices.OBJECTIVES`
    memorised: bool = False  # whether the model was overfitting to the text, see `monitor.memorises`
    # length of what was added to a layer's kept weights, relative to theirs at the start
    moved_by_layer: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The figures, as they go into `learn.json`."""
        first, last = self.curve[0], self.curve[-1]
        best = min(self.curve, key=lambda p: p.heldout_loss)  # the point whose weights are the result
        losses = {"dense": self.dense_loss, "before": first.heldout_loss, "recovered": best.heldout_loss}
        return {
            "heldout_perplexity": {name: math.exp(x) for name, x in losses.items() if math.isfinite(x)},
            "moved": best.moved,
            "weights_moved_by_layer": dict(self.moved_by_layer),
            "memorised": self.memorised,
            "steps": last.step,
            "best_step": best.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            **self.spent.to_json(),
            "layers": len(self.masks),
            "kept_weights": self.masks.num_kept,
            "curve": [asdict(p) for p in self.curve],
        }

    def rows(self) -> list[tuple[str, str]]:
        """The figures that people look at first, as a table."""
        figures = self.summary()
        return [
            (f"layers under a strict {self.masks.describe_patterns()} mask", str(figures["layers"])),
            ("kept weights", f"{figures['kept_weights']:,}"),
            ("tokens seen", f"{figures['tokens']:,}"),
            ("time", f"{figures['seconds']:.0f} s: {self.spent.describe()}"),
            ("kept weights moved by", f"{100 * figures['moved']:.2f} % of their length"),
            *((f"held-out perplexity, {name}", f"{x:.2f}") for name, x in figures["heldout_perplexity"].items()),
        ]


def recover(
    sparse: str | Path, data: str | Sequence[str], out: str | Path, *, teacher: str | None = None, heldout: str = HELD_OUT,
    device: str = "auto", force: bool = False, progress: Progress = SILENT, **settings: Any,
) -> RecoverResult:  # fmt: skip
    """Train the weights that the masks of a sparse checkpoint keep, against the dense model, and write the result.

    Args:
        sparse: the sparse checkpoint: masks and weights, or a folder whose weights hold an N:M pattern.
        data: the text to train on, of one source or several (see `data.load_text`).
        out: the folder to make.
        teacher: the dense model, as `models.resolve` takes it; None looks for it by what the checkpoint says.
        heldout: the text to measure on; `split:0.1` takes a part of `data` itself.
        device: "cpu", "cuda" or "auto".
        force: replace `out` if it exists.
        progress: updated after every step.
        settings: fields of `RecoverConfig`.

    Raises:
        InputError, ConfigError, PatternError, FormatError: something given cannot be used; the message says what.
    """
    config, folder = RecoverConfig(**settings), resolve(str(sparse))

    def write(name: str, tokens: int) -> Text:
        dense = find_dense_folder(folder, teacher, other_weights=config.other_weights)
        return write_text(dense, name, tokens, seed=config.seed, device=device)

    text, held = load_texts(data, heldout, write)
    return recover_checkpoint(
        folder, Path(out), text, held, config, teacher=teacher, device=device, force=force, progress=progress
    )


def recover_checkpoint(
    folder: Path, out: Path, text: Text, heldout: Text, config: RecoverConfig, *,
    teacher: str | None = None, device: str = "auto", resume: bool = False, force: bool = False,
    progress: Progress = SILENT, observers: Sequence[Observer] = (), ranks: Ranks = ALONE,
) -> RecoverResult:  # fmt: skip
    """Train the weights under the masks of a checkpoint and write a sparse checkpoint; see `recover` and `learn_checkpoint`.

    Raises:
        Interrupted: the user stopped it; the state is saved.
        InputError, ConfigError, PatternError, FormatError: something given cannot be used; the message says what.
    """
    sparse, store = Checkpoint.open(folder), StateStore(StateStore.folder_for(out))
    if ranks.leads:
        check_free(out, force=force)
        check_space(sparse, out)
        store.check_free(resume=resume, force=force)
    if ranks.size > 1 and config.method_choice.by_block:
        raise ConfigError(f"--method {config.method} runs in one process: its blocks are trained one after the other.")
    config, place = config.among(ranks.size), learning_device(device)
    run = _Run.load(sparse, text, heldout, config, teacher, place, progress=progress, observers=observers)
    trainer = run.trainer
    trainer.ranks = ranks
    store = dataclasses.replace(store, fingerprint=run.fingerprint(text, heldout))
    ranks.check_equal({"run": store.fingerprint, "version": __version__, "torch": torch.__version__, "resume": resume})
    if ranks.leads:
        trainer.store = store
        store.check() if resume else store.discard()
    with tuned_process(place), memory_errors(place):
        if resume:
            trainer.read_saved()
        trainer.prepare()
        if resume:
            trainer.restore()
        if not trainer.run():
            raise Interrupted(
                f"stopped after step {trainer.counters.step}; the state is saved.\nGo on with the same command and --resume."
            )
    weights = run.collect_weights()
    result = run.result(weights)
    if ranks.leads:
        save_sparse(
            sparse, run.masks, out, run.provenance(text, heldout, result), force=force, weights=weights, changes_basis=False,
            add=partial(trainer.save_more, base=sparse.folder.name),
        )  # fmt: skip
        store.discard()
    ranks.tell(None)  # no rank ends before the result is there
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run: what was loaded for it, and names of weights on both sides."""

    sparse: Checkpoint
    dense: Checkpoint | None
    masks: MaskSet  # under the checkpoint's names
    names: dict[str, str]  # of weights in the model -> in the checkpoint
    trainer: RecoveryTrainer

    @classmethod
    def load(
        cls, sparse: Checkpoint, text: Text, heldout: Text, config: RecoverConfig, teacher: str | None, place: str,
        **watching: Any,
    ) -> _Run:  # fmt: skip
        """Load models, masks and text; `watching` has progress and observers."""
        if config.adapter is not None:
            read_adapter(Path(config.adapter))  # refused before anything is loaded
        dtype = learning_dtype(config, place)
        loaded = load_windows(sparse, text, heldout, config)
        model = _load_model(sparse, config, dtype, place)
        names = find_tensors(model, sparse)
        masks = _read_masks(sparse, model, names)
        dense = None
        if config.needs_teacher or teacher is not None:
            dense = find_dense(sparse, masks, teacher, other_weights=config.other_weights)
            if not masks.dense_sha256:
                masks = dataclasses.replace(masks, dense_sha256=dense.dense_sha256(masks))
        taught = None if dense is None else _load_model(dense, config, dtype, place, masks.transform)
        own = masks.rename({theirs: own for own, theirs in names.items()})
        trainer = config.method_choice.load_trainer()(
            model, loaded.learning, loaded.heldout, config, own, taught, **watching
        )  # fmt: skip
        trainer.take_texts(loaded.parts, text.written_s)
        return cls(sparse=sparse, dense=dense, masks=masks, names=names, trainer=trainer)

    def fingerprint(self, text: Text, heldout: Text) -> str:
        """Hash of all that decides on the result of the run, and on the points of its curve."""
        head, dense = self.trainer.model.head, "" if self.dense is None else self.dense.dense_sha256(self.dense.names)
        weights = f"{self.sparse.dense_sha256(self.sparse.names)} {dense} {self.masks.sha256()}"
        config = self.trainer.config
        adapter = "" if config.adapter is None else hash_adapter(Path(config.adapter))
        texts = f"{text.sha256} {heldout.sha256}"
        run = f"{config.fingerprint()} {head.device.type} {head.dtype} {weights} {texts} {adapter}"
        return hashlib.sha256(run.encode()).hexdigest()

    def collect_weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """What was trained, by name in the checkpoint and as it is stored there; each is made when it is asked for."""
        weights = self.trainer.collect_weights()

        def convert(name: str) -> npt.NDArray[np.float32]:
            weight = weights[name].t() if name in self.trainer.model.transposed else weights[name]
            return add_change(self.sparse.tensor(self.names[name]), weight, self.trainer.model.head.dtype)

        return OnDemand({self.names[name]: partial(convert, name) for name in weights if name in self.names})

    def result(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> RecoverResult:
        """What the run gave; `weights` are what `collect_weights` gave."""
        head, counters, config = self.trainer.model.head, self.trainer.counters, self.trainer.config
        return RecoverResult(
            masks=self.masks, curve=tuple(counters.curve), dense_loss=self.trainer.dense_loss, seconds=counters.seconds,
            tokens=counters.tokens, dtype=str(head.dtype).removeprefix("torch."), device=head.device.type,
            memorised=counters.memorised, spent=self.trainer.spent(), moved_by_layer=self._measure_movement(weights),
            objective="block" if config.method_choice.by_block else config.minimised,
        )  # fmt: skip

    def _measure_movement(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, float]:
        """How far each layer moved, see `RecoverResult`; a layer of zeros alone is left out."""
        moved = {}
        for name in self.masks:
            if name in weights and (length := np.linalg.norm(before := self.sparse.tensor(name).astype(np.float32))):
                moved[name] = float(np.linalg.norm(np.where(before != 0, weights[name] - before, 0)) / length)
        return moved

    def provenance(self, text: Text, heldout: Text, result: RecoverResult) -> dict[str, Any]:
        """learn.json: what it said of the masks, and one more entry under `recovered`."""
        before = self.sparse.record
        own = {
            "tool": f"maskpro-deploy {__version__}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self.trainer.config.to_json(),
            "teacher": None if self.dense is None else self.dense.folder.name,
            "dtype": result.dtype,
            "device": result.device,
            "text": {"name": text.title, "sha256": text.sha256, "documents": len(text.documents)},
            "heldout": {"name": heldout.title, "sha256": heldout.sha256, "documents": len(heldout.documents)},
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **result.summary(),
        }
        dense = {} if self.dense is None else {"model": self.dense.folder.name, "dense": str(self.dense.folder.resolve())}
        facts = {"dense_sha256": self.masks.dense_sha256, "masks_sha256": self.masks.sha256()}
        past = before.get("recovered")
        recovered = [*(past if isinstance(past, list) else []), own]
        return {**before, **dense, **facts, "weights_changed": True, "recovered": recovered}


def _load_model(
    checkpoint: Checkpoint, config: RecoverConfig, dtype: torch.dtype, place: str, transform: Transform | None = None
) -> LearningModel:
    """The model of a checkpoint on a device; its blocks stay on disk where they are trained one by one.

    Only then are its states compared with those of another model, and `transform` brings them into the same bases.
    """
    if config.method_choice.by_block:
        return open_paged(checkpoint, dtype, place, transform or Transform())
    return LearningModel(load_causal_lm(checkpoint.folder, dtype).to(place))


def _read_masks(sparse: Checkpoint, model: LearningModel, names: dict[str, str]) -> MaskSet:
    """The masks of the checkpoint, or those that its weights hold; each of a linear layer of the model."""
    linear = {
        name: name in model.transposed
        for name, module in ((f"{n}.weight", m) for n, m in model.model.named_modules())
        if isinstance(module, torch.nn.Linear)
    }
    axes = {theirs: int(not linear[own]) for own, theirs in names.items() if own in linear and len(sparse.shapes[theirs]) == 2}
    masks = open_masks(sparse.folder, str(sparse.folder), lambda _: axes).masks
    masks.check_fits(sparse.shapes, f"the masks of {sparse.folder}", str(sparse.folder))
    if foreign := sorted(set(masks) - set(axes)):
        raise InputError(
            f"{sparse.folder} has a mask for {foreign[0]}, which is no weight of a linear layer of the model alone.\n"
            f"Such a weight cannot be trained under its mask."
        )
    return masks
