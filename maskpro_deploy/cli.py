"""The `maskpro-deploy` command: a group that imports a command's module only when that command runs.

`maskpro-deploy --help` must answer at once, so the short texts below stand here and not in the modules they describe.
"""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Any

import click

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import Interrupted, MaskProError
from maskpro_deploy.system.output import ignore_closed_stdout

# command -> (module in maskpro_deploy.commands, one line for --help), in the order of a first reading
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run the whole path on a small real model and show the results."),
    "learn": ("learn", "Learn a strict N:M mask for a language model."),
    "recover": ("recover", "Train the weights that a mask keeps, against the dense model."),
    "plan": ("plan", "Predict the memory and time that learning needs, before anything is loaded."),
    "masks": ("masks", "Look at mask files, compare them, put them on a model."),
    "validate": ("validate", "Prove that a file or folder holds the N:M pattern."),
    "export": ("export", "Turn a checkpoint into an ONNX bundle."),
    "build-engine": ("build_engine", "Build a TensorRT engine from a bundle."),
    "serve": ("serve", "Serve a bundle over an OpenAI-compatible HTTP API."),
    "benchmark": ("benchmark", "Measure latency and throughput, sparse against dense."),
    "eval": ("eval", "Measure quality, sparse against dense."),
    "doctor": ("doctor", "Say what this machine can do, or how a running server is."),
}
INTERRUPTED = Interrupted.exit_code


def keep_lines(command: click.Command) -> None:
    r"""Let `\b` in a raw docstring mean what it means to click: the lines of the next paragraph stay as they are."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    for inner in getattr(command, "commands", {}).values():
        keep_lines(inner)


class LazyGroup(click.Group):
    """A group whose commands are found in `COMMANDS` and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"maskpro_deploy.commands.{COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        keep_lines(command)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with ignore_closed_stdout():
            return super().make_context(info_name, args, parent, **extra)
        raise click.exceptions.Exit(0)  # the reader left while the help was printed

    def invoke(self, ctx: click.Context) -> Any:
        with ignore_closed_stdout():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="maskpro-deploy")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside, on stderr.")
def cli(verbose: bool) -> None:
    r"""Take a language model to strict N:M sparsity and into production.

    \b
    Start here:
      maskpro-deploy demo
    The steps one by one:
      maskpro-deploy learn --model demo --sparsity 2:4 --out sparse
      maskpro-deploy validate sparse
      maskpro-deploy export sparse --out bundle
      maskpro-deploy serve bundle
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


keep_lines(cli)


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(command: click.Command = cli) -> None:
    """Run a command line; errors of the user's end as plain lines on stderr and the error's exit code."""
    keep_lines(command)
    signal.signal(signal.SIGTERM, _raise_interrupt)  # so that `finally` blocks run and nothing is left half-written
    try:
        code = command.main(standalone_mode=False)
    except MaskProError as e:
        click.echo(f"error: {e}", err=True)
        code = e.exit_code
    except click.exceptions.Exit as e:
        code = e.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    sys.exit(code if isinstance(code, int) else 0)
