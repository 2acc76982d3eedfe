"""From checkpoint to bundle: build the graph, stream the weights, prove the pattern, check the result, describe it.

Everything happens in a temporary folder that takes its final name last: a bundle is there whole and checked, or not at all.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from maskpro_deploy import __version__
from maskpro_deploy.checkpoint import Checkpoint, copy_side_files
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError
from maskpro_deploy.exporters import llama
from maskpro_deploy.exporters.blob import Blob, check_weights, write_weights
from maskpro_deploy.exporters.graph import Graph as OnnxGraph
from maskpro_deploy.exporters.kv_forms import FORMS
from maskpro_deploy.exporters.model_config import DecoderConfig
from maskpro_deploy.exporters.parity import Reference, verification_prompts, verify
from maskpro_deploy.exporters.proof import claim, prove, prunable
from maskpro_deploy.exporters.settings import ExportConfig
from maskpro_deploy.exporters.special_tokens import end_tokens, token_id
from maskpro_deploy.extras import missing
from maskpro_deploy.files import check_free, copy_file, new_folder
from maskpro_deploy.manifest import FileEntry, Graph, Manifest, ModelShape, SparseWeight, file_entry
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# model_type -> the function that builds its graph
TEMPLATES = {"llama": llama.build, "mistral": llama.build}


def export(
    checkpoint: Path,
    out: Path,
    config: ExportConfig | None = None,
    *,
    reference: Callable[[], Reference] | None = None,
    unverified: str = "not asked for",
    force: bool = False,
    progress: Progress = SILENT,
    verifying: Progress = SILENT,
) -> Manifest:
    """Turn a checkpoint folder into an ONNX bundle.

    A sparse checkpoint's pattern is proven on the bytes written; a dense one gives the dense twin.

    Args:
        checkpoint: a Hugging Face folder, dense or sparse.
        out: the bundle folder to make.
        config: dtype, length, required pattern.
        reference: opens the model to compare the bundle with (`parity.verify`), once the bundle is written; the figures go into
            the manifest.
        unverified: why there is no reference, for the manifest.
        force: replace `out` if it exists.
        progress: told the bytes of weights written.
        verifying: told the steps of the comparison.

    Returns:
        the bundle's manifest.

    Raises:
        InputError: the checkpoint cannot be read or is of a kind without a template, or `out` exists.
        ConfigError: a setting does not fit the model.
        CheckFailed: the weights do not hold the pattern, or the bundle does not agree with `reference`; nothing is kept.
    """
    config = config if config is not None else ExportConfig()
    check_free(out, force=force)
    source = Checkpoint.open(checkpoint)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out} would replace the checkpoint {checkpoint} itself.\nChoose another --out.")
    decoder = _with_length(DecoderConfig.parse(source.config), config.max_length)
    graph = TEMPLATES[decoder.model_type](decoder, FORMS[config.form](), config.dtype)
    check_weights(graph.weights.values(), source, _ignored(source, decoder))
    promised = claim(source, graph.weights, config.require_sparsity)
    shape = _model_shape(source, decoder)
    origin = _origin(source, graph)
    with new_folder(out, force=force) as folder:
        blob = write_weights(graph.weights.values(), source, folder / DATA_FILE, config.dtype, progress)
        proven: tuple[SparseWeight, ...] = ()
        if promised is not None:
            proven, short = prove(blob, promised, source)
            origin["groups_below_n"] = short
        pattern = str(promised.pattern) if promised is not None else None
        _write_graph(folder, graph, blob, config, pattern, origin)
        copy_side_files(source.folder, folder)
        if source.masks is not None:  # tells a kept weight that is itself zero from a violation
            copy_file(source.folder / MASKS_FILE, folder / MASKS_FILE)
        manifest = Manifest(
            model=shape,
            graph=Graph(file=GRAPH_FILE, form=config.form, opset=graph.opset, dtype=config.dtype),
            files=_files(folder, blob),
            sparsity=pattern,
            sparse_weights=proven,
            source=origin,
            verification={"status": "not verified", "reason": unverified},
        )
        manifest.save(folder)
        if reference is not None:
            manifest = dataclasses.replace(manifest, verification=_verified(folder, reference(), shape.max_length, verifying))
            manifest.save(folder)
    return manifest


def _verified(folder: Path, reference: Reference, max_length: int, progress: Progress) -> dict[str, Any]:
    """The figures of a comparison that passed.

    Raises:
        CheckFailed: it did not pass; the message has the figures.
    """
    prompts, greedy = verification_prompts(folder, max_length)
    result = verify(folder, reference, prompts, greedy, progress)
    if not result.passed:
        raise CheckFailed(f"the exported graph does not agree with the checkpoint; nothing was kept.\n{result.summary()}.")
    return result.to_json()


def _with_length(decoder: DecoderConfig, length: int | None) -> DecoderConfig:
    if length is None:
        return decoder
    if length > decoder.max_length:
        raise ConfigError(f"--max-length {length} is more than the model was made for: {decoder.max_length}.")
    return dataclasses.replace(decoder, max_length=length)


def _ignored(source: Checkpoint, decoder: DecoderConfig) -> set[str]:
    """Tensors without meaning for the graph: frequencies that it computes itself, a copy of a tied head."""
    ignored = {name for name in source.names if name.endswith("rotary_emb.inv_freq")}
    return ignored | ({"lm_head.weight"} if decoder.tied else set())


def _model_shape(source: Checkpoint, decoder: DecoderConfig) -> ModelShape:
    config, tokenizer = source.config, load_tokenizer(source.folder)
    if (tokens := tokenizer.get_vocab_size()) > decoder.vocab_size:
        raise FormatError(
            f"{source.folder}: tokenizer.json has {tokens} tokens, the model knows {decoder.vocab_size}.\n"
            f"They belong to different models."
        )
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
        eos_token_ids=end_tokens(source.folder, config, tokenizer),
        bos_token_id=token_id(config, "bos_token_id"),
        pad_token_id=token_id(config, "pad_token_id"),
    )


def _origin(source: Checkpoint, graph: OnnxGraph) -> dict[str, Any]:
    """Where the weights come from: names and hashes, no paths."""
    masks = source.masks
    dense = masks.dense_sha256 if masks is not None else source.dense_sha256(prunable(graph.weights))
    return {
        "checkpoint": source.folder.resolve().name,
        "dense_sha256": dense,
        "masks_sha256": masks.sha256() if masks is not None else None,
    }


def _write_graph(
    folder: Path, graph: OnnxGraph, blob: Blob, config: ExportConfig, pattern: str | None, origin: dict[str, Any]
) -> None:
    """Write and check `model.onnx`: the checker's full check, then a session, because a checked graph need not load."""
    metadata = {
        "maskpro.tool": f"maskpro-deploy {__version__}",
        "maskpro.checkpoint": origin["checkpoint"],
        "maskpro.dense_sha256": origin["dense_sha256"],
        "maskpro.data_sha256": blob.sha256,
        "maskpro.dtype": config.dtype,
        "maskpro.kv_form": config.form,
    }
    if pattern is not None:
        metadata |= {"maskpro.sparsity": pattern, "maskpro.sparsity_axis": "0"}
    if origin["masks_sha256"]:
        metadata["maskpro.masks_sha256"] = origin["masks_sha256"]
    path = folder / GRAPH_FILE
    path.write_bytes(graph.model(blob.tensors(config.dtype), metadata).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)
    if config.dtype == "bf16":
        log.info("onnxruntime's CPU kernels have no bf16: the graph was checked, but not opened")
    elif missing("cpu"):
        log.info("onnxruntime is not installed: the graph was checked, but not opened")
    else:
        _open_session(path)


def _open_session(path: Path) -> None:
    """Open the graph in onnxruntime without preparing weights: cheap, and every operator must find its kernel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _files(folder: Path, blob: Blob) -> tuple[FileEntry, ...]:
    """Every file of the bundle with its hash; the data file was hashed as it was written."""
    data = FileEntry(path=blob.path.name, bytes=blob.bytes, sha256=blob.sha256)
    others = (file_entry(folder, path) for path in sorted(folder.iterdir()) if path != blob.path)
    return tuple(sorted((data, *others), key=lambda entry: entry.path))
