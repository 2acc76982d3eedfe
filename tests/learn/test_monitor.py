"""What a run tells: the log survives kills and resumes, TensorBoard gets the same figures, memorising is noticed by its rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stopper import Stopper
from test_learn import CONFIG, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import InputError, Interrupted
from maskpro_deploy.learn.monitor import JsonLog, TensorBoardLog, memorises


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [e for e in found if e["event"] == kind]


def test_the_log_has_every_step_and_every_point(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, observers=[JsonLog(tmp_path / "log.jsonl")])
    steps, points = events(tmp_path / "log.jsonl", "step"), events(tmp_path / "log.jsonl", "point")
    assert [s["step"] for s in steps] == list(range(1, 13))
    assert [p["heldout_loss"] for p in points] == [p.heldout_loss for p in result.curve]
    assert events(tmp_path / "log.jsonl", "start")[0]["pattern"] == "2:4"
    last = result.curve[-1]
    assert 0 < last.entropy < 1.8
    assert last.epochs > 0
    assert last.memory > 1e7


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_learn import CONFIG, run
from dataclasses import replace
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text, load_text
from maskpro_deploy.learn.monitor import JsonLog
text = Text(name="some", documents=load_text("builtin").documents[:6])
heldout = Text(name="other", documents=load_text("builtin:heldout").documents[:2])
config = replace(CONFIG, steps=40, checkpoint_every_s=0.02)
run(Checkpoint.open(Path({dense!r})), Path({out!r}), text, heldout, config, observers=[JsonLog(Path({log!r}))])
"""


def test_a_killed_process_resumes_to_the_same_bits_and_its_log_has_every_step_once(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), str(root / "tests" / "helpers"), str(root / "tests" / "learn")]
    script = SCRIPT.format(paths=paths, dense=str(dense.folder), out=str(out), log=str(log))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    state = tmp_path / "out.learning" / "state.safetensors"
    while process.poll() is None and time.monotonic() < deadline:
        if state.exists() and log.read_text().count('"step"') > 6:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    with log.open("a") as file:
        file.write('{"event": "step", "st')  # a line that the kill cut off
    config = replace(CONFIG, steps=40, checkpoint_every_s=0.02)
    resumed = run(dense, out, text, heldout, config, resume=True, observers=[JsonLog(log)])
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert [s["step"] for s in events(log, "step")] == list(range(1, 41))
    assert len(events(log, "resume")) == 1
    assert [p["heldout_loss"] for p in events(log, "point")] == [p.heldout_loss for p in whole.curve]


def test_sigterm_saves_the_state_as_sigint_does(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    class Terminator(Stopper):
        def update(self, done: float, total: float, note: str = "") -> None:
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="--resume"):
        run(dense, tmp_path / "out", text, heldout, progress=Terminator(3))
    assert [p.name for p in (tmp_path / "out.learning").iterdir()] == ["state.safetensors"]


def test_tensorboard_gets_the_figures(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dense, tmp_path / "out", text, heldout, observers=[TensorBoardLog(tmp_path / "tb")])
    accumulator = EventAccumulator(str(tmp_path / "tb"))
    accumulator.Reload()
    assert [e.step for e in accumulator.Scalars("step/loss")] == list(range(1, 13))
    assert len(accumulator.Scalars("point/heldout_loss")) == 4


def test_a_tensorboard_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tb").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        TensorBoardLog(tmp_path / "tb")


def test_memorising_is_noticed_by_its_rule() -> None:
    assert memorises(1.2, [None, 4.0, 3.5], [5.0, 4.5, 4.6])
    assert not memorises(0.9, [None, 4.0, 3.5], [5.0, 4.5, 4.6])  # every token is new
    assert not memorises(1.2, [None, 3.5, 4.0], [5.0, 4.5, 4.6])  # both get worse
    assert not memorises(1.2, [None, 4.0, 3.5], [5.0, 4.5, 4.51])  # too little to tell
    assert not memorises(1.2, [None, 4.0], [5.0, 5.5])  # no loss to compare with yet


def test_too_little_text_is_memorised_and_the_result_says_so(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    little = Text(name="little", documents=(text.documents[0][:700],))
    result = run(
        dense, tmp_path / "out", little, heldout, replace(CONFIG, steps=30, learning_rate=0.5, evaluations=10, heldout_tokens=128)
    )
    assert result.memorised
    assert json.loads((tmp_path / "out" / "learn.json").read_text())["memorised"] is True
    assert sum("memorised" in r.message for r in caplog.records) == 1


def test_measuring_on_the_learning_text_is_warned_of(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(dense, tmp_path / "apart", text, heldout, replace(CONFIG, steps=1))
    assert not [r for r in caplog.records if "is in the learning text" in r.message]
    run(dense, tmp_path / "same", text, text, replace(CONFIG, steps=1))
    assert sum("100 % of the held-out text" in r.message for r in caplog.records) == 1


def test_patience_ends_a_run_that_brings_nothing(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    # a rate that destroys the mask: the prior stays the best
    config = replace(CONFIG, steps=60, learning_rate=50.0, evaluations=20, heldout_tokens=128, patience=2)
    result = run(dense, tmp_path / "out", text, heldout, config)
    losses = [p.heldout_loss for p in result.curve]
    assert result.curve[-1].step < 60
    assert len(losses) - 1 - losses.index(min(losses)) == 2
