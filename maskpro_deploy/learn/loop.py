"""The loop of a run: steps until the limit is reached, measurements in between, the best state, and the state on disk.

What is learned is the subclass's business: `trainer.Trainer` has masks (and perhaps weights), `recovery.RecoveryTrainer` the
weights under masks that stay. The loop gives batches to a `Learner` and asks it for nothing else.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.learn.estimators.base import Learner, check_loss
from maskpro_deploy.learn.measuring import FIRST_PART, SHARE, Spent, count_fitting, measure_within
from maskpro_deploy.learn.model.masked_linear import MaskedLinear, Mode, set_mode
from maskpro_deploy.learn.model.model import LearningModel, Windows
from maskpro_deploy.learn.monitor import Observer, memorises, peak_memory
from maskpro_deploy.learn.ranks.group import ALONE, Ranks
from maskpro_deploy.learn.ranks.sharing import share_saved
from maskpro_deploy.learn.run_config import RunConfig
from maskpro_deploy.learn.state import SavedState, StateStore, stop_requests
from maskpro_deploy.learn.window_order import Part, WindowOrder
from maskpro_deploy.system.progress import SILENT, Progress

log = logging.getLogger(__name__)

_BEHIND = 4  # steps that a GPU may be behind: it always has work, and a loss that is not a number is seen soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the curve; losses in nats a token."""

    step: int
    tokens: int
    seconds: float
    sample_loss: float | None  # mean of the steps since the last point, None at the start
    heldout_loss: float  # on held-out text; under the argmax masks, where masks are learned
    flips: float = 0.0  # share of groups whose mask differs from the one at the start
    entropy: float = 0.0  # of the masks' distribution, mean over groups; nats
    moved: float = 0.0  # length of what was added to the kept weights, relative to theirs at the start
    epochs: float  # how often the text was seen
    memory: int  # the most bytes in use so far, see `peak_memory`


@dataclass(slots=True, kw_only=True)
class Counters:
    """Where a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of them all
    preparing_s: float = 0.0  # of them before the first step and its measurement: the prior above all
    measuring_s: float = 0.0  # of them on held-out text
    measurement_s: float = 0.0  # of the last measurement
    windows: list[int] | None = None  # of the held-out text that it is measured on; None for all
    curve: list[Point] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memorised: bool = False


class TrainingLoop(ABC):
    """One run on one model, whose linear layers are replaced; text and held-out text are windows (W, T).

    Args:
        store: where to keep the state; None for nowhere.
        observers: see every step and measurement; closed when `run` ends.
    """

    compares_steps = True  # whether the losses of all steps are of one kind
    learner: Learner[Any]  # made by `prepare`
    masked: Sequence[MaskedLinear]  # the layers that were put into the model, too
    preparing: ClassVar[str] = "preparing"  # what the time before the first step goes into, in a word

    def __init__(
        self, model: LearningModel, text: Windows, heldout: Windows, config: RunConfig, store: StateStore | None = None,
        progress: Progress = SILENT, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        self.model, self.text, self.heldout = model, text, heldout
        self.run_config = config.on(model.head.device.type)
        self._order = WindowOrder([Part(len(text))], config.seed)
        self.ranks: Ranks = ALONE
        self.store, self.progress, self.observers = store, progress, tuple(observers)
        self.counters = Counters()
        self.dense_loss = math.nan
        self.saved: SavedState | None = None  # what `prepare` and `restore` go on from, see `read_saved`
        self._started = time.monotonic()
        self._unread: deque[tuple[dict[str, Any], Tensor, Windows]] = deque()  # steps whose loss was not looked at yet
        self._loss = math.nan  # the last one that was

    @abstractmethod
    def keep_best(self) -> None:
        """Remember what is learned as it is now: the best so far."""

    @abstractmethod
    def best_tensors(self) -> dict[str, Tensor]:
        """What `keep_best` remembers, for saving."""

    @abstractmethod
    def restore_best(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `best_tensors` gave."""

    def start_tensors(self) -> dict[str, Tensor]:
        """What `prepare` came to and no step changes, for saving: a resumed run does not compute it again."""
        return {}

    @abstractmethod
    def remembered_start(self) -> dict[str, Tensor]:
        """What the run started from, as it holds it in memory."""

    @abstractmethod
    def measure_movement(self) -> dict[str, float]:
        """Fields of a `Point` that say how far what is learned has moved."""

    @abstractmethod
    def check_finite(self) -> None:
        """Refuse what is not a number (CheckFailed), before it replaces a good state or goes into a result."""

    @abstractmethod
    def note_movement(self, point: Point) -> str:
        """The same figures for the progress line."""

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The windows of the text in the order of an epoch."""
        return self._order.draw(epoch)

    def take_texts(self, parts: Sequence[Part], written_s: float = 0.0) -> None:
        """Let the text be several ones, in this order, that take turns; writing some of them took time of the run."""
        self._order = WindowOrder(parts, self.run_config.seed)
        self.counters.preparing_s += written_s
        self.counters.seconds += written_s

    def count_tokens(self, windows: Windows) -> int:
        """The tokens that the last step, on these windows, has seen."""
        return windows.size

    def count_epochs(self) -> float:
        """How often the text was seen."""
        return self.counters.step * self.run_config.sequences / len(self._order)

    def choose_calibration(self, count: int) -> npt.NDArray[np.int64]:
        """So many windows of the text, to calibrate on: the end of the first epoch, as learning begins with others."""
        return self.order(epoch=0)[-count:]

    def calibration(self) -> list[Tensor]:
        """Batches of the windows that a prior or a reconstruction sees.  # (B, T) each"""
        count = max(1, self.run_config.calibration_tokens // self.run_config.window)
        chosen = self.choose_calibration(count)
        step = self.run_config.sequences
        return [self.model.tokens(self.text[chosen[i : i + step]]) for i in range(0, len(chosen), step)]

    def _batch(self, step: int) -> Windows:
        """The windows of a step: every epoch shuffles again, and the step alone says where it is."""
        places = np.arange(step * self.run_config.sequences, (step + 1) * self.run_config.sequences)
        epochs, within = np.divmod(places, len(self._order))
        orders = {int(e): self.order(int(e)) for e in np.unique(epochs)}
        windows = self.text[[orders[int(e)][w] for e, w in zip(epochs, within, strict=True)]]
        return windows[self.ranks.share(len(windows))] if self.learner.shares_batch else windows

    @contextmanager
    def timing(self, counter: str) -> Iterator[None]:
        """Add the time of the `with` block to a counter of seconds, and to that of them all."""
        started = time.monotonic()
        try:
            yield
        finally:
            setattr(self.counters, counter, getattr(self.counters, counter) + time.monotonic() - started)
            self._count_seconds()

    def _count_seconds(self) -> None:
        self.counters.seconds += time.monotonic() - self._started
        self._started = time.monotonic()

    def _step(self) -> None:
        counters = self.counters
        windows = self._batch(counters.step)
        loss = self.learner.step(windows, counters.step, 1.0 - self._fraction())
        counters.step += 1
        counters.tokens += self.count_tokens(windows) * (self.ranks.size if self.learner.shares_batch else 1)
        self._count_seconds()
        rate = round(counters.tokens / counters.seconds, 1)
        facts = {"step": counters.step, "tokens": counters.tokens, "seconds": round(counters.seconds, 3), "tokens_per_s": rate}
        self._unread.append(({**facts, **self.learner.metrics()}, loss, windows))
        self._read_losses(0 if self.model.head.device.type == "cpu" else _BEHIND)

    def _read_losses(self, behind: int = 0) -> None:
        """Look at the losses of all steps but the last few, and let the observers know."""
        while len(self._unread) > behind:
            facts, loss, windows = self._unread.popleft()
            mean = sum(self.ranks.sum_numbers([float(loss)])) / self.ranks.size
            self._loss = check_loss(mean, facts["step"] - 1, self.model, windows)
            self.counters.losses.append(self._loss)
            for observer in self.observers:
                observer.step({**facts, "loss": self._loss})

    def _agree(self, stop: bool, saved: float) -> tuple[bool, bool]:
        """Whether to stop, and whether to save; time is that of rank 0."""
        due = time.monotonic() - saved >= self.run_config.checkpoint_every_s
        mine = [self.counters.seconds, float(due)] if self.ranks.leads else [0.0, 0.0]
        self.counters.seconds, saving, stopping = self.ranks.sum_numbers([*mine, float(stop)])
        return stopping > 0, saving > 0

    def run(self) -> bool:
        """Learn until the limit is reached; False if the user asked to stop (the state is saved then)."""
        config, counters = self.run_config, self.counters
        saved, stopping = time.monotonic(), False
        with ExitStack() as stack, stop_requests(patient=self.ranks.size > 1) as stop:
            for observer in self.observers:
                stack.callback(observer.close)
                observer.start(config.to_json(), counters.step)
            if not counters.curve:
                with self.timing("preparing_s"):
                    self.save()  # an interruption from here on does not cost the preparation
                self._measure()
                self._tell_measuring()
            stopping, _ = self._agree(stop.is_set(), saved)
            while not self._done() and not stopping:
                self._step()
                self._tick()
                stopping, saving = self._agree(stop.is_set(), saved)
                if self._fraction() >= len(counters.curve) / self._evaluations() and not self._done():
                    self._measure()
                if saving:
                    self.save()
                    saved = time.monotonic()
            self._read_losses()
            if stopping:
                self.save()
                return False
            if counters.curve[-1].step < counters.step:
                self._measure()
        self.progress.close()
        return True

    def _tick(self) -> None:
        counters, config = self.counters, self.run_config
        point = counters.curve[-1]
        losses = f"loss {self._loss:.3f}  held out {point.heldout_loss:.3f}"
        note = f"{losses}  {self.note_movement(point)}  {point.memory / 1e9:.1f} GB  {self.spent().describe()}"
        if config.budget_s is not None:
            rate = counters.tokens / counters.seconds
            note = f"step {counters.step}  {rate:.0f} tokens/s  {note}"
            self.progress.update(min(counters.seconds, config.budget_s), config.budget_s, note)
        else:
            total = config.tokens or (config.steps or 0) * config.sequences * config.window
            self.progress.update(counters.tokens, total, note)

    def _fraction(self) -> float:
        """How much of the limit is used up, 0 to 1."""
        c, config = self.counters, self.run_config
        pairs = ((config.steps, c.step), (config.tokens, c.tokens), (config.budget_s, c.seconds))
        limit, used = next((limit, used) for limit, used in pairs if limit is not None)
        return min(1.0, used / limit) if limit > 0 else 1.0

    def _done(self) -> bool:
        c, config = self.counters, self.run_config
        if self._out_of_patience():
            return True
        if config.budget_s is None or c.step == 0:
            return self._fraction() >= 1.0
        step_s = self.spent().steps_s / c.step
        return c.seconds + 0.5 * step_s >= config.budget_s  # stop where the end is nearest to the budget

    def _out_of_patience(self) -> bool:
        """Whether the last measurements brought nothing better."""
        losses = [p.heldout_loss for p in self.counters.curve]
        return self.run_config.patience is not None and len(losses) - 1 - losses.index(min(losses)) >= self.run_config.patience

    def heldout_loss(self, model: LearningModel | None = None) -> float:
        """Loss of the model, or of another one, on the held-out windows with the layers' current mode; nats a token.

        The first call of a run with a time limit chooses the windows, see `measuring`.
        """
        measured, step, counters = model or self.model, self.run_config.sequences, self.counters

        def loss(windows: Windows) -> float:
            return float(measured.loss(windows, differentiable=False))

        with torch.inference_mode():
            if self.run_config.budget_s and math.isnan(self.dense_loss) and not counters.curve:
                allowed_s = FIRST_PART * SHARE * self.run_config.budget_s
                found = measure_within(loss, self.heldout, step, allowed_s, time.monotonic) if self.ranks.leads else None
                value, counters.windows = self.ranks.tell(found)
                return float(value)
            heldout = self.heldout if counters.windows is None else self.heldout[counters.windows]
            batches = [heldout[i : i + step] for i in range(0, len(heldout), step)]
            sums = [0.0] * len(batches)
            for i in range(len(batches))[self.ranks.share(len(batches))]:  # ranks take turns; added up in one order
                sums[i] = loss(batches[i]) * len(batches[i])
            return sum(self.ranks.sum_numbers(sums)) / len(heldout)

    def _evaluations(self) -> int:
        """How many measurements the run has after the one at its start: as many as are set, or fit into a time limit."""
        c, config = self.counters, self.run_config
        if not config.budget_s or not c.curve:
            return config.evaluations
        return count_fitting(config.evaluations, len(c.curve) - 1, SHARE * config.budget_s - c.measuring_s, c.measurement_s)

    def _tell_measuring(self) -> None:
        """Say what a time limit left of the measurements."""
        if budget_s := self.run_config.budget_s:
            spent = self.spent()
            note = f"measuring {self._evaluations() + 1} times on {spent.heldout_tokens} of {spent.of_tokens} held-out tokens"
            log.info("%s: at most %.0f %% of the time", note, 100 * SHARE)
            self.progress.update(min(self.counters.seconds, budget_s), budget_s, note)

    def spent(self) -> Spent:
        """What the time so far went into."""
        c, window = self.counters, self.heldout.shape[1]
        return Spent(
            steps_s=max(0.0, c.seconds - c.measuring_s - c.preparing_s), measuring_s=c.measuring_s, preparing_s=c.preparing_s,
            prepared=self.preparing, of_tokens=self.heldout.size, measurements=len(c.curve),
            heldout_tokens=self.heldout.size if c.windows is None else len(c.windows) * window,
        )  # fmt: skip

    def _measure(self) -> None:
        self._read_losses()
        c, before = self.counters, self.counters.measuring_s
        with self.timing("measuring_s"):
            self.check_finite()
            set_mode(self.masked, Mode.ARGMAX)
            loss, movement = self.heldout_loss(), self.measure_movement()
            if not c.curve or loss < min(p.heldout_loss for p in c.curve):
                self.keep_best()
        c.measurement_s = c.measuring_s - before
        sample_loss = sum(c.losses) / len(c.losses) if c.losses else None
        epochs = round(self.count_epochs(), 4)
        point = Point(
            step=c.step, tokens=c.tokens, seconds=round(c.seconds, 3), sample_loss=sample_loss, heldout_loss=loss, epochs=epochs,
            memory=peak_memory(self.model.head.device.type), **movement,
        )  # fmt: skip
        c.losses.clear()
        c.curve.append(point)
        log.info("%s", point)
        for observer in self.observers:
            observer.point(asdict(point))
        steps = [p.sample_loss if self.compares_steps else None for p in c.curve]
        if not c.memorised and memorises(point.epochs, steps, [p.heldout_loss for p in c.curve]):
            c.memorised = True
            log.warning(
                "the learning text is being memorised: it was seen %.1f times, the loss on it still falls and the held-out loss "
                "rises. Give more text; the best state so far is kept.", point.epochs,
            )  # fmt: skip

    def save(self) -> None:
        """Replace the saved state, where there is a store."""
        self._read_losses()
        self.check_finite()
        if self.store is None:
            return
        kept = {"best": self.best_tensors(), "start": self.start_tensors()}
        tensors = self.learner.tensors() | {f"{kind}/{k}": v for kind, those in kept.items() for k, v in those.items()}
        counters: dict[str, Any] = {**asdict(self.counters), **self.learner.numbers(), "dense_loss": self.dense_loss}
        self.store.save(tensors, counters)

    def read_saved(self) -> None:
        """Read the saved state before `prepare`, which then computes nothing that the state holds."""
        store = self.store
        assert store is not None or not self.ranks.leads
        self.saved = share_saved(self.ranks, lambda: ({}, {}) if store is None else store.load())

    def restore(self) -> None:
        """Go on from the saved state (after `prepare`)."""
        if self.saved is None:
            self.read_saved()
        assert self.saved is not None
        tensors, counters = self.saved
        device = self.model.head.device
        if best := {k.removeprefix("best/"): v.to(device) for k, v in tensors.items() if k.startswith("best/")}:
            self.restore_best(best)
        self.learner.restore(tensors, counters)
        known = {f.name: counters[f.name] for f in fields(Counters)}
        self.counters = Counters(**{**known, "curve": [Point(**p) for p in counters["curve"]]})
        self.dense_loss = counters["dense_loss"]
        self.saved = None
        self._started = time.monotonic()
