"""The command line as a whole: fast help, exit codes, plain errors, interrupts. Commands run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from maskpro_deploy import __version__, commands
from maskpro_deploy.cli import COMMANDS, INTERRUPTED, cli

HEAVY = ("torch", "onnx", "transformers", "onnxruntime", "numpy", "safetensors", "tokenizers", "matplotlib", "starlette")


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "maskpro_deploy", *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def leaves(command, path=()):
    """Every command that does something, with its words."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), (*path, name))
    else:
        yield path


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from maskpro_deploy.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_the_package_itself_imports_nothing_heavy():
    code = f"import sys, maskpro_deploy, maskpro_deploy.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_has_a_file_and_every_file_is_a_command():
    # the GPU check has a script of its own
    shared = {"__init__", "options", "run_options", "setting_options", "gpu_check", "benchmark_serve"}
    files = {file.stem for file in Path(commands.__file__).parent.glob("*.py")} - shared
    modules = [module for module, _ in COMMANDS.values()]
    assert sorted(modules) == sorted(files)


def test_version():
    assert run("--version").stdout.strip().endswith(__version__)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_shows_an_example(name):
    for words in leaves(cli.get_command(click.Context(cli), name), (name,)):
        done = CliRunner().invoke(cli, [*words, "--help"])
        assert done.exit_code == 0, done.output
        assert f"maskpro-deploy {' '.join(words)}" in done.output.split("Options:")[0].split("\n", 2)[2]


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_the_lines_of_an_example_stay_lines(name):
    for words in [()] if name is None else leaves(cli.get_command(click.Context(cli), name), (name,)):
        lines = CliRunner().invoke(cli, [*words, "--help"]).output.splitlines()
        assert not [line for line in lines if "\\b" in line or "\b" in line]
        assert any(line.strip().startswith("maskpro-deploy ") for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_group_and_command_answers_to_both_flags(name):
    # in processes of their own: click remembers the help option of a command that was once invoked without its group
    short, long = (run(name, flag) for flag in ("-h", "--help"))
    assert short.stdout == long.stdout != ""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_neither_torch_nor_transformers(name):
    code = (
        "import sys\n"
        "from maskpro_deploy.cli import cli\n"
        f"cli.main([{name!r}, '--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "nope"], "nope does not exist"),
        (["validate", "x", "--sparsity", "4:2"], "4:2"),
        (["validate", "x", "--sparsity", "5"], "5"),
        (["validate"], "Missing argument"),
        (["validate", "x", "--nope"], "No such option"),
        (["nope"], "No such command"),
        (["validate", "x", "--require", "some"], "--require"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_usage_ends_with_2_and_plain_lines(arguments, said, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5  # click puts two lines of usage before its own


def test_an_answer_of_no_ends_with_1_and_one_object(tiny_checkpoint):
    done = run("validate", str(tiny_checkpoint), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["holds"] is False


@pytest.mark.parametrize(
    ("words", "code"), [("validate {sparse} --json", 0), ("validate {dense}", 1), ("--help", 0), ("learn --help", 0)]
)
def test_a_reader_that_goes_away_changes_no_answer(tiny_sparse, tiny_checkpoint, words, code):
    words = words.format(sparse=tiny_sparse, dense=tiny_checkpoint)
    command = f"{sys.executable} -m maskpro_deploy {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.fixture
def endless(tmp_path):
    """A file so large that checking it takes minutes; its bytes are holes that take no space."""
    rows, columns = 1 << 22, 1 << 14
    header = json.dumps(
        {"w.weight": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}}
    ).encode()
    path = tmp_path / "endless.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + 4 * rows * columns)
        except OSError:
            pytest.skip("the file system has no files with holes of this size")
    return path


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_no_traceback(endless, sent):
    child = subprocess.Popen(
        [sys.executable, "-m", "maskpro_deploy", "validate", str(endless)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell hands down that it is ignored
    )
    assert "validating" in child.stderr.readline()  # it is at work
    child.send_signal(sent)
    out, err = child.communicate(timeout=60)
    assert child.returncode == INTERRUPTED
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err


def test_logs_go_to_stderr_only_when_asked(tiny_sparse):
    done = run("-v", "validate", str(tiny_sparse), "--json")
    assert json.loads(done.stdout)["holds"] is True
    assert done.returncode == 0
