"""How a benchmark ends: printed, written to a folder, and an exit code by whether it is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from maskpro_deploy.bench.results.document import REPORT_FILE, Document, to_markdown, to_text
from maskpro_deploy.bench.results.run import RESULT_FILE, RunResult
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, Interrupted
from maskpro_deploy.reports.benchmarks import write_run
from maskpro_deploy.reports.blocks import Report
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import check_free, new_folder, write_json
from maskpro_deploy.system.output import emit

T = TypeVar("T")
B = TypeVar("B", bound=RunResult)


class Result(Protocol):
    """What a run measured, or has measured so far."""

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the result of a run goes, and whether an earlier one is continued.

    Raises:
        ConfigError: options that contradict each other.
    """

    out: Path | None = None  # folder of the result; None to print it only
    force: bool = False  # replace what is in the folder
    resume: bool = False  # go on with the interrupted run in the folder
    append: bool = False  # add to the result in the folder
    as_json: bool = False  # print one JSON object

    def __post_init__(self) -> None:
        if self.resume + self.append + self.force > 1:
            raise ConfigError("--resume, --append and --force exclude each other: go on, add to it, or replace it.")
        if (self.resume or self.append) and self.out is None:
            raise ConfigError(f"--{'resume' if self.resume else 'append'} needs --out: the folder of the run to go on with.")

    def find_earlier(self) -> Path | None:
        """The folder, if it holds a result to go on with.

        Raises:
            InputError: the folder holds something that is not to be replaced, or nothing that one could go on with.
        """
        if self.out is None:
            return None
        if not (self.resume or self.append):
            check_free(self.out, force=self.force)
            return None
        if (self.out / RESULT_FILE).is_file():
            return self.out
        if self.append or (self.out.exists() and any(self.out.iterdir())):
            raise InputError(f"{self.out} holds no {RESULT_FILE}: there is no run to continue.\nGive the folder of one as --out.")
        return None  # interrupted before the first session was over


class RunFolder:
    """The folder that holds the result so far; without `--out` nothing is kept.

    Raises:
        InputError: see `Output.find_earlier`.
        MissingExtraError: the report cannot be written here.
    """

    def __init__(self, output: Output) -> None:
        self._output, self._earlier = output, output.find_earlier()
        self._holds_run = self._earlier is not None
        if output.out is not None:
            require("report", "writing report.html")

    def load_earlier(self, load: Callable[[Path], T]) -> T | None:
        """The result to go on with."""
        return load(self._earlier) if self._earlier is not None else None

    def save(self, result: Result) -> None:
        """Write result.json, whole or not at all."""
        if (out := self._output.out) is None:
            return
        with nullcontext(out) if self._holds_run else new_folder(out, force=self._output.force) as folder:
            write_json(folder / RESULT_FILE, result.to_json())
        self._holds_run = True

    @contextmanager
    def explain_interrupt(self) -> Iterator[None]:
        """Say how to go on, where a run is interrupted that was saved."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._holds_run:
                raise
            raise Interrupted(
                f"interrupted; what was measured is kept in {self._output.out}.\nGo on with the same command and --resume."
            ) from None


def run_benchmark(
    measure: Callable[[RunFolder], B], describe: Callable[[B], Document], build_page: Callable[[B], Report], output: Output
) -> None:
    """Measure, write the report, print; `measure` is given the folder in which to save the result so far.

    Raises:
        CheckFailed: the run is invalid.
    """
    folder = RunFolder(output)
    with folder.explain_interrupt():
        result = measure(folder)
    document = describe(result)
    if output.out is not None:
        folder.save(result)
        write_run(output.out, result.to_json(), to_markdown(document), build_page(result))
    emit_result(result, to_text(document), out=output.out, as_json=output.as_json)
    check_valid(result)


def emit_result(result: Result, text: str, *, out: Path | None, as_json: bool) -> None:
    """Print a result, with the place of its report."""
    place = "" if out is None else f"\nReport: {out / REPORT_FILE}"
    emit(as_json, result.to_json(), text + place)


def check_valid(result: RunResult) -> None:
    """Refuse figures that cannot be trusted, with the first reason (CheckFailed)."""
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {result.invalid_reasons[0]}\nNo comparison was made.")
