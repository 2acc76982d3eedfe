from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from maskpro_deploy import __version__
from maskpro_deploy.bench import environment


def test_the_environment_is_json_without_nan() -> None:
    found = environment.capture()
    json.dumps(found, allow_nan=False)
    assert found["maskpro_deploy"] == __version__
    assert found["cpu_count"] >= 1
    assert found["packages"]["numpy"]
    assert found["memory_bytes"] > 1 << 20


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["/usr/bin/tool", "run", "--api-key", "s3cret", "x"], "tool run --api-key *** x"),
        (["tool", "--hf-token=s3cret"], "tool --hf-token=***"),
        (["tool", "HF_TOKEN=s3cret"], "tool HF_TOKEN=***"),
        (["tool", "--password", "s3cret", "--out", "a b"], "tool --password *** --out 'a b'"),
        (["tool", "http://me:s3cret@127.0.0.1/v1"], "tool http://***@127.0.0.1/v1"),
        (["tool", "--no-auth", "--out", "x"], "tool --no-auth --out x"),
        (["tool", "--batch", "1,4"], "tool --batch 1,4"),
    ],
)
def test_secrets_on_the_command_line_are_hidden(given: list[str], shown: str) -> None:
    assert environment.command_line(given) == shown


@pytest.mark.parametrize(("text", "cores"), [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", None)])
def test_the_cpu_limit_of_a_version_2_cgroup_is_read(text: str, cores: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert environment.cgroup_cpu_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000", 1.5), ("-1", None)])
def test_the_cpu_limit_of_a_version_1_cgroup_is_read(quota: str, cores: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert environment.cgroup_cpu_cores(tmp_path) == cores


@pytest.mark.parametrize(("text", "limit"), [("1048576", 1 << 20), ("max", None)])
def test_the_memory_limit_of_a_cgroup_is_read(text: str, limit: int | None, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert environment.cgroup_memory_bytes(tmp_path) == limit


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert environment.cgroup_cpu_cores(tmp_path) is None
    assert environment.cgroup_memory_bytes(tmp_path) is None
    assert environment.git_state(tmp_path) is None


def test_the_git_state_is_that_of_the_tree_that_tracks_the_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "__init__.py").write_text("")
    assert environment.git_state(tmp_path) is None  # not tracked: somebody else's tree
    git("add", "__init__.py")
    git("commit", "-qm", "first")
    assert environment.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "__init__.py").write_text("x = 1\n")
    state = environment.git_state(tmp_path)
    assert state is not None
    assert state["dirty"] is True


def test_the_module_run_by_python_is_told_as_the_program(tmp_path: Path) -> None:
    assert environment.command_line(["/somewhere/maskpro_deploy/__main__.py", "doctor"]) == "maskpro-deploy doctor"
    assert environment.command_line(["/somewhere/pytest/__main__.py", "-q"]) == "__main__.py -q"


def test_the_note_on_reproducing_names_versions_and_commit() -> None:
    known = {"maskpro_deploy": "1.2", "git": {"commit": "0123456789abcdef", "dirty": True}, "packages": {"onnxruntime": "1.9"}}
    note = environment.reproduce_note(known)
    assert note == "maskpro-deploy 1.2, commit 0123456789ab with changes, onnxruntime 1.9. Raw samples are in result.json."
    assert environment.reproduce_note({"maskpro_deploy": "1.2"}) == "maskpro-deploy 1.2. Raw samples are in result.json."


def test_earlier_runs_and_a_busy_machine_are_told() -> None:
    earlier = [{"date": "2026-01-01", "sessions": 3, "command_line": "maskpro-deploy benchmark latency b"}]
    busy, went_on = environment.describe_circumstances({"cpu_count": 2, "load_average_1min": 1.5}, earlier)
    assert busy == "The machine was busy when the run began: load average 1.5 on 2 cores."
    assert went_on == "Goes on with a run of 2026-01-01 that had done 3 sessions: maskpro-deploy benchmark latency b"
    assert environment.describe_circumstances({"cpu_count": 2, "load_average_1min": 0.5}) == []
    assert environment.describe_circumstances({"cpu_count": None}) == []
