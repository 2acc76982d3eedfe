"""Settings of an export, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters.graph.builder import DTYPES
from maskpro_deploy.exporters.graph.cache_forms.forms import FORMS
from maskpro_deploy.exporters.graph.quantization import METHODS, Quantization
from maskpro_deploy.exporters.layouts import LAYOUTS, check_genai
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
