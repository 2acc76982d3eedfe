"""Files that are read by position."""

from __future__ import annotations

import os

import pytest

from maskpro_deploy.errors import FormatError
from maskpro_deploy.system.input_file import InputFile


def test_pieces_are_the_bytes_of_the_file(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(256)))
    file = InputFile(tmp_path / "f")
    assert file.read(10, 5).tolist() == [10, 11, 12, 13, 14]
    assert file.read(256, 0).size == 0
    for offset, count in ((250, 7), (257, 0), (-1, 1), (0, -1), (1 << 62, 1 << 62)):
        with pytest.raises(FormatError, match="ends early"):
            file.read(offset, count)


def test_a_file_that_grew_is_noticed(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    file = InputFile(tmp_path / "f")
    file.check_unchanged()
    (tmp_path / "f").write_bytes(b"abcd")
    with pytest.raises(FormatError, match="was changed"):
        file.check_unchanged()


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        InputFile(tmp_path / "pipe")
