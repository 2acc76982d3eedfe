"""Measuring keeps to its share of a time limit, on a clock that only forward and backward passes move."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stopper import Stopper
from test_learn import CONFIG, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import InputError, Interrupted
from maskpro_deploy.learn import loop as loop_module
from maskpro_deploy.learn.measuring import FIRST_PART, SHARE, Spent, count_fitting, measure_within, spread_order
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.torch_lm import load_causal_lm

WINDOWS = np.random.default_rng(0).integers(0, 320, (24, 32)).astype(np.int32)
BUDGET_S, STEP_S = 300.0, 25.0
TIMED = replace(CONFIG, steps=None, budget_s=BUDGET_S, evaluations=5, prior="magnitude", checkpoint_every_s=1e9)


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The loop's clock, in place of the real one."""
    made = Clock()
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def slow_down(monkeypatch: pytest.MonkeyPatch, clock: Clock, forward_s: float, step_s: float) -> list[np.ndarray]:
    """Let a forward pass of one window take a while, and a step another; returns the windows that are measured from now on."""
    real, seen = LearningModel.loss, []

    def loss(self: LearningModel, windows: np.ndarray, *, differentiable: bool, **more: Any) -> torch.Tensor:
        clock.now += step_s if differentiable else forward_s * len(windows)
        if not differentiable:
            seen.append(windows)
        return real(self, windows, differentiable=differentiable, **more)

    monkeypatch.setattr(LearningModel, "loss", loss)
    return seen


def timed_trainer(dense: Checkpoint, **chosen: Any) -> Trainer:
    model = LearningModel(load_causal_lm(dense.folder, torch.float32))
    return Trainer(model, WINDOWS[8:], WINDOWS[:16], replace(TIMED, **chosen))


@given(count=st.integers(1, 70))
@settings(max_examples=70)
def test_the_first_windows_in_order_are_spread_evenly(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    for k in range(2, count + 1):
        chosen = sorted(order[:k])
        gaps = np.diff([*chosen, count + chosen[0]])  # around the end
        assert gaps.max() <= 2 ** (math.ceil(math.log2(count / k)) + 1)


@given(
    count=st.integers(1, 40), at_a_time=st.integers(1, 8), each_s=st.floats(0, 5), first_s=st.floats(0, 5),
    allowed_s=st.floats(0, 60),
)  # fmt: skip
def test_the_first_measurement_keeps_to_its_time_and_is_the_mean_over_what_it_says(
    count: int, at_a_time: int, each_s: float, first_s: float, allowed_s: float
) -> None:
    clock, calls, losses = Clock(), [], np.arange(count, dtype=np.float64) ** 2

    def loss(windows: np.ndarray) -> float:
        clock.now += each_s * len(windows) + (0 if calls else first_s)  # the first pass sets things up
        calls.append(len(windows))
        return float(losses[windows[:, 0]].mean())

    windows = np.repeat(np.arange(count, dtype=np.int32)[:, None], 4, axis=1)
    value, places = measure_within(loss, windows, at_a_time, allowed_s, clock.monotonic)
    assert value == pytest.approx(losses[places].mean())
    assert len(places) == len(set(places)) == sum(calls) >= 1
    assert max(calls) <= at_a_time
    taken = clock.now - 1000
    assert taken <= max(allowed_s, each_s + first_s) + 1e-6
    if first_s == 0 and len(places) < count:  # it stops only where another window does not fit
        assert taken + each_s > allowed_s * (1 - 1e-9)


def test_as_many_measurements_as_fit_and_the_last_one_always() -> None:
    assert count_fitting(5, 0, 45, 1) == 5
    assert count_fitting(5, 0, 45, 20) == 2
    assert count_fitting(5, 1, 25, 20) == 2
    assert count_fitting(5, 2, -1, 20) == 2
    assert count_fitting(5, 0, 3, 20) == 1
    assert count_fitting(5, 3, 0, 0) == 5


@pytest.mark.parametrize("forward_s", [0.25, 0.6, 2.0, 9.0])
def test_measuring_takes_its_share_and_one_measurement_more_at_most(
    dense: Checkpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, forward_s: float
) -> None:
    trainer = timed_trainer(dense)
    seen = slow_down(monkeypatch, clock, forward_s, STEP_S)
    trainer.prepare()
    assert trainer.run()
    counters, spent = trainer.counters, trainer.spent()
    measured = set(counters.windows or [])
    assert counters.measuring_s <= SHARE * BUDGET_S + counters.measurement_s + 1e-6
    assert abs(counters.seconds - BUDGET_S) <= STEP_S / 2 + counters.measurement_s  # the end is nearest to the budget
    assert len(counters.curve) >= 2
    assert counters.curve[0].step == 0
    assert counters.curve[-1].step == counters.step >= 8
    assert 1 <= len(measured) <= 16
    assert spent.heldout_tokens == 32 * len(measured)
    # every measurement, the dense one too, is on the same windows
    rows = [tuple(w) for batch in seen for w in batch]
    assert {rows.count(tuple(w)) for i, w in enumerate(WINDOWS[:16]) if i in measured} == {len(counters.curve) + 1}
    assert not any(tuple(w) in rows for i, w in enumerate(WINDOWS[:16]) if i not in measured)
    if forward_s <= 0.25:  # all fits: as without a limit of time
        assert (len(measured), len(counters.curve)) == (16, 6)
    else:
        assert len(measured) < 16 or len(counters.curve) < 6
        assert counters.measuring_s > 0.5 * SHARE * BUDGET_S  # and what is allowed is used


def test_a_measurement_under_masks_that_takes_much_longer_than_the_dense_one_is_made_up_for(
    dense: Checkpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = timed_trainer(dense)
    slow_down(monkeypatch, clock, 0.5, STEP_S)
    trainer.prepare()
    slow_down(monkeypatch, clock, 1.5, 0.0)  # three times as long again
    assert trainer.run()
    assert trainer.counters.measuring_s <= SHARE * BUDGET_S + trainer.counters.measurement_s
    assert 2 <= len(trainer.counters.curve) < 6


@pytest.mark.parametrize("limit", [{"steps": 6}, {"tokens": 6 * 128}, {"budget_s": 0.0}], ids=str)
def test_other_limits_measure_all_windows_as_often_as_is_set(
    dense: Checkpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, limit: dict[str, float]
) -> None:
    trainer = timed_trainer(dense, **{"budget_s": None, "evaluations": 3, **limit})
    seen = slow_down(monkeypatch, clock, 100.0, STEP_S)
    trainer.prepare()
    assert trainer.run()
    points = 1 if "budget_s" in limit else 4
    assert trainer.counters.windows is None
    assert [p.step for p in trainer.counters.curve] == [0, 2, 4, 6][:points]
    assert np.array_equal(np.concatenate(seen), np.concatenate([WINDOWS[:16]] * (points + 1)))  # batch by batch, in order
    assert [len(b) for b in seen] == [4] * 4 * (points + 1)


def test_a_fast_machine_measures_the_same_with_and_without_a_limit_of_time(
    dense: Checkpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, clock, 0.01, 50.0)
    trainers = [timed_trainer(dense), timed_trainer(dense, budget_s=None, steps=6)]
    for trainer in trainers:
        trainer.prepare()
        trainer.run()
    first, second = (t.counters.curve[0] for t in trainers)
    assert first.heldout_loss == second.heldout_loss
    assert trainers[0].dense_loss == pytest.approx(trainers[1].dense_loss, abs=1e-6)


class Watcher(Stopper):
    """Progress that keeps its notes."""

    def __init__(self, at: int = 0) -> None:
        super().__init__(at)
        self.notes: list[str] = []

    def update(self, done: float, total: float, note: str = "") -> None:
        self.notes.append(note)
        super().update(done, total, note)


def test_a_resumed_run_measures_on_the_same_windows_whatever_the_machine_is_like_by_then(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TIMED, prior="wanda")
    with monkeypatch.context() as slowed:
        seen = slow_down(slowed, clock, 2.0, STEP_S)
        with pytest.raises(Interrupted):
            run(dense, tmp_path / "out", text, heldout, config, progress=Watcher(8))
        before = {tuple(w) for batch in seen for w in batch}
    seen = slow_down(monkeypatch, clock, 0.01, STEP_S)
    result = run(dense, tmp_path / "out", text, heldout, config, resume=True)
    assert {tuple(w) for batch in seen for w in batch} == before  # the dense model was not measured again, on others
    assert 1 <= len(before) < 16
    assert result.spent.heldout_tokens == 32 * len(before)
    assert np.isfinite(result.dense_loss)


def test_other_held_out_text_is_not_resumed_on(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "out", text, heldout, progress=Stopper(2))
    with pytest.raises(InputError, match="other text"):
        run(dense, tmp_path / "out", text, Text(name="x", documents=heldout.documents[:1]), resume=True)


def test_the_line_and_the_record_say_what_the_time_went_into(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, clock, 2.0, STEP_S)
    watcher = Watcher()
    result = run(dense, tmp_path / "out", text, heldout, TIMED, progress=watcher)
    record = json.loads((tmp_path / "out" / "learn.json").read_text())
    assert sum(record["seconds_by_kind"].values()) == pytest.approx(record["seconds"], abs=0.2)
    assert record["seconds_by_kind"]["steps"] == pytest.approx(STEP_S * record["steps"])
    assert record["seconds_by_kind"]["measuring"] == pytest.approx(
        record["measured"]["share_of_time"] * record["seconds"], abs=0.1
    )
    assert record["measured"]["measurements"] == len(record["curve"])
    assert record["measured"]["heldout_tokens"] < record["measured"]["of_heldout_tokens"] == 512
    chosen = f"measuring {len(record['curve'])} times on {record['measured']['heldout_tokens']} of 512 held-out tokens"
    assert watcher.notes.count(chosen) == 1
    steps = [note for note in watcher.notes if note.startswith("step ")]
    assert len(steps) == record["steps"]
    assert all(re.search(r"steps \d+ %, measuring \d+ %, prior \d+ %$", note) for note in steps)
    assert dict(result.rows())["time"] == f"{record['seconds']:.0f} s: {result.spent.describe()}"


def test_shares_add_up_in_words() -> None:
    spent = Spent(
        steps_s=246, measuring_s=36, preparing_s=18, prepared="prior", heldout_tokens=256, of_tokens=4096, measurements=2
    )
    assert spent.describe() == "steps 82 %, measuring 12 %, prior 6 %"
    nothing = replace(spent, steps_s=0, measuring_s=0, preparing_s=0)
    assert nothing.to_json()["measured"]["share_of_time"] == 0


def test_the_first_part_leaves_room_for_two_more_points_under_masks() -> None:
    # half as slow again under masks: the start, one in between, and the end
    assert FIRST_PART * (1 + 2 * 1.5) < 1
    assert count_fitting(5, 0, SHARE * 100 * (1 - FIRST_PART * 2.3), SHARE * 100 * FIRST_PART * 1.3) == 2
