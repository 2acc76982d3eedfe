"""`maskpro-deploy serve` as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from maskpro_deploy.commands.serve import command


@contextmanager
def process(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "maskpro_deploy", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maskpro_deploy", "serve", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_answers_and_ends_with_zero(sparse_bundle: Path, number: signal.Signals) -> None:
    with process(
        str(sparse_bundle), "--port", "0", "--provider", "cpu", "--threads", "1", "--served-model-name", "mine"
    ) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        match = re.fullmatch(r"serving mine at (http://127\.0\.0\.1:\d+/v1) \(stop with Ctrl-C\)\n", line)
        assert match, line
        with openai.OpenAI(base_url=match[1], api_key="x") as client:
            assert client.completions.create(model="mine", prompt="x", max_tokens=3).choices[0].finish_reason
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
    assert (server.returncode, out, err) == (0, "", "")


def test_wrong_input_is_one_plain_error(sparse_bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for arguments, code, message in [
            ((str(sparse_bundle), "--port", port), 2, "Address already in use"),
            ((str(tmp_path / "nothing"), "--port", "0"), 2, "does not exist"),
            ((str(sparse_bundle), "--port", "0", "--max-model-len", "9999"), 2, "--max-model-len"),
        ]:
            done = run(*arguments)
            assert done.returncode == code
            assert done.stdout == ""
            assert done.stderr.startswith("error: ")
            assert message in done.stderr
            assert len(done.stderr.splitlines()) <= 3


def test_help_shows_an_example_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKPRO_API_KEY", "hidden-key")
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "maskpro-deploy serve bundle" in shown
    assert "hidden-key" not in shown


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskpro_deploy.errors import MissingExtraError
    from maskpro_deploy.system import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(result.exception, MissingExtraError)
    assert "maskpro-deploy[serve]" in str(result.exception)
