"""Files that change, vanish or hang while they are read; links."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from sparse_cases import lawful

from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

TWO_FOUR = NMPattern(2, 4)


class During:
    """A progress that does something once, while the check runs."""

    def __init__(self, action):
        self._action = action

    def update(self, done, total, note=""):
        action, self._action = self._action, None
        if action is not None:
            action()

    def close(self):
        pass


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    save_file(
        {f"{i}.weight": lawful(rng, (8, 8), 1, TWO_FOUR, np.dtype(np.float32)) for i in range(3)}, tmp_path / "w.safetensors"
    )
    return tmp_path / "w.safetensors"


def rewrite(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")


def replace(path):
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


@pytest.mark.parametrize("action", [rewrite, replace, lambda p: os.utime(p, (1, 1)), lambda p: p.unlink()])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_changes_while_it_is_read_is_a_plain_error(path, action, threads, monkeypatch):
    monkeypatch.setattr("maskpro_deploy.validation.check._WORTH_THREADS", 0)
    assert validate(path, TWO_FOUR, threads=threads).holds
    with pytest.raises(FormatError, match=r"changed|replaced|vanished|cannot be read"):
        validate(path, TWO_FOUR, threads=threads, progress=During(lambda: action(path)))


def test_an_error_in_one_thread_stops_the_others_and_is_the_one_shown(path, monkeypatch):
    monkeypatch.setattr("maskpro_deploy.validation.check._WORTH_THREADS", 0)
    with pytest.raises(ZeroDivisionError):
        validate(path, TWO_FOUR, threads=2, progress=During(lambda: 1 // 0))


def test_masks_that_change_while_the_weights_are_read_are_an_error(tiny_sparse, tmp_path):
    folder = shutil.copytree(tiny_sparse, tmp_path / "sparse")
    with pytest.raises(FormatError, match=r"masks\.safetensors was changed"):
        validate(folder, progress=During(lambda: rewrite(folder / MASKS_FILE)))


def test_the_number_of_threads_changes_nothing_but_time(tiny_sparse, monkeypatch):
    monkeypatch.setattr("maskpro_deploy.validation.check._WORTH_THREADS", 0)
    assert validate(tiny_sparse, threads=1) == validate(tiny_sparse, threads=4)


def test_links_to_shards_are_followed_as_caches_of_the_hub_have_them(tiny_sparse, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in tiny_sparse.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert validate(snapshot).holds


def test_a_link_to_nowhere_is_an_error(tiny_sparse, tmp_path):
    folder = shutil.copytree(tiny_sparse, tmp_path / "sparse")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(FormatError, match=r"model\.safetensors is missing"):
        validate(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors", "extra.safetensors"])
def test_a_pipe_in_a_folder_does_not_hang(tiny_sparse, tmp_path, name):
    folder = shutil.copytree(tiny_sparse, tmp_path / "sparse")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match="not a regular file"):
        validate(folder)


def test_a_huge_config_is_not_loaded(tiny_sparse, tmp_path):
    folder = shutil.copytree(tiny_sparse, tmp_path / "sparse")
    os.truncate(folder / "config.json", 1 << 40)
    with pytest.raises(FormatError, match="no file of its kind is that large"):
        validate(folder)


def test_a_huge_onnx_file_is_not_loaded(tmp_path):
    (tmp_path / "m.onnx").touch()
    os.truncate(tmp_path / "m.onnx", 1 << 40)
    with pytest.raises(FormatError, match="less than 2 GiB"):
        validate(tmp_path / "m.onnx")
