"""What a tensor of a checkpoint is, by its name, shape and dtype, and in view of the others: a checkpoint has no graph to say it.

A matrix `*.weight` is a linear layer unless the module that holds it is named as tables and heads are. Others may be scales of a
weight, adapters of a listed layer, or zero points. What is neither a weight nor exempt by a rule is unaccounted for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from maskpro_deploy.storage.bitmask import list_parts
from maskpro_deploy.storage.linear_layers import is_router, read_route_counts
from maskpro_deploy.validation.formats.bitmask_parts import DTYPES, Entries
from maskpro_deploy.validation.source import Finding, Rule, Unchecked, Weight

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


_ADAPTER = ("lora_", "lokr_", "loha_", "vera_")
_ZERO_POINT = re.compile(r"zero|zp|offset")
_SCALE = re.compile(r"^(weight_scale(_inv)?|scales?|SCB|absmax|_scale)$")
_SMALL = 1 << 24  # bytes of scales and zero points that are looked at


class Neighbours:
    """The tensors of a checkpoint by module. `listed` are the weights that masks list, None if nothing lists them."""

    def __init__(self, entries: Entries, listed: Collection[str] | None, config: Mapping[str, Any]) -> None:
        self._entries, self._listed = entries, listed
        self._routes = read_route_counts(config)
        self._modules = {path: name for name in listed or () for path in _list_tails(name.rpartition(".")[0])}
        self._members: dict[str, list[str]] = {}
        self._largest: dict[str, int] = {}
        for name, (_, entry) in entries.items():
            module = name.rpartition(".")[0]
            self._members.setdefault(module, []).append(name)
            self._largest[module] = max(self._largest.get(module, 0), math.prod(entry.shape))
        longest = [max(e.shape) for n, (_, e) in entries.items() if len(e.shape) == 2 and isinstance(self._role(n, 0), Matrix)]
        self._longest = max(longest, default=0)
        self._widest = max((max(e.shape) for _, e in entries.values() if len(e.shape) == 2), default=0)

    def role(self, name: str) -> Matrix | Rule | Doubt:
        """What a tensor is; a bias of the output head may be as long as the vocabulary."""
        return self._role(name, self._widest if name.endswith("bias") else self._longest)

    def is_listed(self, name: str) -> bool:
        return self._listed is not None and name in self._listed

    def judge(self, finding: Finding, name: str) -> Finding:
        """What a tensor is, in view of what stands next to it."""
        entry = self._entries[name][1]
        if isinstance(finding, Weight) and (reason := self._judge_quantisation(name)):
            return Unchecked(name=name, shape=finding.shape, reason=reason, bytes=entry.bytes)
        if isinstance(finding, Weight) and not finding.listed and is_router(name, entry.shape, self._routes):
            return Rule.ROUTER
        if self._listed is None or (isinstance(finding, Weight) and finding.listed):
            return finding
        owner = self._find_owner(name)
        if owner and not self._is_harmless(finding, name, len(entry.shape)):
            reason = f"it belongs to {owner}, which is listed: it may change what that layer computes"
            return Unchecked(name=name, shape=entry.shape, reason=reason, bytes=entry.bytes)
        if any(part in name for part in _ADAPTER):
            return Unchecked(name=name, shape=entry.shape, reason="it may be an adapter of a listed layer", bytes=entry.bytes)
        return replace(finding, declared=True) if isinstance(finding, Unchecked) else finding

    def _role(self, name: str, longest: int) -> Matrix | Rule | Doubt:
        entry = self._entries[name][1]
        return role_of(name, entry.dtype, entry.shape, longest, self._largest.get(name.rpartition(".")[0], 0))

    def _find_owner(self, name: str) -> str:
        """The listed layer that a tensor may belong to, whatever its path is wrapped in or lacks; "" if there is none."""
        words = _split_words(name)
        for stop in range(len(words), 0, -1):
            for start in range(stop):
                layer = self._modules.get(words[start:stop])
                # the weight of a layer of the same path in another part of the model is a layer of its own
                if layer is not None and (words[stop:] != ("weight",) or words[start:stop] == _split_words(layer)[:-1]):
                    return layer
        return ""

    def _is_harmless(self, finding: Finding, name: str, rank: int) -> bool:
        """Whether a tensor of a listed layer leaves alone which of its weights are zero: a bias, a scale, a mask."""
        last = name.rpartition(".")[2]
        if finding is Rule.QUANTISATION:
            weight = self._entries.get(f"{name.rpartition('.')[0]}.weight")
            return rank <= 2 and weight is not None and weight[1].dtype not in ("F64", "F32", "F16", "BF16")
        if finding is Rule.BOOLEAN:
            return True
        return finding is Rule.VECTOR and (last.endswith("bias") or "scale" in last)

    def _judge_quantisation(self, name: str) -> str:
        """Why the stored integers of a weight are not zero where its weights are; "" if they are."""
        module, dtype = name.rpartition(".")[0], self._entries[name][1].dtype
        if dtype != "I8" and not dtype.startswith("F8"):
            return ""
        members = [n for m in (module, f"{module}.weight_quantizer") for n in self._members.get(m, ())]
        members = [member for member in members if member not in (name, *list_parts(module))]
        for member in members:
            file, entry = self._entries[member]
            last = member.rpartition(".")[2]
            if _ZERO_POINT.search(last):
                if entry.bytes > _SMALL or file.read(entry.offset, entry.bytes).any():
                    return f"its zero points ({last}) are not all zero, or are packed"
            elif _SCALE.match(last) and not self._is_positive(member):
                return f"its scales ({last}) are not all finite and other than zero"
        return ""

    def _is_positive(self, name: str) -> bool:
        file, entry = self._entries[name]
        if entry.dtype not in DTYPES:
            return True  # a type of scales alone, or packed
        if entry.bytes > _SMALL:
            return False
        values = file.read(entry.offset, entry.bytes).view(DTYPES[entry.dtype]).astype(np.float64)
        return bool(np.isfinite(values).all() and (values != 0).all())


def _split_words(name: str) -> tuple[str, ...]:
    """The parts of a path, with dots or underscores between them."""
    return tuple(part for part in re.split(r"[._]", name) if part)


def _list_tails(module: str) -> Iterator[tuple[str, ...]]:
    """The path of a module, and what is left of it without the names in front of its layer."""
    words = _split_words(module)
    yield words
    number = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    if number > 1:
        yield words[number - 1 :]
