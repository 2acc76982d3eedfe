"""Engines of the tiny model for the stand-in library: their profiles, and bundles that have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from library_on_host import GPU, VERSION, write_engine

from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import EngineFile, Manifest, file_entry

LENGTH = 64
Pair = tuple[int, int]
ENGINE = EngineFile(
    file="engines/one.engine",
    library="tensorrt",
    library_version=VERSION,
    target=GPU,
    dtype="fp32",
    sparse_kernels="",
    settings={"sparse_weights": True, "profiles": {}},
)


def profile_of(form: str, rows: Pair, new: Pair, past: Pair) -> Profile:
    """A profile of a tiny engine: each of rows, new, past as (smallest, largest)."""
    calls = [(rows[i], new[i], past[i]) for i in (0, 1, 1)]
    shapes: list[dict[str, tuple[int, ...]]] = []
    for b, s, p in calls:
        inputs: dict[str, tuple[int, ...]] = {"input_ids": (b, s), "position_ids": (b, s)}
        if form == "static":
            inputs |= {"write_indices": (b,), "past_key_values.0.key": (b, 2, LENGTH, 8)}
        else:
            inputs |= {"past_key_values.0.key": (b, 2, p, 8), "attention_mask": (b, s + p)}
        shapes.append(inputs)
    least, best, most = shapes
    return {name: (least[name], best[name], most[name]) for name in least}


def profiles(form: str) -> list[Profile]:
    """A profile for prompts and one for single tokens, as a real engine has them."""
    return [profile_of(form, (1, 4), (1, 16), (0, LENGTH - 16)), profile_of(form, (1, 4), (1, 1), (0, LENGTH - 1))]


def engine_bundle_in(bundle: Path, form: str, tiny_sparse: Path, gpu: str = "sm89") -> Path:
    """A bundle with an engine of one form for one GPU."""
    export(tiny_sparse, bundle, ExportConfig(forms=("cat", "static"), max_length=LENGTH), compare=False)
    manifest = Manifest.load(bundle)
    graph = next(g for g in (manifest.graph, *manifest.siblings) if g.form == form)
    write_engine(bundle / ENGINE.file, bundle / graph.file, [dict(p) for p in profiles(form)])
    settings = {"sparse_weights": True, "profiles": [{"name": "x", "shapes": p} for p in profiles(form)]}
    entries = (*manifest.files, file_entry(bundle, bundle / ENGINE.file))
    dataclasses.replace(manifest, engines=(dataclasses.replace(ENGINE, settings=settings, target=gpu),), files=entries).save(
        bundle
    )
    return bundle
