"""Masks of a model: one bit a weight, in one safetensors file.

`masks.safetensors` holds, per pruned weight, a `uint8` tensor under the weight's own name: the mask in row-major order packed
eight to a byte, first weight in the highest bit (`numpy.packbits`). Its metadata:

    format        "maskpro-deploy/masks"
    version       "1"; "2" where a weight is stored (in, out); "3" where a weight holds another pattern; "4" where a change of
                  basis comes first; a higher one may have what a lower one has
    n, m          the pattern
    patterns      JSON: weight name -> "N:M" of those that hold another one (version 3)
    axis          the reduction axis of every weight, here always "1": groups lie along the input dimension
    shapes        JSON: weight name -> [out, in]
    transposed    JSON: names of the weights that the checkpoint stores as [in, out] (version 2: GPT-2); their masks are
                  [out, in] like all others
    dense         JSON: name of a linear layer's weight that stays dense on purpose -> why (absent if there is none)
    transposable  "true" where every mask holds the pattern along both axes, N in each row and column of each M x M block; files
                  without it claim it along the reduction axis alone
    dense_sha256  hash of the dense weights the masks were made for (see `checkpoint.dense_sha256`), before any change of basis
    transform     JSON: tensor of the checkpoint -> [[axis, basis], ...], the change of basis that comes before the masks
                  (version 4); each basis is a tensor `transform/NAME`, see `transform`
    tool          "maskpro-deploy 0.1.0"
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import FormatError, InputError, PatternError
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import atomic_file
from maskpro_deploy.system.input_file import Entry, Header, InputFile, open_tensors, read_header
from maskpro_deploy.transform import PREFIX, Transform, read_transform

FORMAT = "maskpro-deploy/masks"
VERSIONS = ("1", "2", "3", "4")
MASKS_FILE = "masks.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSet:
    """The masks of one model."""

    pattern: NMPattern  # the N:M pattern that every mask holds, but those of `patterns`
    # weight name -> packed bits (ceil(out * in / 8),); those of a file are read when they are asked for
    packed: Mapping[str, npt.NDArray[np.uint8]]
    shapes: Mapping[str, tuple[int, int]]  # weight name -> (out, in)
    dense_sha256: str = ""  # hash of the dense weights, "" if unknown
    transposed: frozenset[str] = frozenset()  # names of the weights that the checkpoint stores as (in, out)
    # weights of linear layers that stay dense on purpose -> why
    dense: Mapping[str, str] = field(default_factory=dict)
    patterns: Mapping[str, NMPattern] = field(default_factory=dict)  # of weights that hold another one than `pattern`
    transposable: bool = False  # whether the transpose of every mask holds the pattern too
    # what the dense weights go through before they are masked; its tensors are named as in the checkpoint, whatever masks are
    transform: Transform = field(default_factory=Transform)

    @classmethod
    def from_arrays(
        cls, pattern: NMPattern, masks: Mapping[str, npt.NDArray[np.bool_]], dense_sha256: str = "",
        *, transposed: frozenset[str] = frozenset(), dense: Mapping[str, str] | None = None,
        patterns: Mapping[str, NMPattern] | None = None, transposable: bool = False, transform: Transform | None = None,
    ) -> MaskSet:  # fmt: skip
        """Pack boolean masks of shape (out, in); `patterns` are those of weights with another one than `pattern`.

        Raises:
            PatternError: a mask does not keep exactly N of every M along its last axis or, if `transposable`, along both.
        """
        made = cls(
            pattern=pattern,
            packed={name: np.packbits(mask) for name, mask in masks.items()},
            shapes={name: (int(mask.shape[0]), int(mask.shape[1])) for name, mask in masks.items()},
            dense_sha256=dense_sha256,
            transposed=transposed,
            dense=dense or {},
            patterns={name: other for name, other in (patterns or {}).items() if other != pattern and name in masks},
            transposable=transposable,
            transform=transform or Transform(),
        )
        for name, mask in masks.items():
            made.pattern_of(name).check_divides(mask.shape[-1], name)
            if not made._is_strict(name, mask):
                raise PatternError(f"the mask of {name} {made._describe_breach(name)}.")
        return made

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.packed))

    def __contains__(self, name: object) -> bool:
        return name in self.packed

    def pattern_of(self, name: str) -> NMPattern:
        """The pattern that the mask of one weight holds."""
        return self.patterns.get(name, self.pattern)

    def describe_patterns(self) -> str:
        """The pattern, and others with the number of weights that hold them."""
        counts = Counter(self.patterns.values())
        return ", ".join([str(self.pattern), *(f"{pattern} in {count}" for pattern, count in sorted(counts.items()))])

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """The mask of one weight.  # (out, in)"""
        shape = self.shapes[name]
        return np.unpackbits(self.packed[name], count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)

    def stored_mask(self, name: str) -> npt.NDArray[np.bool_]:
        """The mask of one weight in the order in which the checkpoint stores it.  # (out, in), or (in, out) if `transposed`"""
        return self.mask(name).T if name in self.transposed else self.mask(name)

    def stored_shape(self, name: str) -> tuple[int, int]:
        """The shape of one weight in the checkpoint."""
        rows, columns = self.shapes[name]
        return (columns, rows) if name in self.transposed else (rows, columns)

    @property
    def num_weights(self) -> int:
        """Weights covered, kept or not."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def num_groups(self) -> int:
        """Groups of all weights."""
        return sum(math.prod(shape) // self.pattern_of(name).m for name, shape in self.shapes.items())

    @property
    def num_kept(self) -> int:
        """Weights that are kept."""
        sizes = ((math.prod(shape), self.pattern_of(name)) for name, shape in self.shapes.items())
        return sum(size * pattern.n // pattern.m for size, pattern in sizes)

    def sha256(self) -> str:
        """Hash of pattern, names, shapes, bits and bases: equal for equal masks, whatever file they came from."""
        digest = hashlib.sha256(str(self.pattern).encode())
        for name in self:
            turned = "transposed" if name in self.transposed else ""
            other = str(self.patterns.get(name, ""))
            digest.update(f"\0{name}\0{self.shapes[name]}{turned}{other}\0".encode())
            digest.update(np.ascontiguousarray(self.packed[name]).tobytes())
        digest.update(self.transform.sha256().encode())
        return digest.hexdigest()

    def flips(self, other: MaskSet) -> float:
        """Share of groups that differ from `other`, which must cover the same weights."""
        counts = [self._count_flips(other, name) for name in self]
        total = sum(size for _, size in counts)
        return sum(changed for changed, _ in counts) / total if total else 0.0

    def flips_by_layer(self, other: MaskSet) -> dict[str, float]:
        """Share of groups that differ from `other` in each weight, in name order."""
        return {name: changed / size for name in self for changed, size in [self._count_flips(other, name)]}

    def flips_by_kind(self, other: MaskSet) -> dict[str, float]:
        """Share of groups that differ from `other` in each kind of layer (`q_proj`, `up_proj`, …), in name order."""
        counts: dict[str, list[int]] = {}
        for name in self:
            changed, size = self._count_flips(other, name)
            kind = counts.setdefault(layer_kind(name), [0, 0])
            kind[0] += changed
            kind[1] += size
        return {kind: changed / total for kind, (changed, total) in sorted(counts.items())}

    def _count_flips(self, other: MaskSet, name: str) -> tuple[int, int]:
        """Groups of one weight that differ from `other`, and all its groups."""
        rows, columns = self.shapes[name]
        bits = np.unpackbits(self.packed[name] ^ other.packed[name], count=rows * columns)
        differs = bits.reshape(-1, self.pattern_of(name).m).any(axis=-1)
        return int(np.count_nonzero(differs)), differs.size

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], masks: str, model: str) -> None:
        """Check that the model has every masked weight in the mask's shape; a message calls the two `masks` and `model`.

        Raises:
            InputError: naming the first weight that does not fit.
        """
        for name in self:
            if shapes.get(name) != self.stored_shape(name):
                raise InputError(
                    f"{masks} do not belong to {model}: {name} has shape {self.stored_shape(name)} in the masks, "
                    f"{shapes.get(name, 'none')} in the checkpoint."
                )
        self.transform.check_fits(shapes, masks, model)

    def find_broken(self) -> Iterator[str]:
        """Names of the masks that do not hold the pattern."""
        return (name for name in self if not self._is_strict(name, self.mask(name)))

    def _is_strict(self, name: str, mask: npt.NDArray[np.bool_]) -> bool:
        """Whether the mask of a weight holds what these masks claim.  # (out, in)"""
        pattern = self.pattern_of(name)
        return pattern.holds_both_ways(mask) if self.transposable else pattern.holds(mask)

    def _describe_breach(self, name: str) -> str:
        """What a mask that is not strict does, in words."""
        pattern, axes = self.pattern_of(name), " along both axes" if self.transposable else ""
        return f"does not keep exactly {pattern.n} of every {pattern.m}{axes}"

    def check_strict(self, masks: str) -> None:
        """Check that every mask holds the pattern.

        Raises:
            PatternError: naming the first one that does not.
        """
        for name in self.find_broken():
            raise PatternError(f"{masks}: the mask of {name} {self._describe_breach(name)}.")

    def check_hash(self, dense_sha256: str, masks: str, model: str) -> None:
        """Check that these masks were made for weights with this hash; masks that do not say pass.

        Raises:
            InputError: the hashes differ.
        """
        if self.dense_sha256 and self.dense_sha256 != dense_sha256:
            raise InputError(
                f"{masks} was made for other weights than those of {model}: the hashes differ.\n"
                f"Give a mask file of this very model, or add --other-weights to use these masks all the same."
            )

    def rename(self, names: Mapping[str, str]) -> MaskSet:
        """The same masks under other names; without those that `names` does not have."""
        return replace(
            self,
            packed={names[name]: bits for name, bits in self.packed.items() if name in names},
            shapes={names[name]: shape for name, shape in self.shapes.items() if name in names},
            transposed=frozenset(names[name] for name in self.transposed if name in names),
            dense={names.get(name, name): reason for name, reason in self.dense.items()},
            patterns={names[name]: pattern for name, pattern in self.patterns.items() if name in names},
        )

    def only(self, names: Collection[str]) -> MaskSet:
        """The masks of some weights alone."""
        return self.rename({name: name for name in names})

    def save(self, path: Path) -> None:
        metadata = {
            "format": FORMAT,
            "version": VERSIONS[3 if self.transform else 2 if self.patterns else bool(self.transposed)],
            "n": str(self.pattern.n),
            "m": str(self.pattern.m),
            "axis": "1",
            "shapes": json.dumps({name: list(self.shapes[name]) for name in self}),
            "dense_sha256": self.dense_sha256,
            "tool": f"maskpro-deploy {__version__}",
        }
        if self.transposed:
            metadata["transposed"] = json.dumps(sorted(self.transposed))
        if self.transposable:
            metadata["transposable"] = "true"
        if self.patterns:
            metadata["patterns"] = json.dumps({name: str(pattern) for name, pattern in sorted(self.patterns.items())})
        if self.dense:
            metadata["dense"] = json.dumps(dict(sorted(self.dense.items())))
        bases = {f"{PREFIX}{name}": np.ascontiguousarray(basis) for name, basis in self.transform.bases.items()}
        if self.transform:
            metadata["transform"] = self.transform.describe_places()
        with atomic_file(path) as temporary:
            save_file({name: np.ascontiguousarray(self.packed[name]) for name in self} | bases, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> MaskSet:
        """Read a mask file.

        Raises:
            InputError: there is no such file, or it cannot be read.
            FormatError: it is not a mask file, or a damaged one.
        """
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if path.is_dir():
            raise InputError(f"{path} is a folder.\nName the mask file in it.")
        file = InputFile(path)
        whole = read_header(file)
        header = Header({n: e for n, e in whole.entries.items() if not n.startswith(PREFIX)}, whole.metadata)
        pattern, shapes, transposed = _read_layout(path, header)
        bits, digest = StoredBits(file, header.entries), header.metadata.get("dense_sha256", "")
        dense, patterns = _read_dense(path, header), _read_patterns(path, header, pattern)
        return cls(
            pattern=pattern,
            packed=bits,
            shapes=shapes,
            dense_sha256=digest,
            transposed=transposed,
            dense=dense,
            patterns=patterns,
            transposable="transposable" in header.metadata,
            transform=_read_transform(path, whole),
        )


class StoredBits(Mapping[str, "npt.NDArray[np.uint8]"]):
    """The packed masks of a file, read one at a time: those of a large model are some gigabytes."""

    def __init__(self, file: InputFile, entries: Mapping[str, Entry]) -> None:
        self.file, self.entries = file, entries

    def __getitem__(self, name: str) -> npt.NDArray[np.uint8]:
        place = self.entries[name]
        return self.file.read(place.offset, place.bytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def layer_kind(name: str) -> str:
    """What a layer does in its block, from the name of its weight: model.layers.3.mlp.up_proj.weight -> up_proj."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _read_layout(path: Path, header: Header) -> tuple[NMPattern, dict[str, tuple[int, int]], frozenset[str]]:
    """The pattern of a mask file, the shape of every weight that it masks, and which of them are stored (in, out)."""
    entries, metadata = header
    if metadata.get("format") != FORMAT:
        raise FormatError(f"{path} is not a mask file: its metadata has no format {FORMAT!r}.")
    if metadata.get("version") not in VERSIONS:
        raise FormatError(f"{path} has mask version {metadata.get('version')!r}; this tool reads {', '.join(VERSIONS)}.")
    try:
        pattern = NMPattern(int(metadata["n"]), int(metadata["m"]))
        shapes = {str(k): (int(v[0]), int(v[1])) for k, v in json.loads(metadata["shapes"]).items()}
        transposed = frozenset(map(str, json.loads(metadata.get("transposed", "[]"))))
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, PatternError) as e:
        raise FormatError(f"{path} is a mask file with damaged metadata: {e}") from e
    if metadata.get("axis") != "1":
        raise FormatError(f"{path} has masks along axis {metadata.get('axis')!r}; this tool reads those along '1'.")
    if bool(transposed) != (metadata["version"] == VERSIONS[1]) and metadata["version"] not in VERSIONS[2:]:
        raise FormatError(f"{path} is a damaged mask file: version {VERSIONS[1]} and a list `transposed` go together.")
    if metadata.get("transposable", "true") != "true":
        raise FormatError(f"{path} is a damaged mask file: `transposable` is {metadata['transposable']!r}; it can be 'true'.")
    if shapes.keys() != entries.keys() or not transposed <= shapes.keys():
        raise FormatError(f"{path} is a damaged mask file: its shapes and its tensors name different weights.")
    for name, entry in entries.items():
        rows, columns = shapes[name]
        if min(rows, columns) < 1 or entry.dtype != "U8" or entry.shape != (-(-rows * columns // 8),):
            raise FormatError(f"{path} is a damaged mask file: {name} has the wrong size for shape {shapes[name]}.")
    return pattern, shapes, transposed


def _read_patterns(path: Path, header: Header, main: NMPattern) -> dict[str, NMPattern]:
    """The patterns of weights that hold another one than `main`."""
    try:
        written = json.loads(header.metadata.get("patterns", "{}"))
        patterns = {str(name): NMPattern.parse(pattern) for name, pattern in written.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, PatternError) as e:
        raise FormatError(f"{path} is a mask file with damaged metadata: {e}") from e
    if bool(patterns) != (header.metadata["version"] == VERSIONS[2]) and header.metadata["version"] != VERSIONS[3]:
        raise FormatError(f"{path} is a damaged mask file: version {VERSIONS[2]} and `patterns` go together.")
    if strange := [name for name in patterns if name not in header.entries or patterns[name] == main]:
        raise FormatError(f"{path} is a damaged mask file: `patterns` names {strange[0]}, which has no other pattern.")
    return patterns


def _read_transform(path: Path, header: Header) -> Transform:
    """The change of basis that comes before the masks."""
    names = [name for name in header.entries if name.startswith(PREFIX)]
    if ("transform" in header.metadata) != (header.metadata["version"] == VERSIONS[3]) or (
        names and "transform" not in header.metadata
    ):
        raise FormatError(f"{path} is a damaged mask file: version {VERSIONS[3]} and `transform` go together.")
    if "transform" not in header.metadata:
        return Transform()
    with open_tensors(path) as file:
        bases = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    return read_transform(header.metadata["transform"], bases, str(path))


def _read_dense(path: Path, header: Header) -> dict[str, str]:
    """The layers that stay dense on purpose, and why."""
    try:
        dense = json.loads(header.metadata.get("dense", "{}"))
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path} is a mask file with damaged metadata: {e}") from e
    if not isinstance(dense, dict) or not all(isinstance(reason, str) for reason in dense.values()):
        raise FormatError(f"{path} is a mask file with damaged metadata: `dense` is not a name -> reason.")
    if both := sorted(dense.keys() & header.entries.keys()):
        raise FormatError(f"{path} is a damaged mask file: {both[0]} has a mask and is said to stay dense.")
    return dense
