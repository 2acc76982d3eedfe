"""Settings of an engine, checked where they are made.

Sparse weights and refitting: an engine that can take any weights later may be given dense ones, which its sparse kernels would
misread, so a sparse engine can only be refitted with identical weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from maskpro_deploy.cache_forms import DEFAULT_FORM, ENGINE_FORMS
from maskpro_deploy.errors import ConfigError, check_known, check_range
from maskpro_deploy.pattern import NMPattern

SPARSE_TENSOR_CORES = NMPattern(2, 4)
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx")
HARDWARE = ("ampere+", "same-cc")
REFIT = ("identical", "all")
TILING = ("none", "fast", "moderate", "full")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderFlags:
    """Flags of the builder; None and False leave the library's default.

    Raises:
        ConfigError: a flag is out of its range.
    """

    optimization_level: int | None = None  # 0 (quick build) to 5 (longest search)
    workspace_bytes: int | None = None  # most scratch memory of a kernel on the GPU
    aux_streams: int | None = None  # further streams that an engine may use at once
    version_compatible: bool = False  # the engine runs in later versions of the library too
    # "ampere+": it runs on every GPU from Ampere on; "same-cc": on others of the same compute capability
    hardware_compatible: str | None = None
    weight_streaming: bool = False  # weights may stay in the host's memory
    refit: str | None = None  # its weights may be exchanged: for "identical" ones, or "all"
    # leave the refittable weights out of the file; whoever loads it brings them. Implies "identical".
    strip_weights: bool = False
    tiling: str | None = None  # how far kernels are tiled across layers
    strict_nans: bool = False  # NaN and infinity times a pruned weight stay NaN, with the sparse kernels that can

    def __post_init__(self) -> None:
        check_range("--optimization-level", self.optimization_level, least=0, most=5)
        check_range("--workspace", self.workspace_bytes, least=1)
        check_range("--aux-streams", self.aux_streams, least=0)
        check_known("--hardware-compatible", self.hardware_compatible, HARDWARE)
        check_known("--refit", self.refit, REFIT)
        check_known("--tiling", self.tiling, TILING)


def parse_bytes(text: str, flag: str) -> int:
    """Read a size such as 512MB, 4GB or 2GiB; ConfigError, which names the flag, if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is not a size.\nGive a number and a unit, for example 512MB or 4GB.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a bundle becomes a TensorRT engine.

    Raises:
        ConfigError: a setting is out of its range.
    """

    sparsity: NMPattern = SPARSE_TENSOR_CORES  # the pattern that the bundle must hold; sparse tensor cores know 2:4 only
    dense: bool = False  # build with dense kernels, whatever the bundle holds
    # "tensorrt" (needs a GPU), "tensorrt-rtx" (builds anywhere, dense kernels), or "auto": what this machine can do
    backend: str = "auto"
    targets: tuple[str, ...] = ()  # compute capabilities to build for, such as "sm89"; the library's default if empty
    # which graph of the bundle to build, by the form of its cache (`ENGINE_FORMS`); the bundle's own by default
    form: str | None = None
    # buckets such as "prefill:1x128,4x512 decode:1,8" (`profiles`); by default one for each of the two
    profiles: str | None = None
    max_batch: int | None = None  # largest batch of the default profiles; 8 if not given
    max_length: int | None = None  # longest sequence; by default the model's limit, at most 2048
    max_prefill: int | None = None  # most new tokens in one call of the default profiles; 512 if not given, at most `max_length`
    timing_cache: Path | None = None  # file of kernel times to reuse and extend, where the library keeps such
    flags: BuilderFlags = field(default_factory=BuilderFlags)  # further flags of the builder
    # build the dense engine too, from the same graph, profiles and kernel times, and time both on a GPU
    compare_dense: bool = False
    compare_budget_s: float = 60.0  # seconds for the timing
    # build through onnxruntime's TensorRT provider (`provider_builder`), with one profile for all calls
    via_onnxruntime: bool = False

    def __post_init__(self) -> None:
        if self.via_onnxruntime:
            self._check_via_onnxruntime()
        check_known("--backend", self.backend, BACKENDS)
        if not self.dense and self.sparsity != SPARSE_TENSOR_CORES:
            raise ConfigError(
                f"--sparsity {self.sparsity}: only {SPARSE_TENSOR_CORES} has sparse tensor cores.\n"
                f"Build a dense engine from this bundle with --dense."
            )
        for target in self.targets:
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise ConfigError(f"--target {target} is not a compute capability.\nGive them as sm89,sm120.")
        if self.form is not None and self.form not in ENGINE_FORMS:
            raise ConfigError(f"--form {self.form}: engines are built from the forms {' and '.join(ENGINE_FORMS)}.")
        if self.profiles is not None and (self.max_batch is not None or self.max_prefill is not None):
            raise ConfigError("--profiles gives the bounds itself: omit --max-batch and --max-prefill.")
        if self.compare_dense and self.dense:
            raise ConfigError("--compare-dense compares a sparse engine with its dense twin: omit --dense.")
        if self.timing_cache is not None and self.timing_cache.is_dir():
            raise ConfigError(f"--timing-cache {self.timing_cache} is a folder.\nGive the name of a file.")
        check_range("--budget", self.compare_budget_s, above=0)
        if not self.dense and self.flags.refit == "all":
            raise ConfigError(
                "--refit all: a sparse engine must not be refitted with other weights, which may be dense.\n"
                "Give --refit identical, or build a dense engine with --dense."
            )
        check_range("--max-batch", self.max_batch, least=1)
        check_range("--max-length", self.max_length, least=2)
        check_range("--max-prefill", self.max_prefill, least=1)

    def _check_via_onnxruntime(self) -> None:
        refused = {
            f"--backend {self.backend}": self.backend not in ("auto", "tensorrt"),
            "--target": bool(self.targets),
            f"--form {self.form}": self.form not in (None, DEFAULT_FORM),
            "--timing-cache": self.timing_cache is not None,
            "--compare-dense": self.compare_dense,
        }
        if given := next((flag for flag, is_given in refused.items() if is_given), None):
            raise ConfigError(
                f"{given} does not go with --via-onnxruntime: onnxruntime builds the {DEFAULT_FORM} form for this GPU only."
            )
