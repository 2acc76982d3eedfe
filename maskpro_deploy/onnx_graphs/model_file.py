"""An ONNX file, opened without the values in its external data."""

from __future__ import annotations

from pathlib import Path

import onnx

from maskpro_deploy.errors import FormatError


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX model; external data is not read.

    Raises:
        FormatError: the file is not an ONNX model.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as e:  # protobuf has several kinds; all mean the same
        raise FormatError(f"{path} is not an ONNX file: {e}") from e
