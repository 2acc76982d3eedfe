"""`maskpro-deploy benchmark`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from maskpro_deploy.commands._shared import DURATION, PATH, emit, force_option, json_option, seed_option, table, threads_option
from maskpro_deploy.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.bench.result import BenchResult
    from maskpro_deploy.bench.sweep import SweepConfig
    from maskpro_deploy.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

CPU_NOTE = (
    "Stock onnxruntime has no 2:4 kernels on a CPU: it multiplies the zeros of a sparse weight like any other value. "
    "A difference between a dense and a 2:4 bundle here does not come from sparsity."
)
# measured on a busy machine: one bundle as both arms gave 0.98x, a dense and a 2:4 bundle (the same kernels) up to 1.05x
SESSION_NOTE = (
    "The bundles run in two sessions of one process, and two sessions of the same kernels have differed by up to "
    "5 % on a busy machine (benchmark latency BUNDLE --against BUNDLE shows it for this one). A verdict on a difference of that "
    "size says nothing."
)


class SizesType(click.ParamType[tuple[int, ...]]):
    """Sizes separated by commas, such as 1,4,16."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            flag = param.opts[0] if param is not None else "sizes"
            raise ConfigError(f"{flag} {value!r}: expected whole numbers separated by commas, such as 1,4,16.") from None
        return tuple(dict.fromkeys(sizes))


SIZES = SizesType()


def _common(function: F) -> F:
    """The options that both benchmarks have."""
    options = [
        click.argument("bundle", type=PATH),
        click.option("--against", type=PATH, metavar="BUNDLE", help="A second bundle, measured in the same run."),
        click.option("--budget", type=DURATION, help="Time for the whole run; each case takes its fewest samples (20) even so."),
        click.option("--same-model", is_flag=True, help="The bundles are the same model: they have to choose the same tokens."),
        click.option("--provider", default="cpu", show_default=True, metavar="cpu|cuda|tensorrt|auto", help="Where it runs."),
        threads_option,
        click.option("--spin", is_flag=True, help="Let waiting threads spin (as in `serve --spin`); off, they sleep."),
        seed_option,
        click.option("--out", type=PATH, help="Folder for result.json, report.md and report.html."),
        force_option,
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group("benchmark")
def command() -> None:
    r"""Measure latency and throughput, sparse beside dense, in one run.

    Arms are timed in interleaved blocks (A B B A); each comparison comes with a 95 % interval and a verdict, and each report with
    a test of the harness against itself. Exit code 1: the run is invalid, and the reason is given.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle --out report
      maskpro-deploy benchmark throughput bundle --batch 1,2,4,8
    """


@command.command("latency")
@_common
@click.option("--batch", type=SIZES, default=(1,), show_default="1", help="Batch sizes.")
@click.option("--prompt", type=SIZES, default=(128,), show_default="128", help="Prompt lengths for prefill, in tokens.")
@click.option("--context", type=SIZES, default=(128,), show_default="128", help="Context lengths for decode, in tokens.")
@click.option("--decode-steps", type=int, default=8, show_default=True, help="Decode steps in one sample.")
@click.option("--samples", type=int, default=60, show_default=True, help="Samples of each arm in each case, at most.")
def latency(
    batch: tuple[int, ...],
    prompt: tuple[int, ...],
    context: tuple[int, ...],
    decode_steps: int,
    samples: int,
    bundle: Path,
    against: Path | None,
    provider: str,
    threads: int | None,
    spin: bool,
    out: Path | None,
    force: bool,
    as_json: bool,
    **sweep: Any,
) -> None:
    r"""Measure prefill and decode latency of BUNDLE over batch, prompt and context lengths.

    \b
    Example:
      maskpro-deploy benchmark latency bundle --against dense-bundle
      maskpro-deploy benchmark latency bundle --batch 1,4 --context 128,512 --budget 5m --threads 2 --out report
    """
    from maskpro_deploy.bench.latency import LatencyConfig, run_latency

    config = LatencyConfig(
        batches=batch, prompts=prompt, contexts=context, decode_steps=decode_steps, sweep=_sweep(samples, threads, sweep)
    )

    def run(arms: list[ModelArm[Any]], notes: list[str], progress: Progress) -> BenchResult:
        return run_latency(arms, config, notes=notes, progress=progress)

    bundles = [bundle, *([against] if against is not None else [])]
    _run(run, lambda: open_arms(bundles, provider, threads, spin=spin), out, force=force, as_json=as_json)


@command.command("throughput")
@_common
@click.option("--batch", type=SIZES, default=(1, 2, 4, 8), show_default="1,2,4,8", help="Batch sizes.")
@click.option("--prompt", type=int, default=128, show_default=True, help="Prompt length in tokens.")
@click.option("--output", type=int, default=32, show_default=True, help="Tokens to generate per row.")
@click.option("--latency-bound", type=float, metavar="MS", help="The best batch keeps its median time per token within this.")
@click.option("--samples", type=int, default=20, show_default=True, help="Samples of each arm at each batch size, at most.")
def throughput(
    batch: tuple[int, ...],
    prompt: int,
    output: int,
    latency_bound: float | None,
    samples: int,
    bundle: Path,
    against: Path | None,
    provider: str,
    threads: int | None,
    spin: bool,
    out: Path | None,
    force: bool,
    as_json: bool,
    **sweep: Any,
) -> None:
    r"""Measure tokens per second of BUNDLE over batch sizes, and the best batch within a latency bound.

    \b
    Example:
      maskpro-deploy benchmark throughput bundle --against dense-bundle --batch 1,2,4,8 --latency-bound 100
    """
    from maskpro_deploy.bench.throughput import ThroughputConfig, run_throughput

    config = ThroughputConfig(
        batches=batch, prompt=prompt, output=output, latency_bound_ms=latency_bound, sweep=_sweep(samples, threads, sweep)
    )

    def run(arms: list[ModelArm[Any]], notes: list[str], progress: Progress) -> BenchResult:
        return run_throughput(arms, config, notes=notes, progress=progress)

    bundles = [bundle, *([against] if against is not None else [])]
    _run(run, lambda: open_arms(bundles, provider, threads, spin=spin), out, force=force, as_json=as_json)


def _sweep(samples: int, threads: int | None, options: dict[str, Any]) -> SweepConfig:
    from maskpro_deploy.bench.sweep import SweepConfig

    return SweepConfig(
        samples=samples, threads=threads, budget_s=options["budget"], same_model=options["same_model"], seed=options["seed"]
    )


def _run(
    run: Callable[[list[ModelArm[Any]], list[str], Progress], BenchResult],
    open_all: Callable[[], list[ModelArm[Any]]],
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Open the bundles, measure, print, write; exit code 1 for an invalid run."""
    from maskpro_deploy.bench.summary import headline
    from maskpro_deploy.extras import require
    from maskpro_deploy.files import check_free
    from maskpro_deploy.progress import Meter

    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
    arms = open_all()
    notes = notes_for(arms)
    meter = Meter("benchmark", "cases")
    result = run(arms, notes, meter)
    meter.close()
    if out is not None:
        write_files(result, out, force=force)
    emit(as_json, result.to_json(), text(result, out))
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {headline(result).removeprefix('Invalid: ')}\nNo comparison was made.")


def notes_for(arms: list[ModelArm[Any]]) -> list[str]:
    """What a reader of these arms' figures has to know."""
    notes = [SESSION_NOTE] if len(arms) > 1 else []
    return notes + ([CPU_NOTE] if all(arm.facts["provider"] == "CPUExecutionProvider" for arm in arms) else [])


def open_arms(bundles: list[Path], provider: str, threads: int | None, *, spin: bool = False) -> list[ModelArm[Any]]:
    """Open bundles as arms, named after their folders.

    Two sessions share the process, and the spinning threads of one would take time from the other: hence no spinning by default.

    Raises:
        InputError: a path is no bundle, or two bundles have different tokenizers.
    """
    from maskpro_deploy.bench.model import ModelArm
    from maskpro_deploy.bench.roofline import weight_bytes
    from maskpro_deploy.manifest import Manifest, safe_path
    from maskpro_deploy.runtime import SessionConfig, open_session

    config = SessionConfig(provider=provider, threads=threads, spin=spin)
    manifests = [Manifest.load(bundle) for bundle in bundles]
    _check_tokenizers(bundles)
    arms = []
    for bundle, manifest, name in zip(bundles, manifests, _names(bundles), strict=True):
        session = open_session(bundle, config)
        shape = session.shape
        value_bytes = 4 if manifest.graph.dtype == "fp32" else 2
        arms.append(
            ModelArm(
                name=name,
                forward=session.forward,
                vocab_size=shape.vocab_size,
                max_length=shape.max_length,
                weight_bytes=weight_bytes(safe_path(bundle, manifest.graph.file)),
                kv_bytes_per_token=2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * value_bytes,
                facts={
                    "model_id": shape.name,
                    "path": str(bundle),
                    "dtype": manifest.graph.dtype,
                    "cache_form": manifest.graph.form,
                    "sparsity": manifest.sparsity,
                    "sparse_weights": len(manifest.sparse_weights),
                    "provider": session.providers[0],
                    "threads": threads,
                    "threads_spin": spin,
                    "files_sha256": _digest(manifest),
                },
            )
        )
    return arms


def _digest(manifest: Any) -> str:
    """One hash for all files of a bundle."""
    import hashlib

    lines = sorted(f"{entry.path} {entry.sha256}" for entry in manifest.files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_tokenizers(bundles: list[Path]) -> None:
    from maskpro_deploy.data import load_tokenizer
    from maskpro_deploy.errors import InputError

    first, *others = bundles
    vocabulary = load_tokenizer(first).get_vocab()
    for other in others:
        if load_tokenizer(other).get_vocab() != vocabulary:
            raise InputError(
                f"{first} and {other} have different vocabularies: a token of one is not a token of the other.\n"
                f"Measure them in separate runs."
            )


def _names(bundles: list[Path]) -> list[str]:
    """Folder names; the whole paths where these are the same; numbered where one bundle is measured against itself."""
    names = [bundle.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        names = [str(bundle) for bundle in bundles]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names


def text(result: BenchResult, out: Path | None = None) -> str:
    """The result as it is printed."""
    from maskpro_deploy.bench import summary

    lines = [table(summary.rows(result), summary.columns(result)), ""]
    if not result.valid:
        lines += [f"INVALID: {reason}" for reason in result.invalid_reasons] + [""]
    lines += [verdict.sentence for verdict in summary.verdicts(result)]
    lines += summary.best_batches(result)
    lines += ["", *summary.caveats(result)]
    lines += [f"Machine: {summary.machine_line(result)}"]
    if out is not None:
        lines += [f"Report: {out / 'report.html'}"]
    return "\n".join(lines)


def write_files(result: BenchResult, out: Path, *, force: bool) -> None:
    """result.json, report.md and report.html in a new folder, as a whole or not at all."""
    from maskpro_deploy.bench.page import page
    from maskpro_deploy.bench.report import REPORT_FILE, write
    from maskpro_deploy.bench.result import RESULT_FILE
    from maskpro_deploy.bench.summary import markdown
    from maskpro_deploy.files import new_folder, write_json

    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    with new_folder(out, force=force) as folder:
        write_json(folder / RESULT_FILE, value)
        (folder / "report.md").write_text(markdown(result), encoding="utf-8")
        write(page(result), folder / REPORT_FILE)
