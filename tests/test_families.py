"""The table of families is what `scripts/check_families` says: every family, today's versions, and, run here, some rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from decoder_families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
SOME = ("llama, tied", "gpt_neo", "mamba")  # a template, a graph that is traced, one that is not exported


def test_every_family_has_one_row() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE, flags=re.MULTILINE)
    assert sorted(rows) == sorted([*FAMILIES, "family", "family"])


def test_the_versions_are_those_that_are_installed_here() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for name, version in re.findall(r"(transformers|mobius-onnx|torch) ([\d.]+\d)", PAGE):
        assert pinned[name] == version, f"{name}: run scripts/check_families --table docs/families.md"


def test_rows_are_what_the_script_says_now() -> None:
    pytest.importorskip("mobius")
    command = [sys.executable, str(ROOT / "scripts" / "check_families"), *SOME, "--jobs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for family, result in json.loads(done.stdout)["families"].items():
        assert result["row"] in PAGE.splitlines(), f"{family}: run scripts/check_families --table docs/families.md"
