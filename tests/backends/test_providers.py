"""The registry of providers: every entry is whole, and the commands and errors are made from it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from maskpro_deploy.backends.providers import AUTO, ENGINE_PROVIDERS, PROVIDER_NAMES, PROVIDERS, check_runs_engines
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime import SessionConfig
from maskpro_deploy.system.extras import EXTRAS
from maskpro_deploy.targets.models import RunConfig


def test_every_provider_is_whole():
    assert (AUTO, *PROVIDERS) == PROVIDER_NAMES
    assert len({p.help for p in PROVIDERS.values()}) == len(PROVIDERS)
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert provider.help == provider.help.strip()
        assert provider.extra in EXTRAS
        assert provider.onnxruntime or provider.needs_engine  # it runs something
        assert provider.runs_engines or not provider.needs_engine
        assert all(p.endswith("ExecutionProvider") for p in provider.onnxruntime)


@pytest.mark.parametrize("name", PROVIDER_NAMES)
def test_every_name_is_taken_by_the_settings(name):
    assert SessionConfig(provider=name).provider == RunConfig(provider=name).provider == name
    if name in ENGINE_PROVIDERS:
        check_runs_engines(name, "x.engine")
    else:
        with pytest.raises(ConfigError, match=r"--engine x\.engine is for --provider tensorrt or tensorrt-rtx or trt-native"):
            check_runs_engines(name, "x.engine")
        with pytest.raises(ConfigError, match=r"--engine x\.engine is for"):
            SessionConfig(provider=name, engine="x.engine")


@pytest.mark.parametrize("command", [("serve",), ("eval",), ("benchmark", "latency"), ("benchmark", "serve")])
def test_commands_name_all_providers_and_refuse_others(command):
    text = " ".join(CliRunner().invoke(cli, [*command, "--help"], terminal_width=200).output.split())
    assert all(f"{p.name}: {p.help}" in text for p in PROVIDERS.values())
    refused = CliRunner().invoke(cli, [*command, "--provider", "abacus", "x"])
    assert refused.exit_code == 2
    assert "trt-native" in refused.output


def test_the_registry_loads_nothing_heavy():
    code = (
        "import sys, maskpro_deploy.backends.providers\n"
        "print([m for m in ('numpy', 'onnxruntime', 'torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
