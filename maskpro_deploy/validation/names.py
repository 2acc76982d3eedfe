"""What a tensor of a checkpoint is, by its name, shape and dtype: a checkpoint has no graph that could say it.

A matrix `*.weight` is a linear layer unless the module that holds it is named as tables and heads are. Everything that is neither
a weight nor exempt by a rule is unaccounted for, whatever its name.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from maskpro_deploy.validation.accounts import Rule

_TABLES = re.compile(
    r"^(embed|embedd?ings?|embed_(in|positions)|emb|shared|word_embeddings?|tok_embeddings?|wte|wpe|\w*_embeddings?|\w*embed_tokens\w*"
    r"|relative_attention_bias|relative_bias_table)$"
)
_HEADS = re.compile(r"^(lm_head|output_head|embed_out)$")
_POSITIONS = re.compile(
    r"^(inv_freq|original_inv_freq|cos_cached|sin_cached|cos_cache|sin_cache|freqs_cis|freqs_cos|freqs_sin|position_ids"
    r"|masked_bias|causal_mask|attn_mask|relative_position_index)$"
)
_SCALES = re.compile(
    r"^((weight|input|output|k|v|q)_(scale|zero_point|scale_inv|global_scale)(_\d+)?|scales?|qzeros|zero_points?|SCB|absmax|_scale|_shift)$"
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4"})
_FEW = 64  # integers that are settings, not weights
_CAUSAL = 4  # dimensions of a stored causal mask, the first two of them 1


class Matrix(NamedTuple):
    """A matrix that is checked as a linear layer."""


class Doubt(NamedTuple):
    """Neither a weight that can be checked nor exempt, and why."""

    reason: str


def module_of(name: str) -> str:
    """The last module of a tensor's name: `embed_tokens` of `model.embed_tokens.weight`."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else ""


def role_of(name: str, dtype: str, shape: tuple[int, ...], longest: int) -> Matrix | Rule | Doubt:
    """What a tensor is.

    Args:
        name: as the checkpoint has it.
        dtype: in the words of safetensors.
        shape: its shape.
        longest: the longest dimension of all matrices of the checkpoint; no vector of it is longer.
    """
    last, module = name.rpartition(".")[2], module_of(name)
    is_weight = last == "weight" or last == "in_proj_weight" or name == "weight"
    if dtype == "BOOL":
        return Rule.BOOLEAN
    if _POSITIONS.match(last):
        return Rule.POSITIONS
    if math.prod(shape) > 0 and sum(d > 1 for d in shape) <= 1 and not (len(shape) == 2 and is_weight):
        return _vector(last, dtype, math.prod(shape), longest)
    if len(shape) == _CAUSAL and shape[:2] == (1, 1) and last == "bias":
        return Rule.POSITIONS
    if _SCALES.match(last):
        return Rule.QUANTISATION
    if dtype in _FLOATS and (last == "bias" or last.endswith("_bias")):
        return Rule.BIAS
    if len(shape) == 2 and is_weight and _TABLES.match(module):
        return Rule.TOKEN_TABLE
    if len(shape) == 2 and is_weight and _HEADS.match(module):
        return Rule.HEAD
    if len(shape) == 2 and is_weight:
        return Matrix()
    if dtype not in _FLOATS:
        return Doubt(f"dtype {dtype} packs or encodes its weights")
    if len(shape) > 2 and is_weight and shape[1] == 1:
        return Rule.NARROW
    if len(shape) != 2:
        return Doubt(f"a tensor of {len(shape)} dimensions does not say which one is the reduction axis")
    return Doubt("a matrix of this name does not say which one is the reduction axis")


def _vector(last: str, dtype: str, size: int, longest: int) -> Rule | Doubt:
    if dtype not in _FLOATS:
        wide = dtype in ("I64", "I32", "U64", "U32", "I16", "U16")
        if size <= _FEW or (wide and size <= longest):
            return Rule.INDEX
        return (
            Rule.QUANTISATION if _SCALES.match(last) and size <= longest else Doubt(f"dtype {dtype} packs or encodes its weights")
        )
    if size <= max(longest, _FEW):
        return Rule.VECTOR
    return Doubt(f"it has {size} values in a row, more than any matrix has rows or columns: a matrix may be hidden in it")
