"""The registry of providers: what `--provider` may name, what each is made of, and one line of help.

A new provider is one entry of `PROVIDERS`. Choices and help of all commands and the texts of errors are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError, check_known

CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"  # a plug-in: onnxruntime lists it once it is registered
AUTO, CPU, CUDA, TENSORRT, RTX, NATIVE, GENAI = "auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx", "trt-native", "genai"
_AUTO_HELP = "a GPU where onnxruntime has one, else the CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What can run a bundle."""

    name: str  # as `--provider` names it
    help: str  # a few words for the command line
    # onnxruntime's providers in order of preference (later ones take what earlier ones cannot run); empty for an engine in its
    # own library
    onnxruntime: tuple[str, ...] = ()
    extra: str = "cpu"  # the extra of this package that it needs
    runs_engines: bool = False  # it runs engines of a bundle, so `--engine` may choose one
    needs_engine: bool = False  # it runs nothing else


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(name=CPU, help="onnxruntime on the CPU", onnxruntime=(CPU_PROVIDER,)),
        Provider(name=CUDA, help="onnxruntime on an NVIDIA GPU", onnxruntime=(CUDA_PROVIDER, CPU_PROVIDER)),
        Provider(
            name=TENSORRT,
            help="TensorRT through onnxruntime",
            onnxruntime=(TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER),
            runs_engines=True,
        ),
        Provider(
            name=RTX,
            help="TensorRT-RTX as onnxruntime's plug-in",
            onnxruntime=(RTX_PROVIDER, CPU_PROVIDER),
            extra="tensorrt-rtx-plugin",
            runs_engines=True,
        ),
        Provider(name=NATIVE, help="an engine in TensorRT itself", extra="native", runs_engines=True, needs_engine=True),
        Provider(name=GENAI, help="onnxruntime-genai on the CPU, row by row", onnxruntime=(CPU_PROVIDER,), extra="genai"),
    )
}
PROVIDER_NAMES: tuple[str, ...] = (AUTO, *PROVIDERS)
ENGINE_PROVIDERS: tuple[str, ...] = tuple(p.name for p in PROVIDERS.values() if p.runs_engines)
PROVIDER_HELP = "; ".join([f"{AUTO}: {_AUTO_HELP}", *(f"{p.name}: {p.help}" for p in PROVIDERS.values())]) + "."


def check_provider_name(name: str) -> None:
    """Refuse (ConfigError) a name that is not one of `PROVIDER_NAMES`."""
    check_known("--provider", name, PROVIDER_NAMES)


def check_runs_engines(name: str, engine: str | None) -> None:
    """Refuse (ConfigError) `--engine` with a provider that runs none."""
    if engine is not None and name not in ENGINE_PROVIDERS:
        raise ConfigError(f"--engine {engine} is for --provider {' or '.join(ENGINE_PROVIDERS)}.")


def runs_in_onnxruntime(name: str) -> bool:
    """Whether a provider, or "auto", is one of onnxruntime's."""
    return name == AUTO or bool(PROVIDERS[name].onnxruntime)
