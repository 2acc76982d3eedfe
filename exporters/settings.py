"""Settings of the exporters, checked where they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters.builder_flags import BuilderFlags
from maskpro_deploy.exporters.graph import DTYPES
from maskpro_deploy.exporters.kv_forms import FORMS
from maskpro_deploy.exporters.layouts import LAYOUTS, check_genai
from maskpro_deploy.exporters.quantization import METHODS, Quantization
from maskpro_deploy.pattern import NMPattern

_SHORTEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How a checkpoint becomes an ONNX bundle.

    Attributes:
        dtype: float type of weights and activations: "fp32" (CPU), "fp16" (GPU) or "bf16" (GPU only). Logits are always fp32.
        max_length: longest sequence the graph can run; the model's own limit by default.
        require_sparsity: refuse a checkpoint that does not hold this pattern.
        forms: forms of the key/value cache (`kv_forms.FORMS`), one graph each; the first is the bundle's own graph.
        quantize: store projections as "int8", "int4" or "fp8"; None for `dtype`.
        block_size: rows of a weight that share a scale, 0 for all; by default 32 for int4 and all for int8.
        head: how the output head is stored with `quantize`: "int8" (one scale a column; the default), or "int4" with "int4".
        method: how weights are rounded: "nearest", or "calibrated", which runs the model on text to see which errors matter.
        layout: which other tool's conventions the folder follows: none ("bundle"), "hub" or "genai".

    Raises:
        ConfigError: a setting is out of its range.
    """

    dtype: str = "fp32"
    max_length: int | None = None
    require_sparsity: NMPattern | None = None
    forms: tuple[str, ...] = ("cat",)
    quantize: str | None = None
    block_size: int | None = None
    head: str | None = None
    method: str = "nearest"
    layout: str = "bundle"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype} is not known. Known: {', '.join(DTYPES)}.")
        for form in self.forms:
            if form not in FORMS:
                raise ConfigError(f"--forms {form}: this cache form is not known. Known: {', '.join(FORMS)}.")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise ConfigError(f"--forms {','.join(self.forms) or 'is empty'}: name each form once, such as cat,static.")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"--layout {self.layout} is not known. Known: {', '.join(LAYOUTS)}.")
        if self.layout == "genai":
            check_genai(self.forms)
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method} is not known. Known: {', '.join(METHODS)}.")
        if self.quantize is None and (self.block_size is not None or self.head is not None or self.method != METHODS[0]):
            raise ConfigError(
                "--block-size, --quantize-head and --method say how to quantise: give --quantize int8 or int4 with them."
            )
        if self.quantize == "fp8" and self.method != METHODS[0]:
            raise ConfigError(f"--method {self.method} makes integers; --quantize fp8 is rounded to nearest.")
        self.quantization  # noqa: B018 (checks the block size)
        if self.max_length is not None and self.max_length < _SHORTEST:
            raise ConfigError(f"--max-length {self.max_length} is too short: give at least {_SHORTEST}.")

    @property
    def quantization(self) -> Quantization | None:
        """How projections are stored."""
        return None if self.quantize is None else Quantization.make(self.quantize, self.block_size, self.head)


SPARSE_TENSOR_CORES = NMPattern(2, 4)
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx")
ENGINE_FORMS = ("cat", "static")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a bundle becomes a TensorRT engine.

    Attributes:
        sparsity: the pattern that the bundle must hold; sparse tensor cores know 2:4 only.
        dense: build with dense kernels, whatever the bundle holds.
        backend: "tensorrt" (needs a GPU), "tensorrt-rtx" (builds anywhere, dense kernels), or "auto": what this machine can do.
        targets: compute capabilities to build for, such as "sm89"; the library's default if empty.
        form: which graph of the bundle to build, by the form of its cache ("cat" or "static"); the bundle's own by default.
        profiles: buckets such as "prefill:1x128,4x512 decode:1,8" (`engine_profiles`); by default one for each of the two.
        max_batch: largest batch of the default profiles; 8 if not given.
        max_length: longest sequence; by default the model's limit, at most 2048.
        max_prefill: most new tokens in one call of the default profiles; 512 if not given, at most `max_length`.
        timing_cache: file of kernel times to reuse and extend, where the library keeps such.
        flags: further flags of the builder.
        compare_dense: build the dense engine too, from the same graph, profiles and kernel times, and time both on a GPU.
        compare_budget_s: seconds for the timing.
        via_onnxruntime: build through onnxruntime's TensorRT provider (`provider_builder`), with one profile for all calls.

    Raises:
        ConfigError: a setting is out of its range.
    """

    sparsity: NMPattern = SPARSE_TENSOR_CORES
    dense: bool = False
    backend: str = "auto"
    targets: tuple[str, ...] = ()
    form: str | None = None
    profiles: str | None = None
    max_batch: int | None = None
    max_length: int | None = None
    max_prefill: int | None = None
    timing_cache: Path | None = None
    flags: BuilderFlags = field(default_factory=BuilderFlags)
    compare_dense: bool = False
    compare_budget_s: float = 60.0
    via_onnxruntime: bool = False

    def __post_init__(self) -> None:
        if self.via_onnxruntime:
            self._check_via_onnxruntime()
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
        if self.form is not None and self.form not in ENGINE_FORMS:
            raise ConfigError(f"--form {self.form}: engines are built from the forms {' and '.join(ENGINE_FORMS)}.")
        if self.profiles is not None and (self.max_batch is not None or self.max_prefill is not None):
            raise ConfigError("--profiles gives the bounds itself: leave --max-batch and --max-prefill out.")
        if self.compare_dense and self.dense:
            raise ConfigError("--compare-dense compares a sparse engine with its dense twin: leave --dense out.")
        if self.timing_cache is not None and self.timing_cache.is_dir():
            raise ConfigError(f"--timing-cache {self.timing_cache} is a folder.\nGive the name of a file.")
        if not self.compare_budget_s > 0:
            raise ConfigError(f"--budget {self.compare_budget_s:g} is out of range: above 0 s.")
        if not self.dense:
            self.flags.check_sparse()
        if self.max_batch is not None and self.max_batch < 1:
            raise ConfigError(f"--max-batch {self.max_batch} must be at least 1.")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"--max-length {self.max_length} must be at least 2.")
        if self.max_prefill is not None and self.max_prefill < 1:
            raise ConfigError(f"--max-prefill {self.max_prefill} must be at least 1.")

    def _check_via_onnxruntime(self) -> None:
        refused = {
            f"--backend {self.backend}": self.backend not in ("auto", "tensorrt"),
            "--target": bool(self.targets),
            f"--form {self.form}": self.form not in (None, "cat"),
            "--timing-cache": self.timing_cache is not None,
            "--compare-dense": self.compare_dense,
        }
        if given := next((flag for flag, is_given in refused.items() if is_given), None):
            raise ConfigError(f"{given} does not go with --via-onnxruntime: onnxruntime builds the cat form for this GPU only.")
