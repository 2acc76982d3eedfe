"""An ONNX file, with or without external data. The reduction axis of every weight comes from the graph (see `graphs`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskpro_deploy.errors import FormatError
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.source import Reader, Source

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]

_LARGEST = 1 << 31  # bytes of a protobuf message


def read_graph(path: Path) -> Source:
    """The weights of an ONNX file.

    Raises:
        FormatError: it is damaged, its external data is missing or outside its folder, or its graph is not in order.
    """
    import onnx
    from google.protobuf.message import DecodeError

    from maskpro_deploy.validation.graphs.trace import Tracer

    file = InputFile(path)
    if file.size >= _LARGEST:
        raise FormatError(f"{path} has {file.size} bytes; an ONNX file has less than 2 GiB (its weights lie in other files).")
    try:
        model = onnx.load_model_from_string(file.read(0, file.size).tobytes())
    except (DecodeError, ValueError, RuntimeError, TypeError) as e:
        raise FormatError(f"{path} is not a complete ONNX file: {e}") from e
    if not model.HasField("graph") or not model.opset_import:
        raise FormatError(f"{path} is not an ONNX model: it has no graph or no operator set.")
    if not _all_text(model):
        raise FormatError(f"{path} is not a complete ONNX file: a name in it is not text.")
    trace = Tracer(model, path)
    return Source(
        kind="onnx",
        weights=trace.weights,
        unchecked=trace.ledger.unchecked,
        stored=trace.ledger.stored,
        num_parameters=trace.num_parameters,
        files=tuple(sorted(trace.files)),
        inputs=(file, *trace.external.values()),
        multiply_adds=trace.multiply_adds,
    )


def _all_text(model: Message) -> bool:
    """Whether all strings are text: where bytes are not UTF-8, protobuf hands them over as bytes. No path has a zero byte."""
    waiting = [model]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
                continue
            several = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else list(value)
            if field.type == field.TYPE_MESSAGE:
                waiting.extend(several)
            elif not all(isinstance(v, str) and "\0" not in v for v in several):
                return False
    return True


class OnnxReader(Reader):
    """Reader of ONNX files."""

    takes, suffix = "an .onnx file", ".onnx"

    def read(self, path: Path, progress: Progress) -> Source:
        return read_graph(path)
