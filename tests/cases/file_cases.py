"""Randomly built files of every format, intact or damaged, each with the verdict that is right for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import FLOAT, ORIENTATIONS, change_external_data, node, product, save_model
from safetensors.numpy import load_file, save_file
from sparse_cases import FLOATS, PATTERNS, STORED, damaged, holds_by_hand, lawful

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.manifest import FileEntry, Graph, Manifest, ModelShape, SparseWeight, file_entry
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import USUAL_PATTERNS, NMPattern
from maskpro_deploy.validation import validate

T = TypeVar("T")
Array = npt.NDArray[Any]
TWO_FOUR = NMPattern(2, 4)
F32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file and what is right: `holds`, or anything but (a refutation or a plain error)."""

    path: Path
    label: str
    holds: bool
    pattern: NMPattern | None
    at_most: bool = False

    def verdict(self) -> str:
        """What the checker says: "holds", "fails" or "error: ..."."""
        try:
            return "holds" if validate(self.path, self.pattern, at_most=self.at_most).holds else "fails"
        except MaskProError as e:
            return f"error: {e}"

    def is_right(self, verdict: str) -> bool:
        return (verdict == "holds") == self.holds


def build(seed: int, folder: Path) -> Case:
    """The case of a seed, written into an empty folder."""
    rng = np.random.default_rng(seed)
    return BUILDERS[int(rng.integers(len(BUILDERS)))](rng, folder)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of a sequence, as it is (`rng.choice` would make an array of it)."""
    return choices[int(rng.integers(len(choices)))]


def cut(rng: np.random.Generator, path: Path) -> None:
    """Leave out the end, at least one byte."""
    raw = path.read_bytes()
    path.write_bytes(raw[: int(rng.integers(0, len(raw)))])


def asked(rng: np.random.Generator, pattern: NMPattern) -> NMPattern | None:
    """The pattern to ask for: sometimes none, where it is one that is looked for."""
    return None if pattern in USUAL_PATTERNS and rng.random() < 0.3 else pattern


def weight(
    rng: np.random.Generator, pattern: NMPattern, axis: int, dtype: np.dtype[Any], kinds: tuple[str, ...]
) -> tuple[Array, str, bool, bool]:
    """(values, kind of damage, at_most, whether they obey the law), the law checked by a plain loop."""
    shape = [int(rng.integers(2, 9)), int(rng.integers(2, 9))]
    shape[axis] = pattern.m * int(rng.integers(1, 5))
    array, kind, at_most = lawful(rng, tuple(shape), axis, pattern, dtype), pick(rng, kinds), bool(rng.random() < 0.25)
    if kind in ("filled", "erased", "nan"):
        array, _ = damaged(rng, array, kind)
    elif kind == "signed zeros" and dtype in FLOATS:
        array = np.where(array.astype(np.float64) == 0, np.array(-0.0, dtype), array).astype(dtype)
    elif kind == "partial":
        array = np.ascontiguousarray(np.delete(array, 0, axis=axis))
    return array, kind, at_most, holds_by_hand(array, axis, pattern, at_most=at_most)


def kinds_for(dtype: np.dtype) -> tuple[str, ...]:
    return ("none", "none", "filled", "erased", "partial", "signed zeros", *(("nan",) if dtype in FLOATS else ()))


def safetensors_file(rng: np.random.Generator, folder: Path) -> Case:
    dtype, pattern, axis = pick(rng, STORED), pick(rng, PATTERNS), int(rng.integers(0, 2))
    array, kind, at_most, good = weight(rng, pattern, axis, dtype, kinds_for(dtype))
    layer = "mlp.c_fc" if axis == 0 else "up_proj"  # the one that GPT-2 stores the other way round
    tensors = {f"layers.1.{layer}.weight": array, "model.norm.weight": np.ones(3, np.float32)}
    if rng.random() < 0.5:
        tensors[f"layers.0.{layer}.weight"] = lawful(rng, (pattern.m, pattern.m), axis, pattern, dtype)
    path = folder / "w.safetensors"
    save_file(tensors, path)
    if axis == 0:
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    if rng.random() < 0.15:
        cut(rng, path)
        kind, good = "cut", False
    want = pattern if at_most else asked(rng, pattern)
    return Case(path=path, label=f"safetensors {dtype} {kind}", holds=good, pattern=want, at_most=at_most)


def checkpoint(rng: np.random.Generator, folder: Path) -> Case:
    dtype, pattern = pick(rng, FLOATS), pick(rng, PATTERNS)
    shape = (int(rng.integers(2, 9)), pattern.m * int(rng.integers(1, 5)))
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    tensors = {name: lawful(rng, shape, 1, pattern, dtype) for name in names}
    masks = {name: array.astype(np.float64) != 0 for name, array in tensors.items()}
    hurt, known = pick(rng, names), bool(rng.random() < 0.6)
    kind = pick(rng, ("none", "filled", "erased", "nan", "cut", "gone", "moved"))
    if kind in ("filled", "erased", "nan"):
        tensors[hurt], _ = damaged(rng, tensors[hurt], kind)
    if kind == "moved":  # another lawful weight, which leaves the mask
        tensors[hurt] = lawful(rng, shape, 1, pattern, dtype)
    same = bool(((tensors[hurt].astype(np.float64) != 0) <= masks[hurt]).all())
    good = {"none": True, "erased": known, "moved": same or not known}.get(kind, False)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    if known:
        MaskSet.from_arrays(pattern, masks).save(folder / MASKS_FILE)
    if kind == "cut":
        cut(rng, folder / files[hurt])
    if kind == "gone":
        (folder / files[hurt]).unlink()
    return Case(path=folder, label=f"checkpoint {dtype} {kind} masks {known}", holds=good, pattern=None if known else pattern)


def mask_file(rng: np.random.Generator, folder: Path) -> Case:
    pattern = pick(rng, PATTERNS)
    mask = pattern.top(rng.random((int(rng.integers(1, 9)), pattern.m * int(rng.integers(1, 5)))))
    kind = pick(rng, ("none", "flipped", "cut", "other"))
    path, bits = folder / MASKS_FILE, np.packbits(mask)
    if kind == "flipped":
        at = int(rng.integers(mask.size))
        bits[at // 8] ^= 128 >> at % 8
    MaskSet(pattern=pattern, packed={"a.weight": bits}, shapes={"a.weight": mask.shape}).save(path)
    if kind == "cut":
        cut(rng, path)
    other = NMPattern(pattern.n, pattern.m + 1) if kind == "other" else None
    return Case(path=path, label=f"masks {kind}", holds=kind == "none", pattern=other)


def npz_file(rng: np.random.Generator, folder: Path) -> Case:
    pattern = pick(rng, [p for p in PATTERNS if p in USUAL_PATTERNS])
    shape = (8 * int(rng.integers(1, 4)), pattern.m * int(rng.integers(1, 5)))
    name, mask = "model.layers.0.mlp.up_proj.weight", pattern.top(rng.random(shape))
    kind = pick(rng, ("none", "flipped", "cut", "byte", "type", "pickle"))
    bits = np.packbits(mask)
    if kind == "flipped":
        bits[int(rng.integers(bits.size))] ^= 1 << int(rng.integers(8))
    stored = {"type": bits.astype(np.int32), "pickle": np.array([{}], dtype=object)}.get(kind, bits)
    path = folder / "mask_compressed.npz"
    arrays: dict[str, Any] = {f"{name}.mask": stored}
    np.savez_compressed(path, **arrays)
    if rng.random() < 0.5:
        (folder / "config.json").write_text("{}")
        save_file({name: np.zeros(shape, np.float16)}, folder / "model.safetensors")
    if kind == "cut":
        cut(rng, path)
    if kind == "byte":  # inside the compressed data: its checksum tells
        raw = bytearray(path.read_bytes())
        start = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
        raw[start + int(rng.integers(0, 40))] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
    good = kind == "none" or (kind == "byte" and _still_the_same(path, f"{name}.mask", bits))
    return Case(path=path, label=f"npz {kind}", holds=good, pattern=asked(rng, pattern))


def _still_the_same(path: Path, key: str, bits: np.ndarray) -> bool:
    """Whether numpy reads the very same array, checksum included: the mark of a stream's last block is not needed for that."""
    try:
        with np.load(path) as archive:
            return bool(np.array_equal(archive[key], bits))
    except Exception:
        return False


def bitmask(rng: np.random.Generator, folder: Path) -> Case:
    dtype = pick(rng, FLOATS)
    shape = (int(rng.integers(1, 9)), 4 * int(rng.integers(1, 9)))
    array = lawful(rng, shape, 1, TWO_FOUR, dtype)
    mask = array.astype(np.float64) != 0
    values, bits = array[mask].reshape(shape[0], -1), np.packbits(mask, axis=1, bitorder="little")
    kind = pick(rng, ("none", "short", "flipped", "nan", "cut", "shape"))
    if kind == "short":
        values[tuple(rng.integers(s) for s in values.shape)] = 0
    if kind == "nan":
        values[tuple(rng.integers(s) for s in values.shape)] = np.nan
    if kind == "flipped":
        at = int(rng.integers(shape[1]))
        bits[int(rng.integers(shape[0])), at // 8] ^= 1 << at % 8
    rows = shape[0] + (kind == "shape")
    tensors = {"compressed": values, "bitmask": bits, "shape": np.array([[rows], [shape[1]]], np.int64)}
    path = folder / "model.safetensors"
    save_file({f"layers.0.up_proj.{k}": v for k, v in tensors.items()}, path)
    if kind == "cut":
        cut(rng, path)
    want, at_most = pick(rng, [None, TWO_FOUR]), bool(rng.random() < 0.3)
    return Case(path=path, label=f"bitmask {dtype} {kind}", holds=kind in ("none", "short"), pattern=want, at_most=at_most)


def onnx_file(rng: np.random.Generator, folder: Path) -> Case:
    """A weight behind a random chain: stored type, reshape, transposes, and one of the six ways to multiply with it."""
    orientation, pattern = pick(rng, ORIENTATIONS), pick(rng, PATTERNS)
    axis = product("w", orientation)[1]
    array, kind, at_most, good = weight(rng, pattern, axis, F32, ("none", "none", "filled", "erased", "partial", "nan"))
    flips = int(rng.integers(0, 3))
    stored = array.T if flips % 2 else array
    form = pick(rng, ("plain", "cast", "dequantised", "quantised and back", "reshaped", "reshaped late"))
    if form == "dequantised" and kind == "nan":
        form = "plain"
    nodes, constants = _stored(rng, form, stored)
    value = "v"
    for i in range(flips):
        nodes.append(node("Transpose", [value], [f"t{i}"], perm=[1, 0]))
        value = f"t{i}"
    if form == "reshaped late":
        constants["late"] = np.array([-1, array.shape[1]])
        nodes.append(node("Reshape", [value, "late"], ["r"]))
        value = "r"
    nodes.append(node("Identity", [value], ["w"]))
    external = bool(rng.random() < 0.5)
    path = save_model(folder, [*nodes, *product("w", orientation)[0]], constants, external=external)
    if rng.random() < 0.15:
        whole = onnx.load(path, load_external_data=False).graph
        cut(rng, path.with_name(path.name + ".data") if external else path)
        kind, good = "cut", good and not external and _same_graph(path, whole)
    want = pattern if at_most else asked(rng, pattern)
    return Case(path=path, label=f"onnx {orientation} {form} {kind}", holds=good, pattern=want, at_most=at_most)


def _same_graph(path: Path, whole: onnx.GraphProto) -> bool:
    """Whether a cut took only what follows the graph (a message has neither length nor checksum, so nobody could tell)."""
    try:
        left = onnx.load(path, load_external_data=False)
    except Exception:
        return False
    return bool(left.opset_import) and left.graph == whole


def _stored(rng: np.random.Generator, form: str, stored: Array) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Nodes and constants that make the value "v" of `stored`."""
    if form == "cast":
        dtype = pick(rng, (np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
        return [node("Cast", ["s"], ["v"], to=FLOAT)], {"s": stored.astype(dtype)}
    if form == "reshaped":
        nodes = [node("Reshape", ["s", "shape"], ["v"])]
        return nodes, {"s": stored.reshape(-1), "shape": np.array([stored.shape[0], -1])}
    at = int(rng.integers(0, 2))
    scale_shape = (stored.shape[at],) if rng.random() < 0.5 else ()
    scale = rng.uniform(0.05, 0.9, scale_shape).astype(np.float32)
    if form == "quantised and back":
        nodes = [
            node("QuantizeLinear", ["s", "scale", "zero"], ["q"], axis=at),
            node("DequantizeLinear", ["q", "scale", "zero"], ["v"], axis=at),
        ]
        return nodes, {"s": stored, "scale": scale, "zero": np.zeros(scale_shape, np.int8)}
    if form == "dequantised":
        bits = pick(rng, ("int8", "uint8", "int4", "uint4"))
        shift = 7 if bits.startswith("u") else 0
        tensor = _integers(stored.astype(np.int64) + shift, bits)
        constants = {"s": tensor, "scale": scale, "zero": _integers(np.full(scale_shape, shift), bits)}
        return [node("DequantizeLinear", ["s", "scale", "zero"], ["v"], axis=at)], constants
    return [node("Identity", ["s"], ["v"])], {"s": stored}


def _integers(array: Array, bits: str) -> TensorProto:
    if bits.endswith("int8"):
        return numpy_helper.from_array(array.astype(np.dtype(bits)))
    flat = (np.append(array.reshape(-1), np.zeros(array.size % 2, np.int64)) & 15).astype(np.uint8)
    kind = TensorProto.INT4 if bits == "int4" else TensorProto.UINT4
    return helper.make_tensor("n", kind, array.shape, (flat[0::2] | flat[1::2] << 4).tobytes(), raw=True)


def convolution(rng: np.random.Generator, folder: Path) -> Case:
    pattern, kind = pick(rng, PATTERNS), pick(rng, ("none", "filled", "erased", "nan"))
    rank = int(rng.integers(1, 3))
    if rng.random() < 0.5:
        shape, axis, op = (3, pattern.m * 2, *[int(rng.integers(1, 4))] * rank), 1, "Conv"
    else:
        shape, axis, op = (2, pattern.m * 2, 5), 1, "MatMul"
    array = lawful(rng, shape, axis, pattern, F32)
    if kind != "none":
        array, _ = damaged(rng, array, kind)
    path = save_model(folder, [node(op, ["x", "w"], ["y"])], {"w": array}, external=bool(rng.random() < 0.5))
    return Case(path=path, label=f"onnx {op} {kind}", holds=kind == "none", pattern=asked(rng, pattern))


def bundle(rng: np.random.Generator, folder: Path) -> Case:
    """Two products, a manifest that lists them, and sometimes masks."""
    arrays = {n: lawful(rng, (4 * int(rng.integers(1, 4)), 8), 0, TWO_FOUR, F32) for n in ("a.weight", "b.weight")}
    masks = {n: (a != 0).T for n, a in arrays.items()}
    known = bool(rng.random() < 0.5)
    kind = pick(rng, ("none", "none", "filled", "erased", "byte", "cut", "axis", "shape", "unlisted", "gone", "pattern", "mask"))
    hurt = pick(rng, sorted(arrays))
    if kind in ("filled", "erased"):
        arrays[hurt], _ = damaged(rng, arrays[hurt], kind)
    nodes = [node("MatMul", ["x", "a.weight"], ["h"]), node("MatMul", ["h", "b.weight"], ["y"])]
    save_model(folder, nodes, arrays, external=True, name="model.onnx")
    source = {}
    if known:
        saved = MaskSet.from_arrays(TWO_FOUR, masks)
        saved.save(folder / MASKS_FILE)
        source = {"masks_sha256": saved.sha256()}
    weights = [SparseWeight(initializer=n, source=n, shape=a.shape, axis=0) for n, a in arrays.items()]
    files = [file_entry(folder, p) for p in sorted(folder.iterdir())]
    _manifest(weights, files, source).save(folder)
    _damage_bundle(rng, folder, kind, hurt, known)
    good = kind == "none" or (kind == "erased" and known) or (kind == "mask" and not known)
    return Case(path=folder, label=f"bundle {kind} masks {known}", holds=good, pattern=None)


def _manifest(weights: list[SparseWeight], files: list[FileEntry], source: dict[str, str]) -> Manifest:
    shape = dict.fromkeys(("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "max_length"), 8)
    model = ModelShape(name="m", architecture="X", eos_token_ids=(0,), **shape)
    graph = Graph(file="model.onnx", form="cat", opset=23, dtype="fp32")
    return Manifest(
        model=model, graph=graph, files=tuple(files), sparsity="2:4", sparse_weights=tuple(weights), source=dict(source)
    )


def _damage_bundle(rng: np.random.Generator, folder: Path, kind: str, hurt: str, known: bool) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(w for w in manifest["sparse_weights"] if w["initializer"] == hurt)
    file = pick(rng, sorted(p for p in folder.iterdir() if p.name != "manifest.json"))
    if kind == "byte":
        raw = bytearray(file.read_bytes())
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(raw)
    elif kind == "cut":
        cut(rng, file)
    elif kind == "axis":
        entry["axis"] = 1
    elif kind == "shape":
        entry["shape"] = [entry["shape"][0] + 4, entry["shape"][1]]
    elif kind == "unlisted":
        manifest["files"] = [f for f in manifest["files"] if not f["path"].startswith("model.onnx.data")]
    elif kind == "gone":
        entry["initializer"] = "gone.weight"
    elif kind == "pattern":
        manifest["sparsity"] = pick(rng, ["1:4", "3:4", "two", "4:2"])
    elif kind == "mask" and known:
        tensors = load_file(folder / MASKS_FILE)
        loaded = MaskSet.load(folder / MASKS_FILE)
        tensors[hurt][0] ^= 1 << int(rng.integers(8))
        MaskSet(pattern=TWO_FOUR, packed=tensors, shapes=loaded.shapes).save(folder / MASKS_FILE)
        changed = next(f for f in manifest["files"] if f["path"] == MASKS_FILE)
        changed.update(dataclasses.asdict(file_entry(folder, folder / MASKS_FILE)))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def loose_data(rng: np.random.Generator, folder: Path) -> Case:
    """An ONNX file whose external data is not where it should be."""
    array = lawful(rng, (8, 8), 0, TWO_FOUR, F32)
    path = save_model(folder, [node("MatMul", ["x", "w"], ["y"])], {"w": array}, external=True)
    changes = ({"location": "../x"}, {"location": "/x"}, {"location": "none"}, {"offset": "1"}, {"offset": "-1"}, {"length": "8"})
    change = pick(rng, (*changes, {"offset": str(1 << 62)}, {"length": "-256"}))
    change_external_data(path, **change)
    return Case(path=path, label=f"onnx data {change}", holds=False, pattern=TWO_FOUR)


BUILDERS: tuple[Callable[[np.random.Generator, Path], Case], ...] = (
    safetensors_file,
    safetensors_file,
    checkpoint,
    mask_file,
    npz_file,
    bitmask,
    onnx_file,
    onnx_file,
    onnx_file,
    convolution,
    bundle,
    loose_data,
)
