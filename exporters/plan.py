"""What an export is going to do, worked out before anything is written: most of what can be wrong is refused here."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import ConfigError, FormatError
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.checks.proof import Claim, find_masks, list_prunable, read_claim
from maskpro_deploy.exporters.config import ExportConfig
from maskpro_deploy.exporters.frontends.templates import blame_graph
from maskpro_deploy.exporters.graph.builder import Graph, Weight
from maskpro_deploy.exporters.graph.cache_forms.base import make_form
from maskpro_deploy.exporters.graph.data_file import check_weights
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import read_json

_UNLIMITED_LENGTH = 2048  # of a model that sets no limit of its own, unless --max-length says
_STATIC_LENGTH = 2048  # slots of a cache of fixed length, unless --max-length says; attention runs over all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One export, before its first byte."""

    source: Checkpoint
    config: ExportConfig
    template: Template
    decoder: DecoderConfig
    graphs: dict[str, Graph]  # name of each form -> its graph; all name the same weights
    masks: MaskSet | None  # the checkpoint's own, or those that its weights hold; None for a dense checkpoint
    claim: Claim | None  # the pattern to prove, and of which weights; None for a dense checkpoint
    shape: ModelShape  # what the manifest says of the model
    origin: dict[str, Any]  # where the weights come from, for the manifest: names and hashes, no paths

    @property
    def weights(self) -> dict[str, Weight]:
        """The weights of all graphs, by name."""
        return self.graphs[self.config.forms[0]].weights


def plan_export(checkpoint: Checkpoint, config: ExportConfig, template: Template) -> Plan:
    """Read the checkpoint's description and build its graphs.

    Raises:
        Unfit: weights and config do not fit the template, or it does not build what is asked for.
        ConfigError: a setting does not fit the model.
        FormatError: the tokenizer and config do not fit each other.
        CheckFailed: the checkpoint's masks are not what is required.
    """
    with blame_graph():
        decoder = _limit_length(template.read(checkpoint.config), config.max_length)
        graphs = build_graphs(template, decoder, config, checkpoint)
        weights = graphs[config.forms[0]].weights
        check_weights(weights.values(), checkpoint, _list_unused_tensors(checkpoint, decoder, template))
        masks = find_masks(checkpoint, weights, config.require_sparsity)
        if masks is not None:  # weights that hold it and others do not become one
            graphs = build_graphs(template, decoder, config, checkpoint, masks)
            weights = graphs[config.forms[0]].weights
        claim = read_claim(checkpoint, masks, weights, config.require_sparsity)
    return Plan(
        source=checkpoint,
        config=config,
        template=template,
        decoder=decoder,
        graphs=graphs,
        masks=masks,
        claim=claim,
        shape=_describe_model(checkpoint, decoder),
        origin=_describe_origin(checkpoint, masks, weights, template),
    )


def build_graphs(
    template: Template, decoder: DecoderConfig, config: ExportConfig, source: Checkpoint, masks: MaskSet | None = None
) -> dict[str, Graph]:
    """The graph of every form that is asked for; all name the same weights."""

    def read_pattern(name: str) -> NMPattern | None:
        stored = name if name in source.shard_of else name.removeprefix(template.prefix)
        return masks.pattern_of(stored) if masks is not None and stored in masks else None

    graphs = {}
    for name in config.forms:
        form = make_form(name, cache_length(decoder, config), alone=len(config.forms) == 1)
        graph = template.build(Layers(decoder, form, config.dtype, config.quantization, read_pattern))
        graph.weights = {key: _name_as_stored(weight, source, template.prefix) for key, weight in graph.weights.items()}
        graphs[name] = graph
    return graphs


def cache_length(decoder: DecoderConfig, config: ExportConfig) -> int:
    """Slots of a cache of fixed length."""
    return decoder.max_length if config.max_length is not None else min(decoder.max_length, _STATIC_LENGTH)


def _name_as_stored(weight: Weight, source: Checkpoint, prefix: str) -> Weight:
    """Some checkpoints leave out the first part of all names."""
    if weight.parts:
        return dataclasses.replace(weight, parts=tuple(_name_as_stored(part, source, prefix) for part in weight.parts))
    short = weight.source.removeprefix(prefix)
    if weight.source in source.shard_of or short not in source.shard_of:
        return weight
    return dataclasses.replace(weight, source=short)


def _limit_length(decoder: DecoderConfig, length: int | None) -> DecoderConfig:
    if length is None:
        return decoder if decoder.max_length else dataclasses.replace(decoder, max_length=_UNLIMITED_LENGTH)
    if 0 < decoder.max_length < length:
        raise ConfigError(f"--max-length {length} is more than the model was made for: {decoder.max_length}.")
    return dataclasses.replace(decoder, max_length=length)


def _list_unused_tensors(source: Checkpoint, decoder: DecoderConfig, template: Template) -> set[str]:
    """Tensors without meaning for the graph: frequencies and masks that it computes itself, a copy of a tied head."""
    if template.tool:  # it has its own names for them, and has looked
        return set(source.names)
    buffers = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
    unused = {name for name in source.names if name.endswith(buffers)}
    return unused | ({"lm_head.weight"} if decoder.tied else set())


def _describe_model(source: Checkpoint, decoder: DecoderConfig) -> ModelShape:
    config, tokenizer = source.config, load_tokenizer(source.folder)
    if (tokens := tokenizer.get_vocab_size()) > decoder.vocab_size:
        raise FormatError(
            f"{source.folder}: tokenizer.json has {tokens} tokens, the model knows {decoder.vocab_size}.\n"
            f"They belong to different models."
        )
    ends = _find_end_tokens(source.folder, config, tokenizer)
    del tokenizer
    _return_memory()  # a vocabulary takes more of it than all that follows
    return ModelShape(
        name=source.folder.resolve().name,
        architecture=decoder.model_type,
        vocab_size=decoder.vocab_size,
        num_layers=decoder.num_layers,
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        hidden_size=decoder.hidden_size,
        max_length=decoder.max_length,
        eos_token_ids=ends,
        bos_token_id=_read_token_id(config, "bos_token_id"),
        pad_token_id=_read_token_id(config, "pad_token_id"),
    )


def _return_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) would keep it for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _describe_origin(source: Checkpoint, masks: MaskSet | None, weights: dict[str, Weight], template: Template) -> dict[str, Any]:
    """Names and hashes; where masks do not know the dense weights, `dense_sha256` is that of the checkpoint's own.

    Kept weights that are not the dense model's have a hash of their own, `weights_sha256`.
    """
    known = masks.dense_sha256 if masks is not None else ""
    changed = masks is not None and source.weights_changed
    own = source.dense_sha256(list_prunable(weights)) if changed or not known else ""
    origin = {
        "checkpoint": source.folder.resolve().name,
        "dense_sha256": known or own,
        **({"weights_changed": True, "weights_sha256": own} if changed else {}),
        "masks_sha256": masks.sha256() if masks is not None else None,
    }
    inferred = {"masks_inferred": True} if masks is not None and source.masks is None else {}
    left = {"left_dense": dict(masks.dense)} if masks is not None and masks.dense else {}
    moved = {"transform": masks.transform.kinds()} if masks is not None and masks.transform else {}
    return origin | left | moved | inferred | ({"front_end": template.tool} if template.tool else {})


def _find_end_tokens(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of all tokens that end a text, sorted: by both configs, and by names in `tokenizer_config.json`, chat's among them."""
    ids: set[int] = set()
    generation, names = (
        read_json(file) if (file := folder / name).is_file() else {}
        for name in ("generation_config.json", "tokenizer_config.json")
    )
    for fields in (config, generation):
        value = fields.get("eos_token_id")
        ids |= {_check_id(v) for v in (value if isinstance(value, list) else [value]) if v is not None}
    for field in ("eos_token", "eot_token", "end_of_turn_token"):
        name = names.get(field)
        text = name.get("content") if isinstance(name, dict) else name
        if isinstance(text, str) and (token := tokenizer.token_to_id(text)) is not None:
            ids.add(int(token))
    if not ids:
        raise FormatError(f"{folder} names no end-of-text token.\nPut eos_token_id into its config.json.")
    return tuple(sorted(ids))


def _read_token_id(config: Mapping[str, Any], field: str) -> int | None:
    """One optional token id of `config.json`; of several, the first."""
    value = config.get(field)
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else _check_id(value)


def _check_id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FormatError(f"a token id must be a whole number, found {value!r}.")
    return value
