"""Learning and recovering on several real processes: what one process gives, interrupts, killed ranks, other numbers of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from decoder_families import write_family
from rank_runs import finish_ranks, run_ranks, start_ranks

from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

_SIZES = [
    "--window", "32", "--batch-tokens", "192", "--heldout-tokens", "256", "--evaluations", "2", "--dtype", "float32",
    "--calibration-tokens", "128", "--device", "cpu",
]  # fmt: skip
_STOPS_AT_STEP_3 = """
import sys
from stopper import Stopper
import os
from maskpro_deploy.commands import run_options
if os.environ["RANK"] == "0":
    run_options.Meter = lambda label, unit: Stopper(3) if label == "learning" else run_options.silent_stage("", "")
from maskpro_deploy.cli import main
main()
"""


def learn(model: Path, out: Path, *more: str, steps: int = 6) -> list[str]:
    options = ["--sparsity", "2:4", "--steps", str(steps), *_SIZES, *more]
    return ["-m", "maskpro_deploy", "learn", "--model", str(model), "--out", str(out), *options]


def result(out: Path) -> tuple[MaskSet, dict[str, Any]]:
    return MaskSet.load(out / MASKS_FILE), json.loads((out / "learn.json").read_text())


def losses(record: dict[str, Any]) -> list[float]:
    return [point["heldout_loss"] for point in record["curve"]]


@pytest.mark.parametrize("options", ["--weights frozen", "--weights lora", "--weights train", "--objective block"])
def test_shares_of_a_batch_give_what_the_whole_batch_gives(options: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        run_ranks(count, learn(tiny_checkpoint, tmp_path / str(count), *options.split()))
    masks, record = result(tmp_path / "1")
    for count in (3,):
        theirs, their_record = result(tmp_path / str(count))
        assert validate(tmp_path / str(count), NMPattern(2, 4)).holds
        assert masks.flips(theirs) < 0.01
        assert losses(their_record) == pytest.approx(losses(record), rel=0.005)
        assert their_record["tokens"] == record["tokens"] == 6 * 192


@pytest.mark.parametrize("options", [["--estimator", "maskpro", "--reward", "loss"], ["--estimator", "maskpro-paper"]])
def test_forward_passes_alone_give_the_same_bits_on_any_number_of_ranks(
    options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for count in (1, 2, 4):
        run_ranks(count, learn(tiny_checkpoint, tmp_path / str(count), *options))
    masks, record = result(tmp_path / "1")
    for count in (2, 4):
        theirs, their_record = result(tmp_path / str(count))
        assert theirs.sha256() == masks.sha256()
        assert losses(their_record) == losses(record)


def test_experts_that_no_token_of_a_rank_chose_are_waited_for_by_none(tmp_path: Path) -> None:
    model = write_family("mixtral", tmp_path / "model")
    for count in (1, 2):
        run_ranks(count, learn(model, tmp_path / str(count), "--weights", "frozen"))
    (one, record), (two, their_record) = result(tmp_path / "1"), result(tmp_path / "2")
    assert one.flips(two) < 0.02
    assert losses(their_record) == pytest.approx(losses(record), rel=0.005)


@pytest.mark.parametrize("options", [["--weights", "lora"], ["--estimator", "maskpro", "--reward", "loss"]])
def test_an_interrupted_run_goes_on_with_another_number_of_ranks(
    options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole = learn(tiny_checkpoint, tmp_path / "whole", *options)
    run_ranks(2, whole)
    parts = learn(tiny_checkpoint, tmp_path / "parts", *options)
    ended = finish_ranks(start_ranks(2, ["-c", _STOPS_AT_STEP_3, *parts[2:]]))
    assert [code for code, _, _ in ended] == [130, 130], ended
    # by hand, or as torchrun starts ranks again
    run_ranks(3, *(([*parts, "--resume"],) if "lora" in options else (parts, {"TORCHELASTIC_RESTART_COUNT": "1"})))
    (ours, record), (theirs, their_record) = result(tmp_path / "whole"), result(tmp_path / "parts")
    assert losses(their_record) == pytest.approx(losses(record), rel=0.005)
    if "maskpro" in options:
        assert theirs.sha256() == ours.sha256()


def test_weights_recover_on_two_ranks(tiny_sparse: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        records = []
        for count in (1, 2):
            out = tmp_path / f"{method}{count}"
            command = ["-m", "maskpro_deploy", "recover", str(tiny_sparse), "--teacher", str(tiny_checkpoint), "--out", str(out)]
            run_ranks(
                count, [*command, "--method", method, "--steps", "6", *_SIZES, *(["--train", "all"] if method == "full" else [])]
            )
            records.append(result(out)[1]["recovered"][-1])
            assert validate(out, NMPattern(2, 4)).holds
        assert losses(records[1]) == pytest.approx(losses(records[0]), rel=0.005)


def test_only_the_first_rank_speaks_and_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, second = run_ranks(2, learn(tiny_checkpoint, tmp_path / "out", "--log", str(tmp_path / "log.jsonl"), "--json"))
    assert json.loads(first)["steps"] == 6
    assert second == ""
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "out.learning").exists()


@pytest.mark.parametrize(
    ("more", "own", "message"),
    [
        ([], ["--seed", "5"], "rank 1 has another run than rank 0"),
        (["--batch-tokens", "96"], [], "--batch-tokens 96 are 3 windows of 32, which 2 processes cannot share equally."),
    ],
)
def test_what_ranks_cannot_do_together_is_one_line_on_each(
    more: list[str], own: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ended = finish_ranks(start_ranks(2, learn(tiny_checkpoint, tmp_path / "out", *more), own={1: own}))
    for code, output, errors in ended:
        assert code == 2, errors
        assert message in errors
        assert "Traceback" not in errors
        assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_a_block_at_a_time_is_for_one_process(tiny_sparse: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "maskpro_deploy",
        "recover",
        str(tiny_sparse),
        "--out",
        str(tmp_path / "out"),
        "--method",
        "block",
        "--steps",
        "2",
    ]
    for code, _, errors in finish_ranks(start_ranks(2, [*command, *_SIZES])):
        assert code == 2
        assert "--method block runs in one process" in errors


def test_a_killed_rank_costs_no_more_than_the_last_interval(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, *learn(tiny_checkpoint, out, "--nproc", "2", steps=150)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "out.learning" / "state.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "was killed by signal 9: all start again" in errors
    assert f"written to {out}" in output
    assert result(out)[1]["steps"] == 150


def test_an_error_of_a_rank_ends_the_launch_with_its_code(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, *learn(tiny_checkpoint, tmp_path / "out", "--nproc", "2", "--batch-tokens", "96")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "cannot share equally" in done.stderr
    assert "Traceback" not in done.stderr
