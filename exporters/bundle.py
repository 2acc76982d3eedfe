"""From checkpoint to bundle: build the graph, stream the weights, prove the pattern, check the result, describe it.

Everything happens in a temporary folder that takes its final name last: a bundle is there whole and checked, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from maskpro_deploy._version import __version__
from maskpro_deploy.backends.onnxruntime_.sessions import REWRITE_NOTHING, open_graph
from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM
from maskpro_deploy.checkpoint import Checkpoint, copy_side_files
from maskpro_deploy.errors import CheckFailed, FormatError, InputError, first_line
from maskpro_deploy.exporters.architectures.template import Template
from maskpro_deploy.exporters.checks.explanation import (
    add_underflow,
    describe_checkpoint,
    describe_unverified,
    explain_difference,
)
from maskpro_deploy.exporters.checks.half_precision.rounding import NotRounded
from maskpro_deploy.exporters.checks.parity import OutOfRange, Reference, verification_prompts, verify, verify_siblings
from maskpro_deploy.exporters.checks.proof import Proof, check_bundle, check_claim, prove
from maskpro_deploy.exporters.config import ExportConfig
from maskpro_deploy.exporters.frontends.templates import blame_graph, use_template
from maskpro_deploy.exporters.graph.builder import Graph as OnnxGraph
from maskpro_deploy.exporters.graph.data_file import Blob, write_weights
from maskpro_deploy.exporters.graph.weight_tiles import Underflow
from maskpro_deploy.exporters.layouts import data_path, graph_path, write_genai
from maskpro_deploy.exporters.plan import Plan, build_graphs, cache_length, plan_export
from maskpro_deploy.exporters.quantize.calibration import calibrate
from maskpro_deploy.manifest import FileEntry, Graph, Manifest, SparseWeight, file_entry
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import check_free, copy_file, new_folder
from maskpro_deploy.system.progress import Progress, Stages, silent_stage
from maskpro_deploy.system.working_folder import working_folder

log = logging.getLogger(__name__)


def export(
    checkpoint: Path,
    out: Path,
    config: ExportConfig | None = None,
    *,
    reference: Callable[[], Reference] | None = None,
    unverified: str = "not asked for",
    compare: bool = True,
    force: bool = False,
    progress: Stages = silent_stage,
) -> Manifest:
    """Turn a checkpoint folder into an ONNX bundle, and give its manifest.

    A sparse checkpoint's pattern is proven on the bytes written; a dense one gives the dense twin.

    Args:
        checkpoint: a Hugging Face folder, dense or sparse.
        out: the bundle folder to make.
        config: dtype, forms, quantisation, length, required pattern.
        reference: opens the model to compare the bundle with (`parity.verify`), once it is written; figures go into the manifest.
        unverified: why there is no reference, for the manifest.
        compare: compare several forms with each other, where onnxruntime can run them.
        force: replace `out` if it exists.
        progress: shows each stage: describing (by a front end), calibrating, exporting, verifying.

    Raises:
        InputError: the checkpoint cannot be read or is of a kind without a template, or `out` exists.
        ConfigError: a setting does not fit the model.
        CheckFailed: the weights do not hold the pattern, or the bundle does not agree with `reference`, or its values do not fit
            its half-precision type; nothing is kept.
    """
    check_free(out, force=force)
    source = Checkpoint.open(checkpoint)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out} would replace the checkpoint {checkpoint} itself.\nChoose another --out.")
    settings = config if config is not None else ExportConfig()
    check_claim(source, settings.require_sparsity)

    compared = reference is not None and settings.dtype == "fp32" and settings.quantize is None

    def export_with(template: Template) -> Manifest:
        plan = plan_export(source, settings, template)
        with new_folder(out, force=force) as folder:
            blob = _write_data(plan, folder, progress)
            proof = prove(blob, plan.claim, source, plan.weights)
            entries = _write_graphs(plan, folder, blob, proof)
            _add_files(plan, folder, entries)
            manifest = _describe(plan, folder, blob, proof, entries)
            figures = describe_unverified(manifest.graph.dtype, unverified)
            # half precision and quantised weights fail for the model's sake: another graph of it would fail as well
            with blame_graph() if compared else contextlib.nullcontext():
                if reference is not None:
                    figures = _check_parity(folder, manifest, reference(), blob.underflow, progress("verifying", "steps"))
                figures = add_underflow(figures, blob.underflow)
                if compare and manifest.siblings:
                    figures["forms"] = _check_siblings(folder, manifest)
            manifest = dataclasses.replace(manifest, verification=figures)
            manifest.save(folder)
            if template.tool:
                with blame_graph():
                    check_bundle(folder, plan.claim, progress("validating", "weights"))
        return manifest

    return use_template(source, export_with, progress("describing", "s"), compared=compared)


def _write_data(plan: Plan, folder: Path, progress: Stages) -> Blob:
    """The data file, with projections calibrated first where that is asked for."""
    config, decoder = plan.config, plan.decoder
    path = folder / data_path(config.layout, config.quantize, config.dtype)
    path.parent.mkdir(exist_ok=True)
    with working_folder(folder, "calibration") as scratch:
        quantised = None
        if config.method == "calibrated":
            same = build_graphs(plan.template, decoder, ExportConfig(max_length=config.max_length), plan.source)[DEFAULT_FORM]
            meter = progress("calibrating", "weights")
            quantised = calibrate(same, plan.weights, plan.source, scratch, config.dtype, decoder.max_length, meter)
        return write_weights(plan.weights.values(), plan.source, path, config.dtype, progress("exporting", "bytes"), quantised)


def _write_graphs(plan: Plan, folder: Path, blob: Blob, proof: Proof | None) -> list[Graph]:
    """The graph of each form, and its entry in the manifest; the first is the bundle's own."""
    config, stored, entries = plan.config, plan.config.quantization, []
    for form, graph in plan.graphs.items():
        entry = Graph(
            file=graph_path(config.layout, form, config.forms[0], config.quantize, config.dtype),
            form=form,
            opset=graph.opset,
            dtype=config.dtype,
            quantization=f"{stored.describe()}, {config.method}" if stored is not None else None,
            length=None if CACHE_FORMS[form].grows else cache_length(plan.decoder, config),
        )
        pattern, proven = (proof.pattern, proof.weights) if proof is not None else (None, ())
        facts = _describe_graph(entry, blob, plan.origin, pattern, proven)
        with blame_graph():
            _write_graph(folder / entry.file, graph, blob, facts)
        entries.append(entry)
    return entries


def _describe_graph(
    entry: Graph, blob: Blob, origin: Mapping[str, object], pattern: NMPattern | None, proven: Sequence[SparseWeight]
) -> dict[str, str]:
    """What a graph says of itself: who made it, from what, and which of its weights hold which pattern.

    Figures of a comparison are in the manifest only: they depend on the machine, and equal checkpoints give equal graphs.
    """
    entries = {
        "maskpro.tool": f"maskpro-deploy {__version__}",
        "maskpro.checkpoint": str(origin["checkpoint"]),
        "maskpro.dense_sha256": str(origin["dense_sha256"]),
        "maskpro.data_sha256": blob.sha256,
        "maskpro.dtype": entry.dtype,
        "maskpro.kv_form": entry.form,
    }
    if "weights_sha256" in origin:
        entries["maskpro.weights_sha256"] = str(origin["weights_sha256"])
    if "front_end" in origin:
        entries["maskpro.front_end"] = str(origin["front_end"])
    if entry.quantization is not None:
        entries["maskpro.quantization"] = entry.quantization
    if pattern is not None:
        names = json.dumps([weight.initializer for weight in proven])
        entries |= {"maskpro.sparsity": str(pattern), "maskpro.sparsity_axis": "0", "maskpro.sparse_weights": names}
    if origin["masks_sha256"]:
        entries["maskpro.masks_sha256"] = str(origin["masks_sha256"])
    return entries


def _write_graph(path: Path, graph: OnnxGraph, blob: Blob, entries: dict[str, str]) -> None:
    """Write and check a graph: the checker's full check, then a session, because a checked graph need not load."""
    path.write_bytes(graph.model(blob.tensors(), entries).SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise FormatError(f"onnx does not accept the graph: {first_line(e)}") from e
    if graph.dtype == "bf16":
        log.info("onnxruntime's CPU kernels have no bf16: the graph was checked, but not opened")
    elif missing("cpu"):
        log.info("onnxruntime is not installed: the graph was checked, but not opened")
    else:
        # without preparing weights: cheap, and every operator must find its kernel
        open_graph(path, threads=1, rewrite=REWRITE_NOTHING, settings={"session.disable_prepacking": "1"})


def _add_files(plan: Plan, folder: Path, entries: Sequence[Graph]) -> None:
    """Tokenizer, masks, and what the layout asks for."""
    copy_side_files(plan.source.folder, folder)
    if plan.masks is not None and plan.template.as_stored:  # tells a kept weight that is itself zero from a violation
        if plan.source.masks is not None:
            copy_file(plan.source.folder / MASKS_FILE, folder / MASKS_FILE)
        else:
            plan.masks.save(folder / MASKS_FILE)
    if plan.config.layout == "genai":
        write_genai(folder, plan.shape, entries[0])


def _describe(plan: Plan, folder: Path, blob: Blob, proof: Proof | None, entries: Sequence[Graph]) -> Manifest:
    """The manifest, as yet without figures of comparisons; the data file was hashed as it was written."""
    data = FileEntry(path=blob.path.relative_to(folder).as_posix(), bytes=blob.bytes, sha256=blob.sha256)
    others = (file_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file() and path != blob.path)
    return Manifest(
        model=plan.shape,
        graph=entries[0],
        siblings=tuple(entries[1:]),
        files=tuple(sorted((data, *others), key=lambda entry: entry.path)),
        sparsity=str(proof.pattern) if proof is not None else None,
        sparse_weights=proof.weights if proof is not None else (),
        source=plan.origin | ({"groups_below_n": proof.groups_below_n} if proof is not None else {}),
    )


def _check_parity(
    folder: Path, manifest: Manifest, reference: Reference, underflow: Underflow, progress: Progress
) -> dict[str, Any]:
    """The figures of a comparison that passed (CheckFailed: it did not), or why there are none."""
    prompts, greedy = verification_prompts(folder, manifest.model.max_length)
    dtype = manifest.graph.dtype
    try:
        result = verify(folder, reference, prompts, greedy, progress, manifest)
    except OutOfRange as e:
        fault = describe_checkpoint(reference, prompts[0]) or e
        raise CheckFailed(f"the exported graph does not work in {dtype}; nothing was kept.\n{fault}") from e
    except NotRounded as e:
        return describe_unverified(dtype, str(e))
    if not result.passed:
        raise CheckFailed(
            f"the exported graph does not agree with the checkpoint; nothing was kept.\n{result.summary()}.\n"
            f"{explain_difference(folder, manifest, reference, prompts[0], underflow)}".rstrip()
        )
    return result.to_json()


def _check_siblings(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """How the further forms agree with the first (CheckFailed: one does not)."""
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
