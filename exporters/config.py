"""Settings of an export, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM
from maskpro_deploy.errors import ConfigError, check_known, check_names, check_range
from maskpro_deploy.exporters.graph.builder import DTYPES
from maskpro_deploy.exporters.graph.quantization import Quantization
from maskpro_deploy.exporters.graph.weight_kinds import DEFAULT_METHOD, METHODS, WEIGHT_KINDS
from maskpro_deploy.exporters.layouts import LAYOUTS, check_genai
from maskpro_deploy.pattern import NMPattern

_SHORTEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """How a checkpoint becomes an ONNX bundle.

    Raises:
        ConfigError: a setting is out of its range.
    """

    # float type of weights and activations: "fp32" (CPU), "fp16" (GPU) or "bf16" (GPU only). Logits are always fp32.
    dtype: str = "fp32"
    max_length: int | None = None  # longest sequence the graph can run; the model's own limit by default
    require_sparsity: NMPattern | None = None  # refuse a checkpoint that does not hold this pattern
    # forms of the key/value cache (`cache_forms.CACHE_FORMS`), one graph each; the first is the bundle's own graph
    forms: tuple[str, ...] = (DEFAULT_FORM,)
    quantize: str | None = None  # how projections are stored (`WEIGHT_KINDS`); None for `dtype`
    block_size: int | None = None  # rows of a weight that share a scale, 0 for all; by default as the kind has it
    head: str | None = None  # how the output head is stored with `quantize`, of those that go with the kind; 8 bits by default
    method: str = DEFAULT_METHOD  # how weights are rounded (`METHODS`)
    layout: str = "bundle"  # which other tool's conventions the folder follows: none ("bundle"), "hub" or "genai"

    def __post_init__(self) -> None:
        check_known("--dtype", self.dtype, DTYPES)
        check_names("--forms", self.forms, CACHE_FORMS)
        check_known("--layout", self.layout, LAYOUTS)
        if self.layout == "genai":
            check_genai(self.forms)
        check_known("--method", self.method, METHODS)
        self._check_quantization()
        check_range("--max-length", self.max_length, least=_SHORTEST)

    def _check_quantization(self) -> None:
        if self.quantize is None and (self.block_size is not None or self.head is not None or self.method != DEFAULT_METHOD):
            kinds = " or ".join(kind.name for kind in WEIGHT_KINDS.values() if kind.blocks)
            raise ConfigError(
                f"--block-size, --quantize-head and --method say how to quantise: give --quantize {kinds} with them."
            )
        stored = self.quantization  # refuses kind, block and head
        if stored is not None and self.method not in stored.stored.methods:
            allowed = " or ".join(stored.stored.methods)
            raise ConfigError(f"--method {self.method} makes integers; --quantize {self.quantize} is rounded to {allowed}.")

    @property
    def quantization(self) -> Quantization | None:
        """How projections are stored."""
        return None if self.quantize is None else Quantization.make(self.quantize, self.block_size, self.head)
