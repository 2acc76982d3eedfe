"""What the weights of a checkpoint are packed by, where they are not stored as plain floats.

Tensors decide: a folder is packed if it holds tensors of a packed form, by their names and types. What config.json and
hf_quant_config.json say of quantisation only gives tool and form their names; many tools leave it in folders of plain weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maskpro_deploy.storage.bitmask import BITS, VALUES
from maskpro_deploy.system.files import read_json

QUANTISATION_KEYS = ("quantization_config", "compression_config")  # of config.json
_MODELOPT_FILE = "hf_quant_config.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_WHOLE = "Give the checkpoint that it was quantised from."
_BY_TRANSFORMERS = (
    "Unpack it with transformers 5.24: AutoModelForCausalLM.from_pretrained(FOLDER, quantization_config={}(dequantize=True))"
    ".save_pretrained(OUT). Then copy the tokenizer files to OUT."
)
# what the tensors of a packed weight are called, and by which tool if nothing else says it; the first that fits names it
_SIGNS = tuple(
    (re.compile(sign), tool)
    for sign, tool in (
        (r"\.weight_packed$", "compressed-tensors"),
        (r"\.qweight$", "GPTQ or AWQ"),
        (r"\.weight\.(absmax|quant_map|nested_absmax|quant_state\..*)$", "bitsandbytes"),
        (r"\.SCB$", "bitsandbytes"),
        (r"_qdata$", "torchao"),
        (r"\._data$", "quanto"),
        (r"\.W_q$", "HQQ"),
        (r"\.weight_scale_inv$", "block FP8"),
        (r"_blocks$", "MXFP4"),
        (r"\.(weight_quantizer\.\w+|weights_scaling_factor\w*|weight_scale_2)$", "ModelOpt"),
        (r"\.weight_scale$", "compressed-tensors"),
    )
)
_METHODS = {"modelopt": "ModelOpt", "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "mxfp4": "MXFP4", "fp8": "block FP8"}
# those of which it was tried
_CONFIGS = {"block FP8": "FineGrainedFP8Config", "compressed-tensors": "CompressedTensorsConfig"}


class Packing(NamedTuple):
    """A packed form of weights."""

    tool: str  # what writes it
    form: str  # which of its forms: format and type, as far as they are known
    remedy: str  # how to get plain weights, as a sentence

    def __str__(self) -> str:
        return f"packed by {self.tool} ({self.form})" if self.form else f"packed by {self.tool}"


def find_packing(folder: Path, config: Mapping[str, Any], types: Mapping[str, str]) -> Packing | None:
    """What the weights of a checkpoint are packed by; None if all of them are plain or stand behind a bitmask (`bitmask`).

    Args:
        folder: where further statements may be.
        config: the content of its config.json.
        types: name -> type of every tensor, as safetensors names types.
    """
    if (sign := next(_find_signs(types), None)) is None:
        return None
    said = _read_statement(folder, config)
    method = str(said.get("quant_method") or "").removesuffix("_moe")
    tool = _METHODS.get(method, method) or sign
    form = ", ".join(dict.fromkeys(part for part in _describe(said, types) if part))
    behind_bitmask = any(name.endswith(VALUES) for name in types)
    remedy = _BY_TRANSFORMERS.format(_CONFIGS[tool]) if tool in _CONFIGS and not behind_bitmask else _WHOLE
    return Packing(tool=tool, form=form, remedy=remedy)


def _find_signs(types: Mapping[str, str]) -> Iterator[str]:
    """The tools by whose forms tensors are named or typed, the most telling first."""
    for pattern, tool in _SIGNS:
        if any(pattern.search(name) for name in types):
            yield tool
    for name, kind in types.items():
        behind = name.endswith(VALUES) and name.removesuffix(VALUES) + BITS in types
        if behind and kind not in FLOATS:
            yield "compressed-tensors"
        if name.endswith(".weight") and kind not in FLOATS and not kind.startswith(("F8_E4", "F8_E5", "BOOL")):
            yield "a tool that it does not name"


def _read_statement(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a folder says of its quantisation, in the form of transformers' `quantization_config`."""
    inner = (value for value in config.values() if isinstance(value, Mapping))
    for part in (config, *inner):
        if said := next((part[key] for key in QUANTISATION_KEYS if isinstance(part.get(key), Mapping) and part[key]), None):
            return dict(said)
    if (folder / _MODELOPT_FILE).is_file():
        said = read_json(folder / _MODELOPT_FILE).get("quantization")
        return {"quant_method": "modelopt", **(said if isinstance(said, Mapping) else {})}
    return {}


def _describe(said: Mapping[str, Any], types: Mapping[str, str]) -> Iterator[str]:
    """Format and type of the packed weights, as far as the statement or the tensors give them."""
    groups = said.get("config_groups")
    groups = [g for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    sparsity = said.get("sparsity_config")
    for part in (sparsity, said, *groups):
        if isinstance(part, Mapping) and (named := part.get("format")) not in ("dense", "mixed-precision"):
            yield str(named or "")
    yield str(said.get("quant_algo") or said.get("fmt") or "")
    for group in groups:
        weights = group.get("weights")
        if isinstance(weights, Mapping) and weights.get("num_bits"):
            yield f"{weights.get('type') or ''}{weights['num_bits']}"
    kind = said.get("quant_type")  # of torchao
    kind = kind.get("default") if isinstance(kind, Mapping) else kind
    yield str(kind.get("_type") or "") if isinstance(kind, Mapping) else str(kind or "")
    bits = said.get("bits") or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
    yield f"{bits} bits" if isinstance(bits, int) else ""
    if not said:
        kinds = {kind for kind in types.values() if kind not in FLOATS and kind not in ("I64", "BOOL")}
        yield " and ".join(sorted(kinds)[:2]) or "plain weights with the scales of a quantiser"
