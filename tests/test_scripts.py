"""The scripts start: those in Python show their help, those in shell can be parsed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
FIRST_LINES = {file: file.read_text(encoding="utf-8").split("\n", 1)[0] for file in sorted(SCRIPTS.iterdir()) if file.is_file()}
PYTHON = [file for file, line in FIRST_LINES.items() if line == "#!/usr/bin/env python3"]
SHELL = [file for file, line in FIRST_LINES.items() if line == "#!/usr/bin/env bash"]


def test_every_script_is_python_or_bash() -> None:
    others = set(FIRST_LINES) - set(PYTHON) - set(SHELL)
    assert others == {SCRIPTS / "common.py"}
    assert all(file.stat().st_mode & 0o100 for file in (*PYTHON, *SHELL)), "scripts are executable"


@pytest.mark.parametrize("script", PYTHON, ids=lambda s: s.name)
def test_the_help_of_a_script_is_its_docstring(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"usage: {script.name} ")
    assert f"\n    scripts/{script.name} " in done.stdout


@pytest.mark.parametrize("script", SHELL, ids=lambda s: s.name)
def test_a_shell_script_can_be_parsed(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
