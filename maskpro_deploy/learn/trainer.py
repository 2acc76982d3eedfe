"""The learning loop: give batches to an estimator, and now and then look at the argmax mask.

How the logits move is the estimator's business (see `estimators.base`); its schedules follow the share of the limit that is left,
be it time, steps or tokens. The result is the argmax mask with the lowest held-out loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.distributions.planes import flips
from maskpro_deploy.learn.estimators.base import Estimator, StepLoss, check_loss
from maskpro_deploy.learn.model.calibration import BlockStream
from maskpro_deploy.learn.model.masked_linear import Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows, prunable_layers
from maskpro_deploy.learn.model.sites import Site
from maskpro_deploy.learn.monitor import Observer, memorises, peak_memory
from maskpro_deploy.learn.priors.compute import compute_prior
from maskpro_deploy.learn.state import StateStore, stop_requests
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.system.progress import SILENT, Progress

log = logging.getLogger(__name__)

_BEHIND = 4  # steps that a GPU may be behind: it always has work, and a loss that is not a number is seen soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the learning curve; losses in nats a token."""

    step: int
    tokens: int
    seconds: float
    sample_loss: float | None  # mean of the samples since the last point, None at the start
    heldout_loss: float  # of the argmax mask on held-out text
    flips: float  # share of groups whose argmax mask differs from the prior's
    entropy: float  # of the masks' distribution, mean over groups; nats
    epochs: float  # how often the learning text was seen
    memory: int  # the most bytes in use so far, see `peak_memory`


@dataclass(slots=True, kw_only=True)
class Counters:
    """Where a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memorised: bool = False


class Trainer:
    """One learning run on one model, whose linear layers are replaced; text and held-out text are windows (W, T).

    Args:
        store: where to keep the state; None for nowhere.
        observers: see every step and measurement; closed when `run` ends.
        names: what weights of the model are called in the checkpoint; those that it lacks stay dense. None: as in the model.
    """

    def __init__(
        self, model: LearningModel, text: Windows, heldout: Windows, config: LearnConfig, store: StateStore | None = None,
        progress: Progress = SILENT, observers: Sequence[Observer] = (), names: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.text, self.heldout, self.config = model, text, heldout, config.on(model.head.device.type)
        self.store, self.progress, self.observers = store, progress, tuple(observers)
        # by weight name in the model; `sites` take their places
        self.layers = prunable_layers(model.model, config.pattern, config.include, config.exclude, names)
        self.names = {name: name for name in self.layers} if names is None else names
        config.estimator_choice.load().check_model(model.model, self.layers)
        self.counters = Counters()
        self.sites: list[Site] = []
        self.estimator: Estimator
        self.dense_loss = math.nan
        self._prior: dict[str, torch.Tensor] = {}  # bits of the masks that learning started from
        self._best: dict[str, torch.Tensor] = {}  # and of those at the point with the lowest held-out loss
        self._started = time.monotonic()
        self._unread: deque[tuple[dict[str, Any], torch.Tensor, Windows]] = deque()  # steps whose loss was not looked at yet
        self._loss = math.nan  # the last one that was

    def prepare(self, progress: Progress = SILENT, given: MaskSet | None = None) -> None:
        """Measure the dense model, compute the prior (with `given` masks for a file), and put sites in the layers' places."""
        config = self.config
        family = config.distribution_choice.load()(config.pattern, self.model.head.device)
        self.model.check_head(self.text)
        if config.needs_grams or config.estimator_choice.by_block:
            BlockStream(self.model, [self.model.tokens(self.text[:1])])  # refuses a model that does not run block by block
        self.model.check_backward(self.text)
        self.dense_loss = self.heldout_loss()
        batches = self._calibration() if config.prior_sees_text else []
        priors = compute_prior(self.model, self.layers, config, batches, given, progress)
        progress.close()
        for name, layer in self.layers.items():
            site = Site(name, layer, family, priors.pop(name))
            self._prior[name] = site.kept
            self.model.replace(name, site)
            self.sites.append(site)
        loss = StepLoss(self.model, self.sites, config.objective_choice.teacher_share)
        self.estimator = config.estimator_choice.load()(config, self.model, self.sites, loss)

    def _calibration(self) -> list[torch.Tensor]:
        """Batches of the windows that the prior sees.  # (B, T) each"""
        count = max(1, self.config.calibration_tokens // self.config.window)
        chosen = self._order(epoch=0)[-count:]  # the end of the first epoch: learning begins with other windows
        step = self.config.sequences
        return [self.model.tokens(self.text[chosen[i : i + step]]) for i in range(0, len(chosen), step)]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.config.seed, epoch)).permutation(len(self.text))

    def _batch(self, step: int) -> Windows:
        """The windows of a step: every epoch shuffles again, and the step alone says where it is."""
        places = np.arange(step * self.config.sequences, (step + 1) * self.config.sequences)
        epochs, within = np.divmod(places, len(self.text))
        orders = {int(e): self._order(int(e)) for e in np.unique(epochs)}
        return self.text[[orders[int(e)][w] for e, w in zip(epochs, within, strict=True)]]

    def _step(self) -> None:
        counters = self.counters
        windows = self._batch(counters.step)
        loss = self.estimator.step(windows, counters.step, 1.0 - self._fraction())
        counters.step += 1
        counters.tokens += windows.size
        counters.seconds += time.monotonic() - self._started
        self._started = time.monotonic()
        rate = round(counters.tokens / counters.seconds, 1)
        facts = {"step": counters.step, "tokens": counters.tokens, "seconds": round(counters.seconds, 3), "tokens_per_s": rate}
        self._unread.append(({**facts, **self.estimator.metrics()}, loss, windows))
        self._read_losses(0 if self.model.head.device.type == "cpu" else _BEHIND)

    def _read_losses(self, behind: int = 0) -> None:
        """Look at the losses of all steps but the last few, and let the observers know."""
        while len(self._unread) > behind:
            facts, loss, windows = self._unread.popleft()
            self._loss = check_loss(float(loss), facts["step"] - 1, self.model, windows)
            self.counters.losses.append(self._loss)
            for observer in self.observers:
                observer.step({**facts, "loss": self._loss})

    def run(self) -> bool:
        """Learn until the limit is reached; False if the user asked to stop (the state is saved then)."""
        config, counters = self.config, self.counters
        saved = time.monotonic()
        with ExitStack() as stack, stop_requests() as stop:
            for observer in self.observers:
                stack.callback(observer.close)
                observer.start(config.to_json(), counters.step)
            if not counters.curve:
                self._measure()
            while not self._done() and not stop.is_set():
                self._step()
                self._tick()
                if self._fraction() >= len(counters.curve) / config.evaluations and not self._done():
                    self._measure()
                if time.monotonic() - saved >= config.checkpoint_every_s:
                    self.save()
                    saved = time.monotonic()
            self._read_losses()
            if stop.is_set():
                self.save()
                return False
            if counters.curve[-1].step < counters.step:
                self._measure()
        self.progress.close()
        return True

    def _tick(self) -> None:
        counters, config = self.counters, self.config
        point = counters.curve[-1]
        note = (
            f"loss {self._loss:.3f}  held out {point.heldout_loss:.3f}  flips {100 * point.flips:.1f} %  "
            f"entropy {point.entropy:.2f}  {point.memory / 1e9:.1f} GB"
        )
        if config.budget_s is not None:
            rate = counters.tokens / counters.seconds
            note = f"step {counters.step}  {rate:.0f} tokens/s  {note}"
            self.progress.update(min(counters.seconds, config.budget_s), config.budget_s, note)
        else:
            total = config.tokens or (config.steps or 0) * config.sequences * config.window
            self.progress.update(counters.tokens, total, note)

    def _fraction(self) -> float:
        """How much of the limit is used up, 0 to 1."""
        c, config = self.counters, self.config
        pairs = ((config.steps, c.step), (config.tokens, c.tokens), (config.budget_s, c.seconds))
        limit, used = next((limit, used) for limit, used in pairs if limit is not None)
        return min(1.0, used / limit) if limit > 0 else 1.0

    def _done(self) -> bool:
        c, config = self.counters, self.config
        if self._out_of_patience():
            return True
        if config.budget_s is None or c.step == 0:
            return self._fraction() >= 1.0
        return c.seconds + 0.5 * c.seconds / c.step >= config.budget_s  # stop where the end is nearest to the budget

    def _out_of_patience(self) -> bool:
        """Whether the last measurements brought nothing better."""
        losses = [p.heldout_loss for p in self.counters.curve]
        return self.config.patience is not None and len(losses) - 1 - losses.index(min(losses)) >= self.config.patience

    def heldout_loss(self) -> float:
        """Loss on the held-out windows with the sites' current mode; nats a token."""
        step = self.config.sequences
        batches = [self.heldout[i : i + step] for i in range(0, len(self.heldout), step)]
        with torch.inference_mode():
            return sum(float(self.model.loss(b, differentiable=False)) * len(b) for b in batches) / len(self.heldout)

    def _check_finite(self) -> None:
        """Refuse logits that are not numbers, before they replace a good state or go into a result."""
        for site in self.sites:
            if not torch.isfinite(site.logits).all():
                raise CheckFailed(
                    f"the logits of {site.name} are not finite after step {self.counters.step}: nothing after the last saved "
                    f"state was kept.\nTry a smaller --learning-rate, or --dtype float32."
                )

    def _measure(self) -> None:
        self._read_losses()
        self._check_finite()
        set_mode(self.sites, Mode.ARGMAX)
        c = self.counters
        sample_loss = sum(c.losses) / len(c.losses) if c.losses else None
        epochs = round(c.step * self.config.sequences / len(self.text), 4)
        point = Point(
            step=c.step, tokens=c.tokens, seconds=round(c.seconds, 3), sample_loss=sample_loss, heldout_loss=self.heldout_loss(),
            flips=self.flips(), entropy=self.entropy(), epochs=epochs, memory=peak_memory(self.model.head.device.type),
        )  # fmt: skip
        c.losses.clear()
        if not c.curve or point.heldout_loss < min(p.heldout_loss for p in c.curve):
            self._best = {s.name: s.kept for s in self.sites}
        c.curve.append(point)
        log.info("%s", point)
        for observer in self.observers:
            observer.point(asdict(point))
        if not c.memorised and memorises(point.epochs, [p.sample_loss for p in c.curve], [p.heldout_loss for p in c.curve]):
            c.memorised = True
            log.warning(
                "the learning text is being memorised: it was seen %.1f times, the loss on it still falls and the held-out loss "
                "rises. Give more text; the best mask so far is kept.", point.epochs,
            )  # fmt: skip

    def flips(self) -> float:
        """Share of groups whose argmax mask differs from the prior's."""
        m = self.config.pattern.m
        changed = sum(flips(s.kept, self._prior[s.name], m, s.weight.numel()) for s in self.sites)
        return changed * m / sum(s.weight.numel() for s in self.sites)

    def entropy(self) -> float:
        """Entropy of the masks' distribution, mean over groups; nats."""
        return sum(s.entropy() for s in self.sites) / sum(s.logits.shape[1] for s in self.sites)

    def masks(self, dense_sha256: str = "") -> MaskSet:
        """The argmax masks of the point of the curve with the lowest held-out loss: never worse there than the prior."""
        return self._masks_of(self._best, dense_sha256)

    def prior_masks(self, dense_sha256: str = "") -> MaskSet:
        """The one-shot masks that learning started from."""
        return self._masks_of(self._prior, dense_sha256)

    def collect_changed_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The base weights that are not the checkpoint's, as it stores them: all of them after a prior's update, else none."""
        if not self.config.prior_update:
            return {}
        transposed = self.model.transposed
        weights = ((s.name, s.weight.t() if s.name in transposed else s.weight) for s in self.sites)
        return {self.names[name]: weight.float().cpu().numpy() for name, weight in weights}

    def _masks_of(self, bits: dict[str, torch.Tensor], dense_sha256: str) -> MaskSet:
        masks = {self.names[s.name]: s.mask(bits[s.name]) for s in self.sites}
        transposed = frozenset(self.names[s.name] for s in self.sites if s.name in self.model.transposed)
        return MaskSet.from_arrays(self.config.pattern, masks, dense_sha256, transposed=transposed)

    def save(self) -> None:
        if self.store is None:
            return
        self._read_losses()
        self._check_finite()
        tensors = self.estimator.tensors() | {f"best/{k}": v for k, v in self._best.items()}
        counters: dict[str, Any] = {**asdict(self.counters), **self.estimator.numbers(), "dense_loss": self.dense_loss}
        self.store.save(tensors, counters)

    def restore(self) -> None:
        """Go on from the saved state (after `prepare`)."""
        assert self.store is not None
        tensors, counters = self.store.load()
        self._best = {s.name: tensors[f"best/{s.name}"].to(s.kept.device) for s in self.sites}
        self.estimator.restore(tensors, counters)
        known = {f.name: counters[f.name] for f in fields(Counters)}
        self.counters = Counters(**{**known, "curve": [Point(**p) for p in counters["curve"]]})
        self._started = time.monotonic()
