"""The script that compares methods: its sets name arms that there are, and arms end as rows of one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskpro_deploy.data import load_text

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_learn"

pytest.importorskip("torch")


def bench(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--work", str(work), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_set_stands_for_its_arms_and_other_names_are_refused(tmp_path: Path) -> None:
    assert bench(tmp_path, "--arms", "all,across-10", "--table").returncode == 0
    refused = bench(tmp_path, "--arms", "everything", "--table")
    assert refused.returncode == 2
    assert "no arm is called everything" in refused.stderr


def test_learned_and_one_shot_arms_are_rows_of_one_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, source in (("learn", "builtin"), ("eval", "builtin:heldout")):
        (tmp_path / f"{name}.txt").write_text("\n%%\n".join(load_text(source).documents[:8]), encoding="utf-8")
    texts = ["--learn-text", str(tmp_path / "learn.txt"), "--eval-text", str(tmp_path / "eval.txt")]
    short = "--heldout-tokens 512 --calibration-tokens 512 --evaluations 1"
    arms = [
        "--arms",
        "proxsparse-100k,dense-random-100k,magnitude",
        "--seeds",
        "0",
        "--minutes",
        "0.01024",
        "--calibration-tokens",
        "512",
    ]
    limits = ["--max-windows", "1", "--learn-args", short, "--device", "cpu"]
    done = bench(tmp_path / "work", "--model", str(tiny_checkpoint), *texts, *arms, *limits)
    assert done.returncode == 0, done.stderr[-3000:]
    head, learned, partly, one_shot = (line.split() for line in done.stdout.splitlines()[-4:])
    assert head[:8] == ["arm", "seed", "text", "tokens", "minutes", "s/step", "bytes/w", "peak"]
    assert learned[:4] == ["proxsparse-100k", "0", "eval", "1,024"]
    assert learned[6] == "16.38"  # a copy, two moments, gradients; and bits of masks
    assert partly[:4] == ["dense-random-100k", "0", "eval", "1,024"]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "work").glob("*/dense-random-100k-seed0/learn.json"))
    assert 0 < len(record["left_dense"]) < record["layers"]
    assert one_shot[:4] == ["magnitude", "0", "eval", "0"]
    assert one_shot[5:7] == ["-", "-"]
