"""Bundles as arms of a benchmark: opened, checked against each other, named; and what a reader of their figures has to know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from maskpro_deploy.bench.graph_work import graph_work
from maskpro_deploy.bench.model import Forward, ModelArm
from maskpro_deploy.data import load_tokenizer
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.manifest import Manifest, safe_path
from maskpro_deploy.runtime import SessionConfig, open_session

CPU_NOTE = (
    "Stock onnxruntime has no 2:4 kernels on a CPU: it multiplies the zeros of a sparse weight like any other value. "
    "A difference between a dense and a 2:4 bundle here does not come from sparsity."
)


def notes_for(arms: list[ModelArm[Any]]) -> list[str]:
    """What a reader of these arms' figures has to know."""
    return [CPU_NOTE] if all(arm.facts["provider"] == "CPUExecutionProvider" for arm in arms) else []


def open_arms(
    bundles: list[Path],
    provider: str,
    threads: int | None,
    *,
    spin: bool = False,
    form: str | None = None,
    engine: str | None = None,
) -> list[ModelArm[Any]]:
    """Bundles as arms, named after their folders. Each is opened once here, so that what cannot run is refused at once.

    Two sessions share the process, and the spinning threads of one would take time from the other: hence no spinning by default.

    Raises:
        InputError: a path is not a bundle, or two bundles have different tokenizers.
        ConfigError: more forms or engines than bundles.
    """
    forms, engines = _give_each(form, len(bundles), "--form"), _give_each(engine, len(bundles), "--engine")
    manifests = [Manifest.load(bundle, engines=False) for bundle in bundles]
    _check_tokenizers(bundles)
    parts = zip(_name_bundles(bundles), forms, engines, strict=True)
    names = [" ".join(part for part in (name, form, engine) if part) for name, form, engine in parts]
    configs = [
        SessionConfig(provider=provider, threads=threads, spin=spin, form=form, engine=engine)
        for form, engine in zip(forms, engines, strict=True)
    ]
    return [_open_arm(*each) for each in zip(names, bundles, manifests, configs, strict=True)]


def _open_arm(name: str, bundle: Path, manifest: Manifest, config: SessionConfig) -> ModelArm[Any]:
    """A bundle as an arm. Its session is closed again: one model in memory at a time."""
    session = open_session(bundle, config)
    shape, graph, active = session.shape, session.graph, session.providers[0]
    work, files = graph_work(safe_path(bundle, graph.file)), sorted(f"{f.path} {f.sha256}" for f in manifest.files)
    value_bytes = 4 if graph.dtype == "fp32" else 2
    plain = graph.dtype == "fp32" and graph.quantization is None  # what the measured ceiling is for
    return ModelArm(
        name=name,
        open=partial(_open_forward, bundle, config),
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        weight_bytes=work.weight_bytes,
        kv_bytes_per_token=2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * value_bytes,
        operations_per_token=work.operations_per_token if plain else None,
        attention_operations=4 * shape.num_layers * shape.num_heads * shape.head_dim if plain else None,
        on_cpu=active == "CPUExecutionProvider",
        facts={
            "model_id": shape.name,
            "path": str(bundle),
            "dtype": graph.dtype,
            "quantization": graph.quantization,
            "cache_form": graph.form,
            "sparsity": manifest.sparsity,
            "sparse_weights": len(manifest.sparse_weights),
            "provider": active,
            "engine": config.engine,
            "threads": config.threads,
            "threads_spin": config.spin,
            "files_sha256": hashlib.sha256("\n".join(files).encode()).hexdigest(),
            "weights_sha256": _identify_weights(manifest),
            "graph_sha256": work.structure_sha256,
        },
    )


def _give_each(given: str | None, count: int, flag: str) -> list[str | None]:
    """A value for each bundle, from one for all or one for each, separated by commas."""
    values: list[str | None] = list(given.split(",")) if given else [None]
    if len(values) not in (1, count):
        raise ConfigError(f"{flag} {given}: give one for all, or one for each of the {count} bundles.")
    return values if len(values) == count else values * count


@contextmanager
def _open_forward(bundle: Path, config: SessionConfig) -> Iterator[Forward[Any]]:
    """A new session of a bundle, gone with the context."""
    yield open_session(bundle, config).forward


def _identify_weights(manifest: Manifest) -> str | None:
    """One hash for the weights before they were stored in some precision: their own, or the dense model's; and their masks'."""
    own, dense, masks = (manifest.source.get(name) for name in ("weights_sha256", "dense_sha256", "masks_sha256"))
    return None if dense is None else f"{own or dense}+{masks}"


def _check_tokenizers(bundles: list[Path]) -> None:
    first, *others = bundles
    vocabulary = load_tokenizer(first).get_vocab()
    for other in others:
        if load_tokenizer(other).get_vocab() != vocabulary:
            raise InputError(
                f"{first} and {other} have different vocabularies: a token of one is not a token of the other.\n"
                f"Measure them in separate runs."
            )


def _name_bundles(bundles: list[Path]) -> list[str]:
    """Folder names; the whole paths where these are the same; numbered where one bundle is measured against itself."""
    names = [bundle.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        names = [str(bundle) for bundle in bundles]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names
