"""Damage without a plan: whole files of every format, with bytes changed, cut, repeated or swapped, or a header rewritten.

The law of the fuzz: whatever the bytes, `validate` answers with a report or a plain error, within seconds and a bounded memory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
from file_cases import BUILDERS, pick

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

_NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    -1,
    -8,
    -(2**63),
]
_MOST_LINES = 12  # libraries quote what they found
_VALUES: list[object] = [None, True, "", "U8", "F16", [], {}, [[]], "../../x", 1.5, 1e300, *_NUMBERS]


def make_corpus(folder: Path) -> list[Path]:
    """One whole case of every builder, each in a folder of its own."""
    made = []
    for i, builder in enumerate(dict.fromkeys(BUILDERS)):
        for seed in range(100):
            place = folder / f"{i}-{seed}"
            place.mkdir(parents=True)
            case = builder(np.random.default_rng(seed), place)
            if case.holds:
                made.append(case.path)
                break
    return made


def fuzz_once(seed: int, corpus: list[Path]) -> str:
    """Damage a copy of one case and validate it: "report", or the name of the plain error. Anything else escapes."""
    rng = np.random.default_rng(seed)
    source = pick(rng, corpus)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "case"
        shutil.copytree(source if source.is_dir() else source.parent, root)
        path = root if source.is_dir() else root / source.name
        files = sorted(p for p in root.rglob("*") if p.is_file())
        for _ in range(int(rng.integers(1, 3))):
            damage(rng, pick(rng, files))
        try:
            report = validate(path, pick(rng, [None, NMPattern(2, 4)]), at_most=bool(rng.random() < 0.3))
            json.dumps(report.to_json(), allow_nan=False)
        except MaskProError as e:
            if len(str(e).splitlines()) > _MOST_LINES:
                raise ValueError("a plain error has few lines") from e
            return type(e).__name__
    return "report"


def damage(rng: np.random.Generator, file: Path) -> None:
    """Change one file, with knowledge of its format half of the time."""
    structured = {".safetensors": _header, ".json": _json, ".onnx": _graph, ".npz": _archive}.get(file.suffix)
    if structured is not None and rng.random() < 0.6:
        try:
            structured(rng, file)
            return
        except Exception:
            pass
    _bytes(rng, file)


def _bytes(rng: np.random.Generator, file: Path) -> None:
    raw = bytearray(file.read_bytes())
    kind = pick(rng, ("flip", "set", "cut", "repeat", "insert", "swap", "empty"))
    at = int(rng.integers(len(raw) + 1))
    upto = min(len(raw), at + int(rng.integers(1, 64)))
    if kind == "flip" and raw:
        raw[at - 1] ^= 1 << int(rng.integers(8))
    elif kind == "set":
        raw[at:upto] = bytes([pick(rng, (0, 1, 127, 128, 255))]) * (upto - at)
    elif kind == "cut":
        raw = raw[:at]
    elif kind == "repeat":
        raw[at:at] = raw[at:upto] * int(rng.integers(1, 50))
    elif kind == "insert":
        raw[at:at] = rng.bytes(int(rng.integers(1, 16)))
    elif kind == "swap":
        raw = raw[at:] + raw[:at]
    elif kind == "empty":
        raw = bytearray()
    file.write_bytes(raw)


def _mutate(rng: np.random.Generator, value: object) -> object:
    """A JSON value with one place in it replaced, removed or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = pick(rng, sorted(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        return value | {key: _mutate(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = int(rng.integers(len(value)))
        return [*value[:at], _mutate(rng, value[at]), *value[at + 1 :]]
    return pick(rng, _VALUES)


def _json(rng: np.random.Generator, file: Path) -> None:
    file.write_text(json.dumps(_mutate(rng, json.loads(file.read_text()))))


def _header(rng: np.random.Generator, file: Path) -> None:
    """A safetensors file with another header, of the right length."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = json.dumps(_mutate(rng, json.loads(raw[8 : 8 + length]))).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _graph(rng: np.random.Generator, file: Path) -> None:
    """An ONNX file with one thing changed in its graph."""
    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    kind = pick(rng, ("dims", "type", "name", "input", "attribute", "external", "operator", "order", "raw", "twice"))
    if kind in ("dims", "type", "name", "external", "raw", "twice") and graph.initializer:
        tensor = pick(rng, graph.initializer)
        if kind == "dims":
            tensor.dims[:] = [pick(rng, [n for n in _NUMBERS if abs(n) < 2**63]) for _ in range(int(rng.integers(0, 5)))]
        elif kind == "type":
            tensor.data_type = int(rng.integers(0, 40))
        elif kind == "name":
            tensor.name = pick(rng, ("", "x", "w", "v"))
        elif kind == "raw":
            tensor.raw_data = rng.bytes(int(rng.integers(0, 64)))
        elif kind == "twice":
            graph.initializer.append(tensor)
        else:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key=pick(rng, ("location", "offset", "length", "checksum")), value=str(pick(rng, _VALUES)))
    elif graph.node:
        node = pick(rng, graph.node)
        if kind == "input" and node.input:
            node.input[int(rng.integers(len(node.input)))] = pick(rng, ("", "y", "x", "w", "gone", "s"))
        elif kind == "operator":
            node.op_type = pick(rng, _OPERATORS)
        elif kind == "order":
            nodes = list(graph.node)
            del graph.node[:]
            graph.node.extend(nodes[i] for i in rng.permutation(len(nodes)))
        else:
            name = pick(rng, ("perm", "axis", "block_size", "to", "transB", "axes", "allowzero", "output_dtype", "value"))
            number = pick(rng, [n for n in _NUMBERS if abs(n) < 2**63])
            node.attribute.append(onnx.helper.make_attribute(name, number if rng.random() < 0.5 else [number, 0]))
    file.write_bytes(model.SerializeToString())


_OPERATORS = (
    *("MatMul", "Gemm", "Conv", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Gather", "Constant", "If"),
    *("QuantizeLinear", "DequantizeLinear", "Identity", "MatMulNBits", ""),
)


def _archive(rng: np.random.Generator, file: Path) -> None:
    """An npz with other members: empty, large, of another name or type, twice, or with a strange head."""
    with zipfile.ZipFile(file) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    name = next(iter(members))
    kind = pick(rng, ("empty", "bomb", "twice", "head", "text", "none"))
    head = (
        f"{{'descr': {pick(rng, ['|u1', '|O', '<f8', '|V3'])!r}, 'fortran_order': False, 'shape': {pick(rng, _SHAPES)}}}".encode()
    )
    if kind == "empty":
        members[name] = b""
    elif kind == "bomb":
        members[name] = bytes(1 << 27)
    elif kind == "head":
        members[name] = b"\x93NUMPY" + bytes([pick(rng, (1, 2, 3, 9)), 0]) + len(head).to_bytes(2, "little") + head + bytes(64)
    elif kind == "text":
        members["notes.txt"] = b"hello"
    elif kind == "none":
        members = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for key, content in members.items():
                archive.writestr(key, content)
                if kind == "twice":
                    archive.writestr(key, content)


_SHAPES = ("(8,)", "()", "(-1,)", f"({2**62},)", f"({2**70},)", "(2, 4)", "(0,)", "'x'", "(64,)", "(1.5,)")
