"""Opening a bundle for serving: which graph or engine, on which provider, and what comes out as a session."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.memory import Device, HostDevice
from maskpro_deploy.backends.onnxruntime_.executor import OnnxExecutor
from maskpro_deploy.backends.onnxruntime_.sessions import (
    REWRITE_ALL,
    check_plugin_started,
    check_provider,
    check_tensorrt_started,
    open_graph,
    resolve_provider,
)
from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.backends.providers import (
    AUTO,
    CPU,
    CPU_PROVIDER,
    GENAI,
    NATIVE,
    PROVIDERS,
    RTX,
    RTX_PROVIDER,
    TENSORRT,
    check_provider_name,
    check_runs_engines,
)
from maskpro_deploy.backends.session import GraphSession, OpenSession
from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM, cache_form
from maskpro_deploy.errors import InputError, MachineError, check_known, check_range
from maskpro_deploy.manifest import Graph, Manifest, safe_path
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.huge_pages import use_huge_pages

log = logging.getLogger(__name__)

_ADVICE = "Export the bundle again."
_RUNNABLE_DTYPES = ("fp32", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Where the graph runs."""

    provider: str = AUTO  # one of `backends.providers`, or "auto": cuda where onnxruntime has it, else cpu
    threads: int | None = None  # CPU threads; None uses all cores
    # let threads that wait for each other spin (onnxruntime's own default): faster on an idle machine, far slower on one that
    # others use too
    spin: bool = True
    # form of the key/value cache, of those that the bundle has a graph for; None takes the bundle's own graph
    form: str | None = None
    # file of the engine in the bundle, for providers that run engines; None takes the best that can run here
    engine: str | None = None

    def __post_init__(self) -> None:
        check_provider_name(self.provider)
        check_runs_engines(self.provider, self.engine)
        check_range("--threads", self.threads, least=1)
        check_known("--form", self.form, CACHE_FORMS)


def open_session(bundle: Path, config: SessionConfig | None = None) -> OpenSession:
    """Load a graph of the bundle, a folder written by `maskpro-deploy export`, or an engine of it.

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
    graph = _find_graph(bundle, manifest, config.form)
    if config.provider == GENAI:
        from maskpro_deploy.runtime.sessions.genai_lane import GenaiSession

        return GenaiSession(bundle, manifest, graph, threads=config.threads, spin=config.spin)
    if config.provider == RTX:
        return _open_plugin(bundle, manifest, graph, config)
    provider = _choose_provider(config.provider, graph)
    if provider == TENSORRT:
        return _open_tensorrt(bundle, manifest, graph, config)
    session = _open(safe_path(bundle, graph.file), PROVIDERS[provider].onnxruntime, config)
    if config.provider == AUTO and PROVIDERS[provider].onnxruntime[0] not in session.get_providers():
        log.warning("onnxruntime cannot use the GPU of this machine: running on the CPU")
        provider = CPU
        _check_runnable(graph, provider)
    check_provider(provider, session.get_providers())
    return _make_session(bundle, manifest, graph, session)


def _choose_provider(wanted: str, graph: Graph) -> str:
    """The provider by name; "auto" takes a GPU for the form that runs there."""
    import onnxruntime

    provider = resolve_provider(wanted, onnxruntime.get_available_providers())
    if wanted == AUTO and provider != CPU:
        if not cache_form(graph.form).onnxruntime_gpu:
            provider = CPU
        elif lacks := missing("native"):
            log.warning("%s is not installed, which a GPU needs: running on the CPU", ", ".join(lacks))
            provider = CPU
    _check_runnable(graph, provider)
    return provider


def _open_tensorrt(bundle: Path, manifest: Manifest, graph: Graph, config: SessionConfig) -> GraphSession:
    """A session on onnxruntime's TensorRT provider."""
    from maskpro_deploy.runtime.sessions.tensorrt_lane import choose_input

    _check_gpu(TENSORRT)
    chosen = choose_input(bundle, manifest, graph, config.engine)
    session = _open(chosen.model, chosen.providers, config, chosen.rewrite)
    check_tensorrt_started(session)
    return _make_session(bundle, manifest, graph, session, [chosen.profile])


def _open_plugin(bundle: Path, manifest: Manifest, graph: Graph, config: SessionConfig) -> GraphSession:
    """A session on TensorRT-RTX's plug-in."""
    from maskpro_deploy.backends.onnxruntime_.rtx_plugin import find_devices
    from maskpro_deploy.runtime.sessions.rtx_lane import choose_input

    _check_gpu(RTX)
    _check_runnable(graph, RTX)
    devices = find_devices()
    chosen = choose_input(bundle, manifest, graph, config.engine)
    session = open_graph(
        chosen.model,
        devices=devices,
        device_options=chosen.options,
        threads=config.threads,
        spin=config.spin,
        rewrite=chosen.rewrite,
        advice=_ADVICE,
    )
    check_plugin_started(session, RTX_PROVIDER)
    return _make_session(bundle, manifest, graph, session, [chosen.profile])


def _check_gpu(provider: str) -> None:
    if compute_capability() is None:
        raise MachineError(
            f"--provider {provider} needs an NVIDIA GPU, and there is none here.\nRun on the CPU: --provider {CPU}."
        )


def _make_session(
    bundle: Path, manifest: Manifest, graph: Graph, session: Any, profiles: list[Profile] | None = None
) -> GraphSession:
    """The session over an open graph; its memory is that of its first provider."""
    device: Device
    if session.get_providers()[0] == CPU_PROVIDER:
        device = HostDevice()
        use_huge_pages()  # decoding is as fast as the weights are read
    else:
        from maskpro_deploy.backends.cuda.device import CudaDevice

        require("native", "running a bundle on a GPU")
        device = CudaDevice()
    log.info("%s runs on %s", bundle, ", ".join(session.get_providers()))
    return GraphSession(manifest.model, graph, OnnxExecutor(session, device, profiles or ()), device)


def _find_graph(bundle: Path, manifest: Manifest, form: str | None) -> Graph:
    """The bundle's graph of a form."""
    graphs = (manifest.graph, *manifest.siblings)
    graph = next((g for g in graphs if form in (None, g.form)), None)
    if graph is None:
        raise InputError(
            f"--form {form}: {bundle} has no such graph (it has {', '.join(g.form for g in graphs)}).\n"
            f"Export it with --forms {graphs[0].form},{form}."
        )
    return graph


def _open(model: Path, providers: tuple[Any, ...], config: SessionConfig, rewrite: str = REWRITE_ALL) -> Any:
    return open_graph(model, providers=providers, threads=config.threads, spin=config.spin, rewrite=rewrite, advice=_ADVICE)


def _check_runnable(graph: Graph, provider: str) -> None:
    if not cache_form(graph.form).onnxruntime_gpu and provider != CPU:
        raise InputError(
            f"onnxruntime runs the {graph.form!r} cache form on a CPU only here; on a GPU it runs the {DEFAULT_FORM!r} form.\n"
            f"Give --provider {CPU}, or --form {DEFAULT_FORM}."
        )
    if graph.dtype == "bf16" and provider == CPU:
        raise InputError(
            "the bundle is bf16, and onnxruntime has no bf16 kernels for most operators on a CPU.\n"
            "Export it with --dtype fp32 for a CPU."
        )
    if graph.dtype not in _RUNNABLE_DTYPES:
        raise InputError(f"this runtime cannot run a {graph.dtype} bundle.\nExport it with --dtype fp32 or fp16.")
