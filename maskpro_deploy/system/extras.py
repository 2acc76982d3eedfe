"""Optional dependencies: which extra brings which module, and the one line that says how to get it.

The table repeats pyproject's extras by *import* name; a test keeps the two in step.
"""

from __future__ import annotations

from importlib.util import find_spec

from maskpro_deploy.errors import MissingExtraError

EXTRAS: dict[str, tuple[str, ...]] = {
    "learn": ("torch", "transformers", "gguf", "accelerate"),
    "architectures": ("mobius", "onnxscript", "torch", "transformers"),
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime", "cuda.bindings"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt-rtx-plugin": ("onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx", "cuda.bindings"),
    "native": ("cuda.bindings",),
    "genai": ("onnxruntime_genai",),
    "serve": ("starlette", "uvicorn", "pydantic", "jinja2", "prometheus_client"),
    "structured": ("llguidance",),
    "report": ("matplotlib", "jinja2"),
    "tensorboard": ("tensorboard",),
    "load": ("aiohttp",),
    "eval": ("datasets", "lm_eval"),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "ray": ("ray",),
}


def missing(extra: str) -> list[str]:
    """The modules of `extra` that cannot be imported here (nothing is imported to find out)."""
    return [module for module in EXTRAS[extra] if not _can_import(module)]


def _can_import(module: str) -> bool:
    """Whether a module could be imported; of a dotted name the package has to be there first."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def require(extra: str, purpose: str) -> None:
    """Check that `extra` is installed; `purpose` says what needs it, as the start of a sentence: "learning a mask".

    Raises:
        MissingExtraError: with the command that installs it.
    """
    if absent := missing(extra):
        raise MissingExtraError(
            f"{purpose} needs {', '.join(absent)}, which is not installed here.\n"
            f"Install it with: pip install 'maskpro-deploy[{extra}]'"
        )
