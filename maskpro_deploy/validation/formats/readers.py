"""Which reader takes a path. `READERS` is asked in order; the first that accepts reads.

A new format is one module with a `Reader`, and one line here.
"""

from __future__ import annotations

from pathlib import Path

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.validation.formats.bundle import BundleReader
from maskpro_deploy.validation.formats.checkpoint import CheckpointReader
from maskpro_deploy.validation.formats.masks import MasksReader
from maskpro_deploy.validation.formats.npz import NpzReader
from maskpro_deploy.validation.formats.onnx_graph import OnnxReader
from maskpro_deploy.validation.formats.safetensors_file import SafetensorsReader
from maskpro_deploy.validation.source import Reader, Source

READERS: tuple[Reader, ...] = (
    BundleReader(),
    CheckpointReader(),
    MasksReader(),
    SafetensorsReader(),
    NpzReader(),
    OnnxReader(),
)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_KINDS = f"Give {', '.join(reader.takes for reader in READERS[:-1])} or {READERS[-1].takes}."


def open_source(path: Path, progress: Progress = SILENT) -> Source:
    """Find the weights at a path.

    Raises:
        InputError: the path does not exist, or is of no kind that is read.
        FormatError: it is damaged.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.\n{_KINDS}")
    if path.suffix.lower() in _PICKLES:
        raise InputError(f"{path} is a pickle, which can run code when it is opened: it is not read.\nSave it as safetensors.")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder.\n{_KINDS}")
    for reader in READERS:
        if reader.accepts(path):
            try:
                return reader.read(path, progress)
            except OSError as e:
                raise FormatError(f"{path} cannot be read: {e.strerror or e}.") from e
    raise InputError(f"{path} is of no kind that can be checked.\n{_KINDS}")
