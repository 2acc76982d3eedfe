"""How the command tests call the command line."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from maskpro_deploy.cli import cli
from maskpro_deploy.errors import MaskProError


def run(*arguments: object) -> Result:
    """Run a command that has to succeed."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: object) -> dict[str, Any]:
    """Run a command with `--json`; its stdout has to be exactly one object."""
    value = json.loads(run(*arguments, "--json").stdout)
    assert isinstance(value, dict)
    return value


def fail(*arguments: object) -> tuple[MaskProError, Result]:
    """Run a command that has to end with an error of ours; the error and what was printed until then."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert isinstance(result.exception, MaskProError), result.output
    assert 1 <= len(str(result.exception).splitlines()) <= 3
    return result.exception, result
