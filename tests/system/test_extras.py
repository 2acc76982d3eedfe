"""A missing extra is one line that names the command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from maskpro_deploy.errors import MissingExtraError
from maskpro_deploy.system import extras


@pytest.fixture
def ghost(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "ghost", ("numpy", "no_such_module"))


@pytest.mark.usefixtures("ghost")
def test_a_missing_extra_names_what_is_missing_and_the_command():
    assert extras.missing("ghost") == ["no_such_module"]
    with pytest.raises(MissingExtraError, match="haunting needs no_such_module") as caught:
        extras.require("ghost", "haunting")
    assert "pip install 'maskpro-deploy[ghost]'" in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_what_is_installed_passes(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "here", ("numpy", "click"))
    assert extras.missing("here") == []
    extras.require("here", "anything")


def test_looking_for_an_extra_imports_nothing():
    code = "import sys; from maskpro_deploy.system.extras import *; [missing(e) for e in EXTRAS]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
