"""Linked libraries are read from the file itself, and a file that is damaged or no such file has none."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskpro_deploy.backends.onnxruntime_ import linked_libraries as elf

EXTENSION = Path(np._core._multiarray_umath.__file__)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's format")


def test_the_answer_is_readelfs():
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    listing = subprocess.run(["readelf", "-d", str(EXTENSION)], capture_output=True, text=True, check=True).stdout
    expected = re.findall(r"\(NEEDED\).*\[(.+)\]", listing)
    assert expected
    assert list(elf.read_needed_libraries(EXTENSION)) == expected


@pytest.mark.parametrize("keep", [0, 3, 6, 60, 200, 4096])
def test_a_truncated_file_has_none(keep, tmp_path):
    (tmp_path / "cut.so").write_bytes(EXTENSION.read_bytes()[:keep])
    assert elf.read_needed_libraries(tmp_path / "cut.so") == ()


def test_another_file_has_none(tmp_path):
    (tmp_path / "text").write_text("libnvinfer.so.10")
    assert elf.read_needed_libraries(tmp_path / "text") == ()


def linked(folder, *names):
    """A shared library that was linked with others of these names."""
    (folder / "empty.c").write_text("")
    build = ["gcc", "-shared", "-fPIC", str(folder / "empty.c"), "-o"]
    for name in names:
        subprocess.run([*build, str(folder / name), f"-Wl,-soname,{name}"], check=True)
    out = folder / "capi" / "libonnxruntime_providers_tensorrt.so"
    out.parent.mkdir()
    subprocess.run([*build, str(out), "-Wl,--no-as-needed", *(str(folder / n) for n in names)], check=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("major", [10, 11])
def test_the_version_that_onnxruntime_was_linked_with_is_found(major, tmp_path, monkeypatch):
    linked(tmp_path, "libcudart.so.13", f"libnvinfer.so.{major}", f"libnvonnxparser.so.{major}")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(elf, "find_spec", lambda name: spec)
    assert elf.onnxruntime_tensorrt() == major


def test_without_a_tensorrt_provider_there_is_no_version(tmp_path, monkeypatch):
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(elf, "find_spec", lambda name: spec)
    assert elf.onnxruntime_tensorrt() is None
    monkeypatch.setattr(elf, "find_spec", lambda name: None)
    assert elf.onnxruntime_tensorrt() is None
