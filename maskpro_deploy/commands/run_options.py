"""What `learn` and `recover` share on the command line: texts, and where a run is watched."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from maskpro_deploy.commands.options import PATH
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import Meter, Stages, silent_stage

if TYPE_CHECKING:
    from maskpro_deploy.data import Text
    from maskpro_deploy.learn.monitor import Observer
    from maskpro_deploy.learn.ranks.group import Ranks
    from maskpro_deploy.reports.blocks import Report

F = TypeVar("F", bound=Callable[..., Any])


def text_options(function: F) -> F:
    """`--data` and `--heldout`."""
    heldout = click.option(
        "--heldout", default="builtin:heldout", show_default=True,
        help="Text to measure on during the run; split:0.1 holds out a part of --data.",
    )  # fmt: skip
    data = click.option(
        "--data", multiple=True, default=("builtin",), show_default=True,
        help="Text: builtin, a .txt, .jsonl or .parquet file, hub:NAME, self or words (the model writes). Several are mixed.",
    )  # fmt: skip
    return data(heldout(function))


def watch_options(function: F) -> F:
    """`--log`, `--tensorboard` and `--report`."""
    report = click.option("--report", "report_file", type=PATH, help="Write a page with curves: FILE.html.")
    events = click.option("--tensorboard", type=PATH, help="Write TensorBoard events into a folder.")
    log = click.option("--log", "log_file", type=PATH, help="Write a log of JSON lines: every step, every measurement.")
    return log(events(report(function)))


def nproc_option(function: F) -> F:
    """`--nproc`."""
    return click.option(
        "--nproc", type=click.IntRange(1), default=1, show_default=True,
        help="Processes of this machine that work together, each on a GPU or on some cores.",
    )(function)  # fmt: skip


@contextmanager
def join_ranks(nproc: int, device: str, out: Path) -> Iterator[Ranks]:
    """The processes of a run: those that `torchrun` started, this one alone, or, in a process of their own each, `nproc`.

    Raises:
        Exit: `nproc` processes did the work; with their exit code.
    """
    from maskpro_deploy.learn.loading import learning_device
    from maskpro_deploy.learn.ranks.group import joined_ranks
    from maskpro_deploy.learn.ranks.launch import is_launched, launch, leads

    if nproc > 1 and not is_launched():
        raise click.exceptions.Exit(launch(nproc, sys.argv[1:], out))
    if not leads():
        logging.getLogger().setLevel(logging.ERROR)  # what all of them would say, the first one says
    with joined_ranks(learning_device(device)) as ranks:
        yield ranks


def meters_of(ranks: Ranks) -> Stages:
    """What makes the meters of a run: one that shows nothing on all ranks but the first."""
    return Meter if ranks.leads else silent_stage


def read_texts(
    data: Sequence[str], heldout: str, find_dense: Callable[[], Path], *, seed: int, device: str
) -> tuple[Text, Text]:  # fmt: skip
    """The texts that `text_options` name; the model in the folder that `find_dense` gives writes those that are its own."""
    from maskpro_deploy.data import load_texts
    from maskpro_deploy.learn.self_text import write_text

    def write(name: str, tokens: int) -> Text:
        return write_text(find_dense(), name, tokens, seed=seed, device=device, progress=Meter("writing", "tokens"))

    return load_texts(data, heldout, write)


@dataclass(frozen=True, slots=True)
class Watching:
    """What `watch_options` gave."""

    log_file: Path | None
    tensorboard: Path | None
    report_file: Path | None

    def open(self) -> Sequence[Observer]:
        """The observers of a run.

        Raises:
            MissingExtraError: something that is to be written needs an extra that is not installed.
        """
        from maskpro_deploy.learn.monitor import JsonLog, TensorBoardLog

        if self.report_file is not None:
            require("report", "a report")
        observers: list[Observer] = [JsonLog(self.log_file)] if self.log_file else []
        return [*observers, TensorBoardLog(self.tensorboard)] if self.tensorboard else observers

    def write_report(self, build: Callable[[str], Report]) -> None:
        """Write the page that `build` makes for a command line, if one is wanted."""
        if self.report_file is not None:
            from maskpro_deploy.bench.environment import command_line
            from maskpro_deploy.reports.blocks import write

            write(build(command_line(sys.argv)), self.report_file)
