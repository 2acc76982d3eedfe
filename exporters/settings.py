"""Settings of the exporters, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass

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
