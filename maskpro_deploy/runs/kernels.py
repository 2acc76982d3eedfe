"""The run of `benchmark kernels`: the model's products on the CPU, then on a GPU if there is one, saved as it goes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.graph_work import graph_work
from maskpro_deploy.bench.kernels.measure import KernelCase, plan_cases, run_kernels
from maskpro_deploy.bench.kernels.result import KernelResult, SavedKernels, check_same, load_result
from maskpro_deploy.bench.kernels.summary import describe
from maskpro_deploy.bench.products.measure import ModelProducts, measure_model
from maskpro_deploy.bench.roofline import measure_bandwidth
from maskpro_deploy.bench.sessions import Run, make_empty_run
from maskpro_deploy.bench.sweeps.sweep import SweepConfig
from maskpro_deploy.errors import check_names
from maskpro_deploy.manifest import Manifest, safe_path
from maskpro_deploy.reports.benchmarks import build_kernels_page
from maskpro_deploy.runs.output import Output, RunFolder, run_benchmark
from maskpro_deploy.runs.sweeps import measure_onnxruntime
from maskpro_deploy.system.progress import Meter
from maskpro_deploy.targets.products import FORMS, OpenForm

if TYPE_CHECKING:
    from maskpro_deploy.bench.arms import MeasureConfig, Task

_GPU_BUDGET_S = 300.0
_NOT_YET = {"measured": False, "reason": "the run ended before that"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsConfig:
    """What to measure, and for how long.

    Raises:
        ConfigError: a form is not known or named twice.
    """

    tokens: tuple[int, ...]  # values of M
    forms: tuple[str, ...]  # of the weight; all are compared with the first
    budget_s: float | None  # time for the CPU's products, and as much again for those of a GPU; None: `sessions`
    sessions: int | None  # times that everything is opened again
    samples: int  # of each form in each case, over all sessions
    threads: int | None  # CPU threads; None: all cores
    # the smallest difference of interest, as a fraction; it concerns the verdicts only
    least_difference: float = stats.LEAST_DIFFERENCE

    def __post_init__(self) -> None:
        check_names("--forms", self.forms, FORMS)

    @property
    def measure(self) -> MeasureConfig:
        """The settings of the timing loop."""
        sessions = stats.MIN_SESSIONS if self.sessions is None and self.budget_s is None else self.sessions
        same = {name: getattr(self, name) for name in ("samples", "budget_s", "threads", "least_difference")}
        return SweepConfig(sessions=sessions, **same).measure

    def to_json(self) -> dict[str, Any]:
        """As the result states it; the forms are a field of their own."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "forms"}


def benchmark_kernels(bundle: Path, config: KernelsConfig, output: Output) -> None:
    """Measure the products of a bundle's model, write the report, print.

    Raises:
        CheckFailed: the run is invalid.
        MaskProError: as `KernelsRun`.
    """

    def run(folder: RunFolder) -> KernelResult:
        earlier = folder.load_earlier(load_result)
        return KernelsRun(bundle, config, earlier=earlier, append=output.append, save=folder.save).measure()

    run_benchmark(run, describe, build_kernels_page, output)


class KernelsRun:
    """One run: of the bundle's model only the shapes count.

    Args:
        bundle: the model.
        config: what to measure.
        earlier: a result to go on with, or with `append` to add to.
        append: see `earlier`.
        save: given the result so far after each case on the CPU and each product on a GPU.

    Raises:
        ConfigError: the settings make no sense, or the bundle has no products.
        InputError: the path is not a bundle, or `earlier` is not of this run.
    """

    def __init__(
        self,
        bundle: Path,
        config: KernelsConfig,
        *,
        earlier: SavedKernels | None,
        append: bool,
        save: Callable[[KernelResult], None],
    ) -> None:
        self._started = time.monotonic()
        self._config, self._earlier, self._append, self._save = config, earlier, append, save
        self._measure = config.measure
        manifest = Manifest.load(bundle, engines=False)
        self._work = graph_work(safe_path(bundle, manifest.graph.file))
        self._cases = plan_cases(self._work.products, config.tokens)
        shapes = [[k, n, count] for (k, n), count in self._work.products.items()]
        self._layers = manifest.model.num_layers
        self._facts = {"name": manifest.model.name, "path": str(bundle), "layers": self._layers, "products": shapes}
        self._environment = environment.capture()
        self._run: Run[KernelCase] = make_empty_run(config.forms, self._cases)
        self._gpu: Mapping[str, Any] = _NOT_YET
        if earlier is not None:
            check_same(earlier, config.forms, self._facts, config.to_json(), self._environment, append=append)
            self._run, self._gpu = earlier.run(config.forms, self._cases), earlier.value["gpu"]
            own = self._measure.sessions  # a run that goes on with an addition has more to do than its settings say
            planned = own + earlier.sessions if append else max(own, earlier.planned_sessions)
            self._measure = dataclasses.replace(self._measure, sessions=planned)

    def measure(self) -> KernelResult:
        """Measure what is not measured yet."""
        self._bandwidth, self._arithmetic = measure_bandwidth(self._config.threads), measure_onnxruntime(self._config.threads)
        if self._append or self._earlier is None or not self._earlier.cpu_finished:
            self._measure_on_cpu()
        self._measure_on_gpu()
        return self._result(cpu_finished=True, finished=True)

    def _measure_on_cpu(self) -> None:
        flush = _make_flush()
        openers = {form: partial(_open_form, form, self._config.threads, flush) for form in self._config.forms}

        def save(run: Run[KernelCase]) -> None:
            self._save(self._result(cpu_finished=False, finished=False))

        with closing(Meter("kernels", "sessions")) as meter:
            run_kernels(openers, self._cases, self._measure, run=self._run, save=save, progress=meter)

    def _measure_on_gpu(self) -> None:
        earlier = self._earlier.gpu_cells if self._earlier is not None else []

        def save(figures: Mapping[str, Any]) -> None:
            self._gpu = figures
            self._save(self._result(cpu_finished=True, finished=False))

        budget_s, device = self._config.budget_s or _GPU_BUDGET_S, self._gpu.get("device")
        work: dict[str, Any] = {"products": self._work.products, "tokens": self._config.tokens, "budget_s": budget_s}
        with closing(Meter("kernels on the GPU", "products")) as meter:
            figures = measure_on_gpu(ModelProducts(**work, earlier=earlier, device=device, save=save, progress=meter))
        if figures["measured"] or not earlier:  # else the GPU is gone, and its figures stay
            self._gpu = figures

    def _result(self, *, cpu_finished: bool, finished: bool) -> KernelResult:
        run, earlier = self._run, self._earlier
        others = earlier.others(self._cases) if earlier is not None else {}
        whole = Run(measurements={**others, **run.measurements}, self_test=run.self_test, sessions=run.sessions)
        return KernelResult(
            forms=self._config.forms,
            run=whole,
            last=self._work.last,
            layers=self._layers,
            environment={**self._environment, "load_average_1min_after": environment.load_average()},
            config=self._config.to_json(),
            facts=self._facts,
            bandwidth=self._bandwidth,
            arithmetic=self._arithmetic,
            gpu=self._gpu,
            duration_s=time.monotonic() - self._started + (earlier.value["duration"] if earlier is not None else 0.0),
            earlier=earlier.history if earlier is not None else (),
            planned_sessions=self._measure.sessions,
            cpu_finished=cpu_finished,
            finished=finished,
        )


def measure_on_gpu(model: ModelProducts) -> dict[str, Any]:
    """What `measure_model` gives, where torch is installed."""
    if find_spec("torch") is None:
        return {"measured": False, "reason": "torch is not installed"}
    import torch

    return measure_model(torch, model)


@contextmanager
def _open_form(form: str, threads: int | None, flush: Callable[[], object]) -> Iterator[Callable[[KernelCase], Task]]:
    yield OpenForm(form, threads, flush)


def _make_flush() -> Callable[[], object]:
    """Overwrites a buffer twice as large as the caches."""
    import numpy as np

    buffer = np.zeros(max(64 << 20, 2 * (environment.last_level_cache_bytes() or 0)) // 4, np.float32)
    return lambda: np.add(buffer, 1.0, out=buffer)
