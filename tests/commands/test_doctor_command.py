"""`maskpro-deploy doctor`: one object or readable text, and exit code 3 only for a broken base."""

from __future__ import annotations

import json
import subprocess
import sys

from click.testing import CliRunner

from maskpro_deploy.commands.doctor import command
from maskpro_deploy.doctor import abilities
from maskpro_deploy.doctor.machine import examine
from maskpro_deploy.errors import MachineError


def test_json_is_one_object():
    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    assert value["healthy"] is True
    assert {lane["name"].split(",")[0] for lane in value["lanes"]} == {"TensorRT 11", "TensorRT 10", "TensorRT-RTX"}


def test_text_has_every_section_and_the_commands_that_mend():
    done = CliRunner().invoke(command)
    for title in ("Machine", "Software", "Extras", "TensorRT lanes", "Steps"):
        assert f"{title}\n" in done.stdout
    if any(not e.ready for e in examine().extras):
        assert "pip install 'maskpro-deploy[" in done.stdout


def test_a_broken_base_still_prints_and_ends_with_3(monkeypatch):
    monkeypatch.setitem(abilities.BASE, "no_such_module", "no-such-module")
    done = CliRunner().invoke(command, ["--json"])
    assert json.loads(done.stdout)["healthy"] is False
    assert isinstance(done.exception, MachineError)
    assert "no-such-module" in str(done.exception)


def test_it_imports_no_torch():
    code = (
        "import sys\n"
        "from maskpro_deploy.cli import cli\n"
        "cli.main(['doctor', '--json'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'tensorrt_rtx', 'ray') if m in sys.modules], file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "[]\n"
