"""Settings of the exporters, checked where they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters.graph import DTYPES
from maskpro_deploy.exporters.kv_forms import FORMS
from maskpro_deploy.pattern import NMPattern

_SHORTEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How a checkpoint becomes an ONNX bundle.

    Attributes:
        dtype: float type of weights and activations: "fp32" (CPU), "fp16" (GPU) or "bf16" (GPU only). Logits are always fp32.
        max_length: longest sequence the graph can run; the model's own limit by default.
        require_sparsity: refuse a checkpoint that does not hold this pattern.
        form: form of the key/value cache (`kv_forms.FORMS`).

    Raises:
        ConfigError: a setting is out of its range.
    """

    dtype: str = "fp32"
    max_length: int | None = None
    require_sparsity: NMPattern | None = None
    form: str = "cat"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype} is not known. Known: {', '.join(DTYPES)}.")
        if self.form not in FORMS:
            raise ConfigError(f"the cache form {self.form!r} is not known. Known: {', '.join(FORMS)}.")
        if self.max_length is not None and self.max_length < _SHORTEST:
            raise ConfigError(f"--max-length {self.max_length} is too short: give at least {_SHORTEST}.")


SPARSE_TENSOR_CORES = NMPattern(2, 4)
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a bundle becomes a TensorRT engine.

    Attributes:
        sparsity: the pattern that the bundle must hold; sparse tensor cores know 2:4 only.
        dense: build with dense kernels, whatever the bundle holds.
        backend: "tensorrt" (needs a GPU), "tensorrt-rtx" (builds anywhere, dense kernels), or "auto": what this machine can do.
        targets: compute capabilities to build for, such as "sm89"; the library's default if empty.
        max_batch: largest batch of both profiles.
        max_length: longest sequence; by default the model's limit, at most 2048.
        max_prefill: most new tokens in one call; by default 512, at most `max_length`.
        timing_cache: file of kernel times to reuse and extend, where the library keeps such.

    Raises:
        ConfigError: a setting is out of its range.
    """

    sparsity: NMPattern = SPARSE_TENSOR_CORES
    dense: bool = False
    backend: str = "auto"
    targets: tuple[str, ...] = ()
    max_batch: int = 8
    max_length: int | None = None
    max_prefill: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"--backend {self.backend} is not known. Known: {', '.join(BACKENDS)}.")
        if not self.dense and self.sparsity != SPARSE_TENSOR_CORES:
            raise ConfigError(
                f"--sparsity {self.sparsity}: only {SPARSE_TENSOR_CORES} has sparse tensor cores.\n"
                f"Build a dense engine from this bundle with --dense."
            )
        for target in self.targets:
            if not re.fullmatch(r"sm\d{2,3}", target):
                raise ConfigError(f"--target {target} is no compute capability.\nGive them as sm89,sm120.")
        if self.max_batch < 1:
            raise ConfigError(f"--max-batch {self.max_batch} must be at least 1.")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"--max-length {self.max_length} must be at least 2.")
        if self.max_prefill is not None and self.max_prefill < 1:
            raise ConfigError(f"--max-prefill {self.max_prefill} must be at least 1.")
