"""What a tensor of a checkpoint is, by its name, shape and dtype: a checkpoint has no graph that could say it.

A matrix `*.weight` is a linear layer unless the module that holds it is named as tables and heads are. Everything that is neither
a weight nor exempt by a rule is unaccounted for, whatever its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from maskpro_deploy.validation.source import Rule

_TABLES = re.compile(
    r"^(embed|embeddings?|emb|embed_(in|positions|tokens\w*)|tok_embeddings|wte|wpe"
    r"|(word|token|tok|position|positional|pos|segment|token_type|type|rel)_embeddings?|relative_attention_bias|relative_bias_table)$"
)
_HEADS = re.compile(r"^(lm_head|output_head|embed_out)$")
# the last layer of a model for other tasks, or of one that is not from transformers
_TOP = frozenset({"output.weight", "head.weight", "score.weight", "classifier.weight", "qa_outputs.weight"})
# parameters of state space and decay layers, and biases of gates: never a factor of a product
_ELEMENTWISE = re.compile(r"^(A_log|\w+_decay|\w+_gate_bias)$")
_NUMBERED = re.compile(r"\.\d+\.")  # a module inside a stack of layers
_POSITIONS = re.compile(
    r"^(inv_freq|original_inv_freq|cos_cached|sin_cached|cos_cache|sin_cache|freqs_cis|freqs_cos|freqs_sin|position_ids"
    r"|masked_bias|causal_mask|attn_mask|relative_position_index|(position|pos)_embed(ding)?s?)$"
)
_SCALES = re.compile(
    r"^((weight|input|output|k|v|q)_(scale|zero_point|scale_inv|global_scale)(_\d+)?|scales?|qzeros|zero_points?|SCB|absmax|_scale|_shift)$"
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4"})
_FEW = 64  # integers that are settings, not weights
_SHORT = 8  # taps of a depthwise convolution over positions
_CAUSAL = 4  # dimensions of a stored causal mask, the first two of them 1


class Matrix(NamedTuple):
    """A matrix that is checked as a linear layer."""


class Doubt(NamedTuple):
    """Neither a weight that can be checked nor exempt, and why."""

    reason: str


_TRANSPOSED = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|c_fc2|q_attn)\.weight$")
# families that store these layers (in, out), and families that do not
_TRANSPOSED_FAMILIES = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder", "jais", "btlm"}
)
_PLAIN_FAMILIES = frozenset({"gpt_bigcode", "starcoder2", "gpt_neo", "qwen", "clip", "kosmos-2", "exaone"})


def reduction_axis(name: str, config: Mapping[str, Any]) -> int | None:
    """The reduction axis of a linear layer: 1, (out, in), but 0 for layers that the GPT-2 family stores the other way round.

    Returns:
        None where the name suggests such a layer, and `config.json` does not say of which family it is.
    """
    if _TRANSPOSED.search(name) is None:
        return 1
    stated = (config.get("model_type"), *(v.get("model_type") for v in config.values() if isinstance(v, Mapping)))
    types = {value for value in stated if isinstance(value, str)}
    if types & _TRANSPOSED_FAMILIES:
        return None if types & _PLAIN_FAMILIES else 0
    return 1 if types & _PLAIN_FAMILIES else None


def role_of(name: str, dtype: str, shape: tuple[int, ...], longest: int, partner: int = 0) -> Matrix | Rule | Doubt:
    """What a tensor is, by its name, its dtype in the words of safetensors and its shape.

    No vector is longer than `longest`, the longest dimension of the checkpoint's matrices; scales are smaller than `partner`, the
    elements of the largest tensor of the same module.
    """
    *_, module, last = ("", *name.split("."))
    is_weight = last == "weight" or last.endswith("_proj_weight")
    single = math.prod(shape) > 0 and sum(d > 1 for d in shape) <= 1
    if dtype == "BOOL":
        return Doubt("a weight of true and false") if is_weight and not single else Rule.BOOLEAN
    if _POSITIONS.match(last):
        return Rule.POSITIONS
    if last == "_extra_state":
        return Rule.INDEX
    if dtype in _FLOATS and _ELEMENTWISE.match(last):
        return Rule.ELEMENTWISE
    if single and not (len(shape) == 2 and is_weight and shape[0] > 1):
        return _judge_vector(last, dtype, math.prod(shape), longest)
    if len(shape) == _CAUSAL and shape[:2] == (1, 1) and last == "bias":
        return Rule.POSITIONS
    if _SCALES.match(last) and 0 < math.prod(shape) < partner:
        return Rule.QUANTISATION
    if dtype in _FLOATS and len(shape) == 2 and "expert" in name and (last == "bias" or last.endswith("_bias")):
        return Rule.BIAS
    if len(shape) == 2 and is_weight:
        if _TABLES.match(module) or name == "shared.weight":
            return Rule.TOKEN_TABLE
        inside = _NUMBERED.search(name) is not None
        return Rule.HEAD if name in _TOP or (_HEADS.match(module) and not inside) else Matrix()
    return _judge_rest(name, dtype, shape, is_weight)


def _judge_rest(name: str, dtype: str, shape: tuple[int, ...], is_weight: bool) -> Rule | Doubt:
    if dtype not in _FLOATS:
        return Doubt(f"dtype {dtype} packs or encodes its weights")
    if len(shape) == 3 and is_weight and shape[1] == 1 and shape[2] <= _SHORT and "conv" in name:
        return Rule.NARROW
    if len(shape) != 2:
        return Doubt(f"a tensor of {len(shape)} dimensions does not say which one is the reduction axis")
    return Doubt("a matrix of this name does not say which one is the reduction axis")


def _judge_vector(last: str, dtype: str, size: int, longest: int) -> Rule | Doubt:
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
