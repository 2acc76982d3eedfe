"""The script that measures serving: every part runs on a tiny bundle, and a peer that cannot start is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskpro_deploy.system.extras import missing

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_serve"

pytestmark = pytest.mark.skipif(bool(missing("load") or missing("serve")), reason="needs the extras load and serve")


@pytest.fixture(scope="module")
def figures(sparse_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """One short run of everything, and what it said."""
    nothing = tmp_path_factory.mktemp("peers") / "none.gguf"
    nothing.write_bytes(b"no model")
    command = [sys.executable, str(SCRIPT), str(sparse_bundle), "--minutes", "0.02", "--streams", "4", "--prefix", "40", "--json"]
    command += ["--llama", str(nothing), "--llama-python", sys.executable, "--transformers", str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_arm_that_starts_is_measured(figures: tuple[dict[str, Any], str], sparse_bundle: Path) -> None:
    result, said = figures
    assert set(result["speed"]) == {f"{sparse_bundle.name} cat", "transformers"}
    assert "left out: llama.cpp does not start" in said
    for own in result["speed"].values():
        wanted = {"start_s", "one_stream", "many_streams", "ratio", "first_new_ms", "first_warm_ms", "ceiling", "load"}
        assert set(own) == wanted
        assert all(value > 0 for name in wanted - {"load"} for value in own[name])
        assert own["ratio"][0] == pytest.approx(own["many_streams"][0] / own["one_stream"][0])


def test_time_outside_of_the_session_is_more_over_http(figures: tuple[dict[str, Any], str]) -> None:
    (own,) = figures[0]["overhead"].values()
    assert own["over HTTP, processor ms a token"] > own["without HTTP, processor ms a token"] > 0
    assert all(value > 0 for value in own.values())


def test_nothing_is_left_of_a_crowd(figures: tuple[dict[str, Any], str]) -> None:
    result = figures[0]
    overload, vanished = result["overload"], result["vanish"]
    assert overload["sent"] == overload["answered"] + overload["refused"]
    assert overload["answered"] > 0
    assert overload["answers again"]
    for part in (overload, vanished):
        assert part["gauges after"]["num_requests_running"] == part["gauges after"]["num_requests_waiting"] == 0
    assert vanished["streams answered again, tok/s"] > 0
