"""Running a bundle's graph with onnxruntime.

A `Session` is what the rest of the runtime needs of it: read new tokens on top of a cache, get logits and the longer cache.
Inputs and outputs are bound by reference, so that in a decode step no key or value passes through numpy. An execution provider
that was asked for and is not in use is an error: a silent fall-back to the CPU would make every figure meaningless.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `V` vocabulary, `H` key/value heads, `D` head size.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.cuda_driver import compute_capability
from maskpro_deploy.backends.cuda_packages import load_for
from maskpro_deploy.backends.elf import onnxruntime_tensorrt
from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM, cache_form
from maskpro_deploy.errors import FormatError, InputError, MachineError, check_known, check_range
from maskpro_deploy.manifest import Graph, Manifest, safe_path
from maskpro_deploy.runtime.sessions.base import BaseSession
from maskpro_deploy.runtime.sessions.device import HostDevice
from maskpro_deploy.runtime.sessions.device_session import DeviceSession
from maskpro_deploy.runtime.sessions.executor import Reach
from maskpro_deploy.runtime.sessions.kv_cache import Cache, Floats, Ints, KvCache, positions
from maskpro_deploy.runtime.sessions.ort_executor import OrtExecutor
from maskpro_deploy.system.extras import require

log = logging.getLogger(__name__)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# what --provider means: the onnxruntime providers in order of preference (later ones take what earlier ones cannot run)
PROVIDERS: dict[str, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}
NATIVE = "trt-native"
_NUMPY_TYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Where the graph runs.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt" of onnxruntime, "trt-native" for an engine in its own library, or "auto": cuda
            where onnxruntime has it, else cpu.
        threads: CPU threads; None uses all cores.
        spin: let threads that wait for each other spin (onnxruntime's own default): faster on an idle machine, far slower on one
            that others use too.
        form: form of the key/value cache, of those that the bundle has a graph for; None takes the bundle's own graph.
        engine: file of the engine in the bundle, for providers that run engines; None takes the best that can run here.
    """

    provider: str = "auto"
    threads: int | None = None
    spin: bool = True
    form: str | None = None
    engine: str | None = None

    def __post_init__(self) -> None:
        check_known("--provider", self.provider, ("auto", *PROVIDERS, NATIVE))
        check_range("--threads", self.threads, least=1)
        check_known("--form", self.form, CACHE_FORMS)


class OrtSession(BaseSession):
    """A graph of the `cat` form in onnxruntime; `providers` are the ones in use.

    Attributes:
        manifest: the bundle's manifest.
    """

    def __init__(self, manifest: Manifest, graph: Graph, session: Any, reaches: Sequence[Reach] = ()) -> None:
        import onnxruntime

        super().__init__(manifest.model, graph, session.get_providers(), reaches)
        self.manifest = manifest
        self._session = session
        self._from_numpy = onnxruntime.OrtValue.ortvalue_from_numpy
        self._device = "cpu" if self.providers[0] == CPU else "cuda"
        layers = range(self.shape.num_layers)
        self._past = [f"past_key_values.{i}.{side}" for i in layers for side in ("key", "value")]
        self._present = [f"present.{i}.{side}" for i in layers for side in ("key", "value")]
        self._inputs = {i.name for i in session.get_inputs()}
        self._check_names({o.name for o in session.get_outputs()})

    def _read(self, tokens: Ints, cache: Cache | None, mask: Ints) -> tuple[Floats, KvCache]:
        batch, wanted = tokens.shape
        cache = cache or self._empty(batch)
        assert isinstance(cache, KvCache)
        _, new = self._profile(batch, cache.length, wanted)
        total = cache.length + new
        tokens, mask = tokens[:, :new], mask[:, :total]
        binding = self._session.io_binding()
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions(mask, new)}
        # the OrtValues share the arrays' memory: they have to live until the run is over
        alive = {name: self._value(array) for name, array in inputs.items() if name in self._inputs}
        alive |= {name: self._value(v) for name, v in zip(self._past, cache.values, strict=True)}
        for name, value in alive.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return logits.numpy().astype(np.float32, copy=False), KvCache(tuple(present), batch, total)

    def _value(self, value: Any) -> Any:
        """An OrtValue on the session's device."""
        if not isinstance(value, np.ndarray):
            return value
        return self._from_numpy(np.ascontiguousarray(value), self._device, 0)

    def _empty(self, batch: int) -> KvCache:
        dtype = _NUMPY_TYPES[self.graph.dtype]
        zero: npt.NDArray[Any] = np.zeros((batch, self.shape.num_kv_heads, 0, self.shape.head_dim), dtype)
        return KvCache((zero,) * len(self._past), batch, 0)

    def _check_names(self, outputs: set[str]) -> None:
        if missing := [*({"input_ids", *self._past} - self._inputs), *({"logits", *self._present} - outputs)]:
            raise FormatError(
                f"{self.graph.file} does not have the inputs and outputs that a bundle's graph has: "
                f"{sorted(missing)[0]} is missing.\nExport the bundle again."
            )


def open_session(bundle: Path, config: SessionConfig | None = None) -> BaseSession:
    """Load a bundle's graph.

    Args:
        bundle: folder written by `maskpro-deploy export`.
        config: provider, threads and form of the cache.

    Raises:
        InputError: no bundle, or one that this provider cannot run.
        FormatError: a file is damaged.
        MachineError: the provider is not available here.
        MissingExtraError: onnxruntime is not installed.
    """
    config = config or SessionConfig()
    manifest = Manifest.load(bundle, engines=False)  # the one that is run is checked as a whole
    if config.provider == NATIVE:
        from maskpro_deploy.runtime.sessions.native import open_native

        return open_native(bundle, manifest, config.engine)
    require("cpu", "running a bundle")
    import onnxruntime

    graph = _graph(bundle, manifest, config.form)
    wanted = resolve_provider(config.provider, onnxruntime.get_available_providers())
    if config.provider == "auto" and not cache_form(graph.form).onnxruntime_gpu:
        wanted = "cpu"
    _check_runnable(graph, wanted)
    if wanted == "tensorrt":
        return _open_tensorrt(bundle, manifest, graph, config)
    session = _create(safe_path(bundle, graph.file), PROVIDERS[wanted], config)
    if config.provider == "auto" and PROVIDERS[wanted][0] not in session.get_providers():
        log.warning("onnxruntime cannot use the GPU of this machine: running on the CPU")
        wanted = "cpu"
        _check_runnable(graph, wanted)
    _check_provider(wanted, session.get_providers())
    log.info("%s runs on %s", bundle, ", ".join(session.get_providers()))
    if graph.form == DEFAULT_FORM:
        return OrtSession(manifest, graph, session)
    return DeviceSession(manifest.model, graph, OrtExecutor(session), HostDevice())


def _open_tensorrt(bundle: Path, manifest: Manifest, graph: Graph, config: SessionConfig) -> OrtSession:
    """A session on onnxruntime's TensorRT provider."""
    from maskpro_deploy.runtime.sessions.tensorrt_lane import plan

    if compute_capability() is None:
        raise MachineError("--provider tensorrt needs an NVIDIA GPU, and there is none here.\nRun on the CPU: --provider cpu.")
    served = plan(bundle, manifest, graph, PROVIDERS["tensorrt"][1:], config.engine)
    session = _create(served.model, served.providers, config, optimise=served.optimise)
    if TENSORRT not in session.get_providers():
        raise MachineError(
            f"onnxruntime's TensorRT provider does not start: it lacks TensorRT {onnxruntime_tensorrt() or ''} or CUDA.\n"
            f"Install them: pip install 'maskpro-deploy[tensorrt]' 'tensorrt<{(onnxruntime_tensorrt() or 10) + 1}'"
        )
    log.info("%s runs on %s", bundle, ", ".join(session.get_providers()))
    return OrtSession(manifest, graph, session, [served.reach])


def _graph(bundle: Path, manifest: Manifest, form: str | None) -> Graph:
    """The bundle's graph of a form."""
    graphs = (manifest.graph, *manifest.siblings)
    found = next((g for g in graphs if form in (None, g.form)), None)
    if found is None:
        raise InputError(
            f"--form {form}: {bundle} has no such graph (it has {', '.join(g.form for g in graphs)}).\n"
            f"Export it with --forms {graphs[0].form},{form}."
        )
    return found


def _create(graph: Path, providers: Sequence[Any], config: SessionConfig, *, optimise: bool = True) -> Any:
    """An onnxruntime session on `providers`, as far as it can use them."""
    import onnxruntime

    load_for(providers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own graph rewriting
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if config.threads is not None:
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
    try:
        # it prints why a provider fails, and standard output belongs to the results
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore", UserWarning)  # what it cannot use is checked afterwards
            return onnxruntime.InferenceSession(str(graph), options, providers=list(providers))
    except Exception as e:  # onnxruntime raises many types of its own; the first line says what failed
        raise FormatError(f"onnxruntime cannot load {graph}: {_first_line(e)}\nExport the bundle again.") from e


def resolve_provider(wanted: str, available: Sequence[str]) -> str:
    """What "auto" means here, and whether what is asked for exists at all.

    Raises:
        MachineError: saying what to install.
    """
    if wanted == "auto":
        return "cuda" if CUDA in available else "cpu"
    _check_provider(wanted, available)
    return wanted


def _check_provider(wanted: str, present: Sequence[str]) -> None:
    first = PROVIDERS[wanted][0]
    if first not in present:
        raise MachineError(
            f"--provider {wanted} needs onnxruntime's {first}, which is not available here (there is: {', '.join(present)}).\n"
            f"On a machine with an NVIDIA GPU: pip uninstall onnxruntime && pip install 'maskpro-deploy[gpu]'. "
            f"Or run on the CPU: --provider cpu."
        )


def _check_runnable(graph: Graph, provider: str) -> None:
    if not cache_form(graph.form).onnxruntime_gpu and provider != "cpu":
        raise InputError(
            f"onnxruntime runs the {graph.form!r} cache form on a CPU only here; on a GPU it runs the {DEFAULT_FORM!r} form.\n"
            f"Give --provider cpu, or --form {DEFAULT_FORM}."
        )
    if graph.dtype == "bf16" and provider == "cpu":
        raise InputError(
            "the bundle is bf16, and onnxruntime has no bf16 kernels for most operators on a CPU.\n"
            "Export it with --dtype fp32 for a CPU."
        )
    if graph.dtype not in _NUMPY_TYPES:
        raise InputError(f"this runtime cannot run a {graph.dtype} bundle.\nExport it with --dtype fp32 or fp16.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
