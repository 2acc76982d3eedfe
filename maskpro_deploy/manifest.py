"""The contract of a bundle: `manifest.json`, written by the exporters and read by the runtime.

A bundle is a folder that needs nothing outside itself:

    manifest.json      this contract
    model.onnx         the graph; its weights lie in model.onnx.data
    model.onnx.data
    tokenizer.json     and, where the model has one, chat_template.jinja
    masks.safetensors  the masks, where the checkpoint was sparse
    config.json        the model's own description, for other tools
    engines/           TensorRT engines, once built

A bundle may hold siblings of its graph: other forms of the key/value cache over the same data file (`Manifest.siblings`).
The graph's inputs and outputs have one form, whatever the model. `B` batch, `S` new tokens, `P` past tokens, `T = P + S`,
`H` key/value heads, `D` head size, `V` vocabulary, `N` layer number:

    input_ids                int64 (B, S)
    attention_mask           int64 (B, T)    1 where a token counts, 0 at padding (on the left)
    position_ids             int64 (B, S)
    past_key_values.N.key    graph's dtype (B, H, P, D), and .value
    logits                   float32 (B, S, V), whatever the graph's dtype
    present.N.key            graph's dtype (B, H, T, D), and .value

A `gqa` sibling has the same names, with padding on the right. A `static` sibling has a cache of a fixed length L
(`Graph.length`): past_key_values and present are (B, H, L, D), `write_indices` int64 (B,) says where each row's new tokens go,
and there is no attention_mask.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import read_json, sha256_file, write_json

SCHEMA = "maskpro-deploy/bundle"
VERSION = 1
MANIFEST_FILE = "manifest.json"
ENGINES = "engines"  # the folder of built engines


class _Record:
    """Shared JSON reading: unknown fields are dropped (a newer writer), missing ones and ones of another type named."""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        if not isinstance(value, dict):
            raise FormatError(f"{MANIFEST_FILE}: expected an object for {cls.__name__}, found {type(value).__name__}.")
        types = get_type_hints(cls)
        known = {k: _read_field(f"{cls.__name__}.{k}", v, types[k]) for k, v in value.items() if k in types}
        try:
            return cls(**known)
        except TypeError as e:
            raise FormatError(f"{MANIFEST_FILE}: {cls.__name__} is incomplete: {e}") from e


def _read_field(where: str, value: Any, declared: Any) -> Any:
    """A value of the declared type: str, int, dict, a record, a tuple of these (a list in JSON), or one of these or None.

    Raises:
        FormatError: it is of another type.
    """
    origin, inner = get_origin(declared), get_args(declared)
    if isinstance(declared, type) and issubclass(declared, _Record):
        return declared.from_json(value)
    if origin is tuple and isinstance(value, list):
        return tuple(_read_field(where, v, inner[0]) for v in value)
    allowed = inner if origin is UnionType else (origin or declared,)
    # a bool is an int to Python, not to the format
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        name = declared.__name__ if isinstance(declared, type) else str(declared).replace("tuple", "list")
        raise FormatError(f"{MANIFEST_FILE}: {where} is {reprlib.repr(value)}, which is not of type {name}.")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape(_Record):
    """What the runtime must know of the model: sizes and special tokens."""

    name: str
    architecture: str
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    pad_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph(_Record):
    """The ONNX graph."""

    file: str  # its path in the bundle
    form: str  # form of its key/value cache
    opset: int  # version of the standard operators
    dtype: str  # float type of activations and cache ("fp32", "fp16", "bf16")
    quantization: str | None = None  # how the projections are stored, such as "int4 block 32", or None for `dtype`
    length: int | None = None  # slots of the cache, where the form fixes them


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseWeight(_Record):
    """One weight that holds the pattern: its initializer in the graph, its name in the checkpoint, shape, reduction axis.

    An initializer that holds several sources side by side is listed once for each, in the order of their columns.
    """

    initializer: str
    source: str
    shape: tuple[int, ...]
    axis: int
    pattern: str | None = None  # which it holds, if it is another than the bundle's `sparsity`


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile(_Record):
    """One engine built from the graph."""

    file: str  # path in the bundle
    library: str  # "tensorrt-rtx" or "tensorrt", with `library_version`
    library_version: str
    target: str  # the compute capabilities it runs on, such as "sm89"
    dtype: str
    sparse_kernels: str  # what is known about sparse kernels in it, in words
    settings: dict[str, Any]  # builder flags and profiles
    ep_context: str | None = None  # the ONNX file that lets onnxruntime serve the engine, where one was written


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry(_Record):
    """One file of the bundle: path relative to the folder with forward slashes, size and SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(_Record):
    """Everything the runtime may rely on. Paths never leave the folder."""

    model: ModelShape
    graph: Graph
    files: tuple[FileEntry, ...]
    sparsity: str | None = None  # the pattern, such as "2:4", or None for a dense model
    sparse_weights: tuple[SparseWeight, ...] = ()  # the weights that hold it
    engines: tuple[EngineFile, ...] = ()
    siblings: tuple[Graph, ...] = ()  # further graphs over the same data file
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # where the weights came from: names and hashes, free-form
    # figures of the comparison with the source model; empty if none was made
    verification: dict[str, Any] = dataclasses.field(default_factory=dict)
    tool_version: str = __version__

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`, atomically."""
        write_json(folder / MANIFEST_FILE, {"schema": SCHEMA, "version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path, *, engines: bool = True) -> Manifest:
        """Read a bundle's manifest and check that its files, those of engines too if asked for, are there in their full size.

        Raises:
            InputError: `folder` is not a bundle.
            FormatError: the manifest is damaged or of another version, or a file is missing or truncated.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist or is not a folder.\nA bundle is what `maskpro-deploy export` writes.")
        if not (folder / MANIFEST_FILE).is_file():
            raise InputError(f"{folder} is not a bundle: it has no {MANIFEST_FILE}.\nMake one with `maskpro-deploy export`.")
        value = read_json(folder / MANIFEST_FILE)
        if value.get("schema") != SCHEMA or value.get("version") != VERSION:
            raise FormatError(
                f"{folder / MANIFEST_FILE} is {value.get('schema')!r} version {value.get('version')!r}; "
                f"this tool reads {SCHEMA!r} version {VERSION}."
            )
        if absent := [f.name for f in dataclasses.fields(cls) if f.name not in value and f.name != "siblings"]:
            raise FormatError(f"{folder / MANIFEST_FILE} is incomplete: it has no {absent[0]!r}.")
        manifest = cls.from_json(value)
        manifest.check_sizes(folder, engines=engines)
        return manifest

    def check_sizes(self, folder: Path, *, engines: bool = True) -> None:
        """Check that every listed file is present in full (fast; `check_hashes` reads them).

        Raises:
            FormatError: naming the file.
        """
        for entry in self._list_entries(engines):
            path = safe_path(folder, entry.path)
            if not path.is_file():
                raise FormatError(f"{folder} is incomplete: {entry.path} is missing.\n{_remedy(entry).capitalize()}.")
            if (size := path.stat().st_size) != entry.bytes:
                raise FormatError(
                    f"{path} has {size} bytes, the manifest says {entry.bytes}.\nThe file is damaged: {_remedy(entry)}."
                )

    def check_hashes(self, folder: Path, *, engines: bool = True) -> None:
        """Check the SHA-256 of every listed file.

        Raises:
            FormatError: naming the first file that differs.
        """
        for entry in self._list_entries(engines):
            if sha256_file(safe_path(folder, entry.path)) != entry.sha256:
                raise FormatError(
                    f"{folder / entry.path} differs from its SHA-256 in the manifest: it was changed or damaged.\n"
                    f"{_remedy(entry).capitalize()}."
                )

    def _list_entries(self, engines: bool) -> Iterator[FileEntry]:
        return (entry for entry in self.files if engines or not entry.path.startswith(f"{ENGINES}/"))


def _remedy(entry: FileEntry) -> str:
    """What to do about a damaged file."""
    if entry.path.startswith(f"{ENGINES}/"):
        return "build the engine again with `maskpro-deploy build-engine`"
    return "export the bundle again"


def safe_path(folder: Path, relative: str) -> Path:
    """The path of a file named in a manifest.

    Raises:
        FormatError: the name is not a path, is absolute, or leaves the folder.
    """
    pure = PurePosixPath(relative) if isinstance(relative, str) else PurePosixPath()
    foreign = any(c in str(relative) for c in "\\:\0")  # what other systems, or no system, take in a path
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or foreign:
        raise FormatError(f"{folder / MANIFEST_FILE} names a path outside the bundle: {relative!r}.")
    return folder / pure


def file_entry(folder: Path, path: Path) -> FileEntry:
    """Describe one file of the bundle in `folder`."""
    return FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))
