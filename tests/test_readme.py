"""What the README shows is run: every command and every Python example, in reading order, in an empty folder.

The demo model is a tiny one here (the cache folder decides what `demo` is), and times to learn are cut short; nothing else is
changed. That the shown figures are real is the business of `scripts/demo`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_config, write_tiny

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}\$ maskpro-deploy (.+)$", README, flags=re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
NO_RESULT = {"serve"}  # runs until it is stopped: its own tests do that


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder to work in, and a cache folder whose demo model is tiny."""
    from maskpro_deploy.models import _DEMO_FOLDER

    folder = tmp_path_factory.mktemp("readme")
    model = write_tiny(folder / "cache" / _DEMO_FOLDER)
    (model / "config.json").write_text(json.dumps({**tiny_config(), "max_position_embeddings": 1024}))
    (folder / "work").mkdir()
    return folder


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "MASKPRO_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run(home: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=home / "work", env=environment(home), capture_output=True, text=True, timeout=300, check=False
    )


def test_every_command_is_shown() -> None:
    from maskpro_deploy.cli import COMMANDS as ALL

    shown = {c.split()[0] for c in COMMANDS} | set(re.findall(r"^ {4}maskpro-deploy ([\w-]+)", README, flags=re.MULTILINE))
    assert set(ALL) - {"demo"} <= shown
    assert "scripts/demo" in README
    assert "scripts/test" in README


def test_all_commands_run_in_the_order_shown(home: Path) -> None:
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        words = re.sub(r"--budget \S+", "--budget 4s", command).split()
        if words[:2] == ["benchmark", "serve"]:
            words += ["--max-lag", "10000"]  # the tiny model answers in no time: 5 ms are much on a busy machine
        if words[0] in NO_RESULT:
            continue
        done = run(home, [sys.executable, "-m", "maskpro_deploy", *words])
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command


def test_the_python_examples_run(home: Path) -> None:
    pytest.importorskip("openai")
    from maskpro_deploy.exporters import export
    from maskpro_deploy.runtime.http.lifecycle import running_server

    learn, recover, chat = PYTHON
    assert "learn_masks" in learn
    assert run(home, [sys.executable, "-c", learn.replace("budget_s=300", "steps=2")]).returncode == 0
    assert (home / "work" / "masks.safetensors").is_file()

    assert "import recover" in recover
    command = [sys.executable, "-m", "maskpro_deploy", "learn", "--model", "demo", "--out", "sparse", "--steps", "0", "--force"]
    assert run(home, command).returncode == 0
    shutil.rmtree(home / "work" / "recovered", ignore_errors=True)
    assert run(home, [sys.executable, "-c", recover.replace("budget_s=300", "steps=1")]).returncode == 0
    assert (home / "work" / "recovered" / "adapter").is_dir()

    export(write_tiny(home / "model"), home / "served")
    with running_server(home / "served") as url:
        done = run(home, [sys.executable, "-c", chat.replace("http://127.0.0.1:8000", url)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _headings(page: str) -> set[str]:
    """What can follow `#` in a link to a page, as GitHub names headings."""
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", page, re.M)}


def test_links_lead_somewhere() -> None:
    root = Path(__file__).resolve().parent.parent
    headings = _headings(README)
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            path, _, heading = target.partition("#")
            assert (root / path).exists(), target
            if heading:
                assert heading in _headings((root / path).read_text(encoding="utf-8")), target


def test_the_file_tree_names_what_is_there() -> None:
    root = Path(__file__).resolve().parent.parent
    tree = README.split("## File tree")[1].split("## ")[0]
    inner = re.findall(r"^ {6}([\w.]+)/?\s", tree, flags=re.MULTILINE)
    assert len(inner) >= 6
    for name in inner:
        assert (root / "maskpro_deploy" / name).exists(), name
    for name in re.findall(r"^ {4}([\w.]+)/", tree, flags=re.MULTILINE):
        assert (root / name).is_dir(), name
