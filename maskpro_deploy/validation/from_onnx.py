"""An ONNX file, with or without external data. The reduction axis of every weight comes from the graph (see `onnx_trace`)."""

from __future__ import annotations

from pathlib import Path

from maskpro_deploy.errors import FormatError
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation.source import Source


def read_graph(path: Path) -> Source:
    """The weights of an ONNX file.

    Raises:
        FormatError: it is damaged, its external data is missing or outside its folder, or its graph is not in order.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from maskpro_deploy.validation.onnx_trace import Tracer

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as e:
        raise FormatError(f"{path} is no whole ONNX file: {e}") from e
    if not model.HasField("graph") or not model.opset_import:
        raise FormatError(f"{path} is no ONNX model: it has no graph or no operator set.")
    trace = Tracer(model, path)
    return Source(
        kind="onnx",
        weights=tuple(trace.weights),
        unchecked=tuple(trace.unchecked),
        num_parameters=trace.num_parameters,
        files=tuple(sorted(trace.files)),
    )


class OnnxReader:
    """Reader of ONNX files."""

    def accepts(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".onnx"

    def read(self, path: Path, progress: Progress) -> Source:
        return read_graph(path)
