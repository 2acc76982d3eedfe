"""A bundle: its manifest, its files, its graph and its masks, if it has them, have to tell the same story."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from maskpro_deploy.errors import FormatError, PatternError
from maskpro_deploy.manifest import MANIFEST_FILE, Manifest, SparseWeight, safe_path
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import sha256_file
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import FileArray, FlatArray, NibbleArray, SideBySideArray
from maskpro_deploy.validation.formats.masks import mask_array, mask_inputs, transpose_mask
from maskpro_deploy.validation.formats.onnx_graph import read_graph
from maskpro_deploy.validation.source import Reader, Source, Stored, Weight


class BundleReader(Reader):
    """Reader of bundle folders."""

    takes = "a bundle"

    def accepts(self, path: Path) -> bool:
        return path.is_dir() and (path / MANIFEST_FILE).is_file()

    def read(self, path: Path, progress: Progress) -> Source:
        manifest = Manifest.load(path)
        files = [InputFile(_path_inside(path, entry.path)) for entry in manifest.files]
        graph = read_graph(_path_inside(path, manifest.graph.file))
        masks = MaskSet.load(_path_inside(path, MASKS_FILE)) if (path / MASKS_FILE).is_file() else None
        listed: dict[str, list[SparseWeight]] = {}  # one weight may hold several of the checkpoint's side by side
        for entry in manifest.sparse_weights:
            listed.setdefault(entry.initializer, []).append(entry)
        problems = [*_check_files(path, manifest, graph.files, progress), *_check_lists(manifest, graph, masks)]
        siblings = [(g.file, read_graph(_path_inside(path, g.file))) for g in manifest.siblings]
        tensor_files = [*graph.inputs]
        stored, unchecked = [*graph.stored], [*graph.unchecked]
        for file, sibling in siblings:
            tensor_files += sibling.inputs
            problems += _check_sibling(file, sibling, graph, listed)
            stored += _list_own_tensors(file, sibling, graph)
            unchecked += [dataclasses.replace(u, name=f"{file}: {u.name}") for u in sibling.unchecked]
        return dataclasses.replace(
            graph,
            kind="bundle",
            weights=tuple(_mark_listed(w, listed.get(w.name, []), masks) for w in graph.weights),
            unchecked=tuple(unchecked),
            stored=tuple(stored),
            problems=tuple(problems),
            pattern=_read_pattern(path, manifest),
            has_list=bool(manifest.sparse_weights),
            transposable=masks is not None and masks.transposable,
            inputs=(*files, *tensor_files, *mask_inputs(masks)),
            left_dense=read_left_dense(manifest.source),
            tensor_files=tuple(tensor_files),
        )


def read_left_dense(source: Mapping[str, Any]) -> dict[str, str]:
    """The layers that a manifest says stay dense on purpose, and why."""
    left = source.get("left_dense")
    return {str(name): str(reason) for name, reason in left.items()} if isinstance(left, dict) else {}


def _path_inside(folder: Path, relative: str) -> Path:
    """The path of a file of the bundle, links followed; it may not leave the folder, by its name or through a link."""
    path = safe_path(folder, relative)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FormatError(f"{path} is a link out of the bundle: it is not read.\nA bundle holds all that it needs.")
    return path


def _read_pattern(path: Path, manifest: Manifest) -> NMPattern | None:
    return None if manifest.sparsity is None else parse_pattern(manifest.sparsity)


def parse_pattern(text: str) -> NMPattern:
    """A pattern of a manifest (FormatError: it is none)."""
    try:
        return NMPattern.parse(text)
    except (PatternError, TypeError) as e:
        raise FormatError(f"{MANIFEST_FILE} has no valid sparsity: {text!r}.") from e


def _check_files(path: Path, manifest: Manifest, data_files: tuple[str, ...], progress: Progress) -> list[str]:
    """Files that differ from their hash, and files that the graph needs but the manifest does not list."""
    total, done = sum(e.bytes for e in manifest.files), 0
    problems = []
    for entry in manifest.files:
        if sha256_file(safe_path(path, entry.path)) != entry.sha256:
            problems.append(f"{entry.path} differs from its SHA-256 in {MANIFEST_FILE}")
        done += entry.bytes
        progress.update(done, total, "hashing")
    entries = {entry.path for entry in manifest.files}
    beside = PurePosixPath(manifest.graph.file).parent
    needed = [manifest.graph.file, *(str(beside / name) for name in data_files)]
    return problems + [f"the graph needs {name}, which {MANIFEST_FILE} does not list" for name in needed if name not in entries]


def _check_sibling(file: str, sibling: Source, graph: Source, listed: Container[str]) -> list[str]:
    """Weights that only one of two graphs multiplies with: listed ones of the first, and any of the second."""
    theirs = {w.name: _describe_use(w) for w in sibling.weights}
    own = {w.name: _describe_use(w) for w in graph.weights}
    wrong = [name for name, use in own.items() if name in listed and (use[-1] is None or theirs.get(name) != use)]
    extra = [w.name for w in sibling.weights if w.linear and own.get(w.name) != _describe_use(w) and w.name not in wrong]
    return [
        *(f"{file} does not use {name} as the graph does" for name in wrong),
        *(f"{file} multiplies with {name}, which the graph does not" for name in extra),
    ]


def _list_own_tensors(file: str, sibling: Source, graph: Source) -> list[Stored]:
    """The tensors of another graph that are not stored in the bytes of the first one's."""
    places = {s.place for s in graph.stored if s.place is not None}
    return [dataclasses.replace(s, name=f"{file}: {s.name}") for s in sibling.stored if s.place is None or s.place not in places]


def _describe_use(weight: Weight) -> tuple[object, ...]:
    """What two graphs have to agree on: shape, type, axis, and the bytes of the data file."""
    data: object = weight.data
    while isinstance(data, NibbleArray):  # a MappedArray changes values: two of them cannot be compared by their place
        data = data.base
    place = (data.file.path, data.offset, data.size) if isinstance(data, FileArray) else None
    return (weight.shape, weight.dtype, weight.axis, place)


def _check_lists(manifest: Manifest, graph: Source, masks: MaskSet | None) -> list[str]:
    weights, unchecked, problems = {w.name: w for w in graph.weights}, {u.name for u in graph.unchecked}, []
    if manifest.sparse_weights and manifest.sparsity is None:
        problems.append(f"{MANIFEST_FILE} lists sparse weights but no pattern")
    for entry in manifest.sparse_weights:
        weight = weights.get(entry.initializer)
        if weight is None:
            if entry.initializer not in unchecked:
                problems.append(f"{MANIFEST_FILE} lists {entry.initializer}, which no product of the graph uses")
        elif weight.shape != entry.shape or weight.axis != entry.axis % max(1, len(entry.shape)):
            problems.append(
                f"{MANIFEST_FILE} gives {entry.initializer} shape {list(entry.shape)} and axis {entry.axis}, "
                f"the graph {list(weight.shape)} and {weight.axis}"
            )
    if masks is not None:
        promised = manifest.source.get("masks_sha256")
        if promised is not None and promised != masks.sha256():
            problems.append(f"{MASKS_FILE} holds other masks than those that {MANIFEST_FILE} gives the hash of")
        sources = {w.source for w in manifest.sparse_weights}
        problems += [
            f"{MASKS_FILE} names {n}, which {MANIFEST_FILE} does not list" for n in sorted(masks.shapes) if n not in sources
        ]
    return problems


def _mark_listed(weight: Weight, entries: Sequence[SparseWeight], masks: MaskSet | None) -> Weight:
    if not entries:
        return weight
    sources = [entry.source for entry in entries]
    mask = _find_mask(weight, masks, sources) if masks is not None and masks.shapes.keys() >= set(sources) else None
    pattern = next((entry.pattern for entry in entries if entry.pattern is not None), None)
    claimed = None if pattern is None else parse_pattern(pattern)
    return dataclasses.replace(weight, listed=True, mask=mask, pattern=claimed)


def _find_mask(weight: Weight, masks: MaskSet, sources: Sequence[str]) -> FlatArray | None:
    """A weight's mask in the graph's own order: masks are (out, in), products mostly (in, out)."""
    if len(sources) > 1:
        shapes = [masks.shapes[source] for source in sources]
        outputs = tuple(rows for rows, _ in shapes)
        if weight.axis != 0 or {k for _, k in shapes} != {weight.shape[0]} or sum(outputs) != weight.shape[1]:
            return None
        return SideBySideArray(parts=tuple(transpose_mask(masks, source) for source in sources), widths=outputs)
    (source,) = sources
    shape = masks.shapes[source]
    if weight.shape == shape and weight.axis == 1:
        return mask_array(masks, source)
    if weight.shape == shape[::-1] and weight.axis == 0:
        return transpose_mask(masks, source)
    return None
