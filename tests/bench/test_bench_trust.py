"""scripts/bench_trust on the tiny model: real comparisons, counted, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_trust"


def trust(bundle: Path, out: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    quick = ("--prompt", 8, "--context", 8, "--threads", 1, "--same-budget", 1, "--planted-budget", 1, "--slowdown", 5.0)
    command = [sys.executable, SCRIPT, bundle, "--out", out, *quick, *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_runs_are_counted_saved_and_gone_on_with(dense_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "trust.jsonl"
    first, _ = trust(dense_bundle, out, "--same", 1, "--planted", 1)
    assert (first["same"]["runs"], first["planted"]["runs"]) == (1, 1)
    assert first["planted"]["median_speedup"] > 2  # six times as slow is hard to miss
    with out.open("a") as file:
        file.write('{"kind": "same", "cut of')  # a run that was killed while it wrote
    second, progress = trust(dense_bundle, out, "--same", 2, "--planted", 1)
    assert (second["same"]["runs"], second["planted"]["runs"]) == (2, 1)
    assert "same 2/2" in progress
    assert "same 1/2" not in progress
    assert "planted" not in progress


def test_simulated_runs_are_counted_without_a_bundle() -> None:
    command = [sys.executable, str(SCRIPT), "--simulate", "400", "--seed", "5"]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout for _ in range(2))
    assert first == again
    found = json.loads(first.splitlines()[-1])
    assert (found["simulated_runs"], found["seed"]) == (400, 5)
    assert set(found["noise"]) == {"normal", "heavy-tailed", "disturbed", "skewed", "measured"}
    for by_pairs in found["noise"].values():
        assert set(by_pairs) == {"4", "8", "12", "24"}
        assert all(0 <= counts["false_alarms_of_two"] < 0.08 for counts in by_pairs.values())  # 400 runs count roughly


def test_nothing_to_do_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "give a bundle and --out, or --simulate" in done.stderr
