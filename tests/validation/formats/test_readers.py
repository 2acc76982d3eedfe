"""Paths that are none of ours."""

from __future__ import annotations

import os
import pickle

import pytest

from maskpro_deploy.errors import InputError
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.formats.readers import READERS


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        validate(tmp_path / "nope")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.pkl"])
def test_pickles_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="is a pickle"):
        validate(tmp_path / name)


@pytest.mark.parametrize("name", ["model.gguf", "notes.txt", "noextension"])
def test_other_files_are_refused_with_what_is_read(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(InputError, match="no kind that can be checked"):
        validate(tmp_path / name)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        validate(tmp_path / "pipe.safetensors")


def test_every_format_has_a_name_of_its_own_and_is_offered_where_none_fits(tmp_path):
    assert len({reader.takes for reader in READERS}) == len({type(reader) for reader in READERS}) == len(READERS)
    with pytest.raises(InputError) as caught:
        validate(tmp_path / "nope")
    assert all(reader.takes in str(caught.value) for reader in READERS)
