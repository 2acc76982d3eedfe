"""From checkpoint to bundle: build the graph, stream the weights, prove the pattern, check the result, describe it.

Everything happens in a temporary folder that takes its final name last: a bundle is there whole and checked, or not at all.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy.checkpoint import Checkpoint, copy_side_files
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError
from maskpro_deploy.exporters.checks.half_precision import NotRounded
from maskpro_deploy.exporters.checks.half_report import describe_unverified, explain_difference, with_underflow
from maskpro_deploy.exporters.checks.parity import OutOfRange, Reference, verification_prompts, verify, verify_siblings
from maskpro_deploy.exporters.checks.proof import claim, prove, prunable
from maskpro_deploy.exporters.config import ExportConfig
from maskpro_deploy.exporters.frontends.templates import TEMPLATES as TEMPLATES
from maskpro_deploy.exporters.frontends.templates import Template, template_for
from maskpro_deploy.exporters.graph.builder import Graph as OnnxGraph
from maskpro_deploy.exporters.graph.builder import Weight
from maskpro_deploy.exporters.graph.cache_forms.forms import FORMS
from maskpro_deploy.exporters.graph.data_file import Blob, Quantised, check_weights, write_weights
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.exporters.graph.model_file import metadata, write_graph
from maskpro_deploy.exporters.graph.underflow import Underflow
from maskpro_deploy.exporters.layouts import data_path, graph_path, write_genai
from maskpro_deploy.exporters.quantize.calibration import calibrate
from maskpro_deploy.exporters.special_tokens import end_tokens, token_id
from maskpro_deploy.manifest import FileEntry, Graph, Manifest, ModelShape, SparseWeight, file_entry
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.system.files import check_free, copy_file, new_folder
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.system.working_folder import working_folder

_STATIC_LENGTH = 2048  # slots of a `static` cache, unless --max-length says; attention runs over all of them


def export(
    checkpoint: Path,
    out: Path,
    config: ExportConfig | None = None,
    *,
    reference: Callable[[], Reference] | None = None,
    unverified: str = "not asked for",
    compare: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
    describing: Progress = SILENT,
    calibrating: Progress = SILENT,
    verifying: Progress = SILENT,
) -> Manifest:
    """Turn a checkpoint folder into an ONNX bundle.

    A sparse checkpoint's pattern is proven on the bytes written; a dense one gives the dense twin.

    Args:
        checkpoint: a Hugging Face folder, dense or sparse.
        out: the bundle folder to make.
        config: dtype, forms, quantisation, length, required pattern.
        reference: opens the model to compare the bundle with (`parity.verify`), once the bundle is written; the figures go into
            the manifest.
        unverified: why there is no reference, for the manifest.
        compare: compare several forms with each other, where onnxruntime can run them.
        force: replace `out` if it exists.
        progress: told the bytes of weights written.
        describing: told how long a front end takes to describe an architecture without a template.
        calibrating: told the projections that are calibrated.
        verifying: told the steps of the comparison.

    Returns:
        the bundle's manifest.

    Raises:
        InputError: the checkpoint cannot be read or is of a kind without a template, or `out` exists.
        ConfigError: a setting does not fit the model.
        CheckFailed: the weights do not hold the pattern, or the bundle does not agree with `reference`, or its values do not fit
            its half-precision type; nothing is kept.
    """
    config = config if config is not None else ExportConfig()
    check_free(out, force=force)
    source = Checkpoint.open(checkpoint)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out} would replace the checkpoint {checkpoint} itself.\nChoose another --out.")
    template = template_for(source, describing)
    decoder = _with_length(template.read(source.config), config.max_length)
    graphs = build_graphs(template, decoder, config, source)
    graph = graphs[config.forms[0]]
    check_weights(graph.weights.values(), source, _ignored(source, decoder, template))
    promised = claim(source, graph.weights, config.require_sparsity)
    shape = _model_shape(source, decoder)
    origin = _origin(source, graph, template)
    with new_folder(out, force=force) as folder:
        data = folder / data_path(config.layout, config.quantize, config.dtype)
        data.parent.mkdir(exist_ok=True)
        with working_folder(folder, "calibration") as scratch:
            quantised = _calibrated(source, template, decoder, graph, config, scratch, calibrating)
            blob = write_weights(graph.weights.values(), source, data, config.dtype, progress, quantised)
        proven: tuple[SparseWeight, ...] = ()
        if promised is not None:
            proven, short = prove(blob, promised, source, graph.weights)
            origin["groups_below_n"] = short
        pattern = str(promised.pattern) if promised is not None else None
        entries = [_entry(config, form, graphs[form], decoder) for form in config.forms]
        for entry in entries:
            facts = metadata(
                graphs[entry.form],
                entry.form,
                blob,
                origin=origin,
                pattern=pattern,
                proven=proven,
                quantization=entry.quantization,
            )
            write_graph(folder / entry.file, graphs[entry.form], blob, facts)
        copy_side_files(source.folder, folder)
        if source.masks is not None and template.as_stored:  # tells a kept weight that is itself zero from a violation
            copy_file(source.folder / MASKS_FILE, folder / MASKS_FILE)
        if config.layout == "genai":
            write_genai(folder, shape, entries[0])
        manifest = Manifest(
            model=shape,
            graph=entries[0],
            siblings=tuple(entries[1:]),
            files=_files(folder, blob),
            sparsity=pattern,
            sparse_weights=proven,
            source=origin,
            verification=with_underflow(describe_unverified(config.dtype, unverified), blob.underflow),
        )
        manifest.save(folder)
        figures = dict(manifest.verification)
        if reference is not None:
            figures = with_underflow(_verified(folder, reference(), blob.underflow, verifying), blob.underflow)
        if compare and len(entries) > 1:
            figures["forms"] = _compared(folder, manifest)
        if figures != manifest.verification:
            manifest = dataclasses.replace(manifest, verification=figures)
            manifest.save(folder)
    return manifest


def build_graphs(template: Template, decoder: DecoderConfig, config: ExportConfig, source: Checkpoint) -> dict[str, OnnxGraph]:
    """The graph of every form that is asked for; all name the same weights."""
    graphs = {}
    for form in config.forms:
        made = FORMS[form](_cache_length(decoder, config), alone=len(config.forms) == 1)
        graph = template.build(Layers(decoder, made, config.dtype, config.quantization))
        graph.weights = {name: _named_as_stored(weight, source, template.prefix) for name, weight in graph.weights.items()}
        graphs[form] = graph
    return graphs


def _cache_length(decoder: DecoderConfig, config: ExportConfig) -> int:
    """Slots of a cache of fixed length."""
    return decoder.max_length if config.max_length is not None else min(decoder.max_length, _STATIC_LENGTH)


def _named_as_stored(weight: Weight, source: Checkpoint, prefix: str) -> Weight:
    """Some checkpoints leave out the first part of all names."""
    if weight.parts:
        return dataclasses.replace(weight, parts=tuple(_named_as_stored(part, source, prefix) for part in weight.parts))
    short = weight.source.removeprefix(prefix)
    if weight.source in source.shard_of or short not in source.shard_of:
        return weight
    return dataclasses.replace(weight, source=short)


def _entry(config: ExportConfig, form: str, graph: OnnxGraph, decoder: DecoderConfig) -> Graph:
    """A graph's entry in the manifest."""
    stored = config.quantization
    return Graph(
        file=graph_path(config.layout, form, config.forms[0], config.quantize, config.dtype),
        form=form,
        opset=graph.opset,
        dtype=config.dtype,
        quantization=f"{stored.describe()}, {config.method}" if stored is not None else None,
        length=_cache_length(decoder, config) if form == "static" else None,
    )


def _calibrated(
    source: Checkpoint,
    template: Template,
    decoder: DecoderConfig,
    graph: OnnxGraph,
    config: ExportConfig,
    scratch: Path,
    progress: Progress,
) -> Mapping[str, Quantised] | None:
    """The projections, quantised with what the model computes on text; None where rounding to nearest will do."""
    if config.method == "nearest":
        return None
    plain = ExportConfig(max_length=config.max_length)
    same = build_graphs(template, decoder, plain, source)["cat"]
    return calibrate(same, graph.weights, source, scratch, config.dtype, decoder.max_length, progress)


def _verified(folder: Path, reference: Reference, underflow: Underflow, progress: Progress) -> dict[str, Any]:
    """The figures of a comparison that passed, or why there are none.

    Raises:
        CheckFailed: it did not pass; the message has the figures.
    """
    manifest = Manifest.load(folder)
    prompts, greedy = verification_prompts(folder, manifest.model.max_length)
    dtype = manifest.graph.dtype
    try:
        result = verify(folder, reference, prompts, greedy, progress)
    except OutOfRange as e:
        raise CheckFailed(f"the exported graph does not work in {dtype}; nothing was kept.\n{e}") from e
    except NotRounded as e:
        return describe_unverified(dtype, str(e))
    if not result.passed:
        raise CheckFailed(
            f"the exported graph does not agree with the checkpoint; nothing was kept.\n{result.summary()}.\n"
            f"{explain_difference(folder, manifest, reference, prompts[0], underflow)}".rstrip()
        )
    return result.to_json()


def _compared(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """How the further forms agree with the first.

    Raises:
        CheckFailed: one does not; the message has the figures.
    """
    figures: dict[str, Any] = {}
    try:
        results = verify_siblings(folder, manifest)
    except OutOfRange as e:
        raise CheckFailed(f"a form of the exported graph does not work in {manifest.graph.dtype}; nothing was kept.\n{e}") from e
    for form, result in results.items():
        if isinstance(result, str):
            figures[form] = {"status": "not verified", "reason": result}
            continue
        if not result.passed:
            raise CheckFailed(
                f"the form {form!r} does not agree with {manifest.graph.form!r}; nothing was kept.\n{result.summary()}."
            )
        figures[form] = result.to_json()
    return figures


def _with_length(decoder: DecoderConfig, length: int | None) -> DecoderConfig:
    if length is None:
        return decoder
    if length > decoder.max_length:
        raise ConfigError(f"--max-length {length} is more than the model was made for: {decoder.max_length}.")
    return decoder.with_length(length)


def _ignored(source: Checkpoint, decoder: DecoderConfig, template: Template) -> set[str]:
    """Tensors without meaning for the graph: frequencies and masks that it computes itself, a copy of a tied head."""
    if template.tool:  # it has its own names for them, and has looked
        return set(source.names)
    buffers = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
    ignored = {name for name in source.names if name.endswith(buffers)}
    return ignored | ({"lm_head.weight"} if decoder.tied else set())


def _model_shape(source: Checkpoint, decoder: DecoderConfig) -> ModelShape:
    config, tokenizer = source.config, load_tokenizer(source.folder)
    if (tokens := tokenizer.get_vocab_size()) > decoder.vocab_size:
        raise FormatError(
            f"{source.folder}: tokenizer.json has {tokens} tokens, the model knows {decoder.vocab_size}.\n"
            f"They belong to different models."
        )
    ends = end_tokens(source.folder, config, tokenizer)
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
        bos_token_id=token_id(config, "bos_token_id"),
        pad_token_id=token_id(config, "pad_token_id"),
    )


def _return_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) keeps it for itself until it is told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _origin(source: Checkpoint, graph: OnnxGraph, template: Template) -> dict[str, Any]:
    """Where the weights come from: names and hashes, no paths."""
    masks = source.masks
    dense = masks.dense_sha256 if masks is not None else source.dense_sha256(prunable(graph.weights))
    origin = {
        "checkpoint": source.folder.resolve().name,
        "dense_sha256": dense,
        "masks_sha256": masks.sha256() if masks is not None else None,
    }
    return origin | ({"front_end": template.tool} if template.tool else {})


def _files(folder: Path, blob: Blob) -> tuple[FileEntry, ...]:
    """Every file of the bundle with its hash; the data file was hashed as it was written."""
    data = FileEntry(path=blob.path.relative_to(folder).as_posix(), bytes=blob.bytes, sha256=blob.sha256)
    others = (file_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file() and path != blob.path)
    return tuple(sorted((data, *others), key=lambda entry: entry.path))
