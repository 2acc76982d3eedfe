"""How a benchmark run ends: printed, written to a folder, and an exit code by whether it is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.system.output import emit
from maskpro_deploy.targets.arms import notes_for

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.bench.results.document import Document
    from maskpro_deploy.bench.results.run import RunResult
    from maskpro_deploy.bench.roofline import Arithmetic
    from maskpro_deploy.bench.sweeps.result import BenchResult
    from maskpro_deploy.bench.sweeps.sweep import SweepOptions
    from maskpro_deploy.reports.blocks import Report


class Measure(Protocol):
    """Measures arms that are open."""

    def __call__(self, arms: list[ModelArm[Any]], given: SweepOptions, /) -> BenchResult: ...


def measure_and_emit(
    measure: Measure,
    open_all: Callable[[], list[ModelArm[Any]]],
    *,
    out: Path | None,
    force: bool,
    resume: bool,
    append: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Open the bundles, measure, save after each session, print, write; exit code 1 for an invalid run."""
    from maskpro_deploy.bench.sweeps.saved import load
    from maskpro_deploy.bench.sweeps.summary import describe
    from maskpro_deploy.reports.latency import build_page
    from maskpro_deploy.system.extras import require
    from maskpro_deploy.system.progress import Meter

    earlier = check_out(out, force=force, resume=resume, append=append)
    if out is not None:
        require("report", "writing report.html")
    arms = open_all()
    saved = load(out) if out is not None and earlier else None
    meter = Meter("benchmark", "sessions")
    options: SweepOptions = {"notes": notes_for(arms), "progress": meter, "earlier": saved, "append": append}
    if all(arm.on_cpu for arm in arms):
        options["arithmetic"] = measured_arithmetic(threads)
    folder = Folder(out, fresh=not earlier, force=force) if out is not None else None
    if folder is not None:
        options["save"] = folder.save
    with going_on(folder):
        result = measure(arms, options)
    meter.close()
    emit_run(result, describe(result), lambda: build_page(result), out, as_json=as_json)


def emit_run(result: RunResult, document: Document, page: Callable[[], Report], out: Path | None, *, as_json: bool) -> None:
    """Write the files of a run that is over, and print it.

    Args:
        result: what was measured.
        document: what is said of it.
        page: makes the same as a page; only where there is a folder.
        out: the folder, which exists.
        as_json: print the result, not the document.

    Raises:
        CheckFailed: the run is invalid.
    """
    from maskpro_deploy.bench.results.document import to_text

    if out is not None:
        from maskpro_deploy.reports.run import write_run

        write_run(out, result.to_json(), document, page())
    emit(as_json, result.to_json(), to_text(document, out))
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {result.invalid_reasons[0]}\nNo comparison was made.")


def check_out(out: Path | None, *, force: bool, resume: bool, append: bool) -> bool:
    """Whether there is an earlier result to go on with.

    Raises:
        ConfigError: flags that contradict each other.
        InputError: the folder holds something that is not to be replaced, or nothing that one could go on with.
    """
    from maskpro_deploy.bench.results.run import RESULT_FILE
    from maskpro_deploy.errors import ConfigError, InputError
    from maskpro_deploy.system.files import check_free

    if resume + append + force > 1:
        raise ConfigError("--resume, --append and --force exclude each other: go on, add to it, or replace it.")
    if not (resume or append):
        if out is not None:
            check_free(out, force=force)
        return False
    if out is None:
        raise ConfigError(f"--{'resume' if resume else 'append'} needs --out: the folder of the run to go on with.")
    if (out / RESULT_FILE).is_file():
        return True
    if append or (out.exists() and any(out.iterdir())):
        raise InputError(f"{out} holds no {RESULT_FILE}: there is no run to go on with.\nGive the folder of one as --out.")
    return False  # interrupted before the first session was over


class Result(Protocol):
    """What a benchmark found, or has found so far."""

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""


class Folder:
    """A folder that holds the result so far.

    Args:
        path: the folder.
        fresh: it does not hold this run yet.
        force: replace what is there.
    """

    def __init__(self, path: Path, *, fresh: bool, force: bool) -> None:
        self.path = path
        self._fresh, self._force = fresh, force

    @property
    def holds_run(self) -> bool:
        """Whether there is something to go on with."""
        return not self._fresh

    def save(self, result: Result) -> None:
        """Write result.json, whole or not at all."""
        from maskpro_deploy.bench.results.run import RESULT_FILE
        from maskpro_deploy.system.files import new_folder, write_json

        if self._fresh:
            with new_folder(self.path, force=self._force) as folder:
                write_json(folder / RESULT_FILE, result.to_json())
            self._fresh = False
        else:
            write_json(self.path / RESULT_FILE, result.to_json())


@contextmanager
def going_on(folder: Folder | None) -> Iterator[None]:
    """Say how to go on, where a run is interrupted that was saved."""
    from maskpro_deploy.errors import Interrupted

    try:
        yield
    except KeyboardInterrupt:
        if folder is None or not folder.holds_run:
            raise
        raise Interrupted(
            f"interrupted; what was measured is kept in {folder.path}.\nGo on with the same command and --resume."
        ) from None


def measured_arithmetic(threads: int | None) -> Arithmetic:
    """The speed of a large fp32 matrix product in onnxruntime, which runs the bundles too."""
    from maskpro_deploy.bench.roofline import GEMM_SIZE, measure_arithmetic
    from maskpro_deploy.targets.products import Gemm, open_gemm

    multiply = open_gemm(Gemm(form="fp32", k=GEMM_SIZE, n=GEMM_SIZE), m=GEMM_SIZE, threads=threads)
    return measure_arithmetic(threads, multiply, method="onnxruntime")
