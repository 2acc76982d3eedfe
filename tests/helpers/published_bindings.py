"""The names of TensorRT 10 and 11 as they are published, and of TensorRT-RTX as it is installed, for `adapter_names`.

The bindings are the published ones; the libraries under them are large and need a GPU, so empty ones take their place: bindings
import over them, and tell all their classes and signatures.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import cache_folder

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("10.16.1.11", "11.4.0.106")
PACKAGE = "tensorrt-cu12-bindings"
RTX = "tensorrt_rtx"
# prints the description that `adapter_names` reads
DESCRIBE = """
import ctypes, importlib, json, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
module = importlib.import_module(sys.argv[1])
members = {n: "class" if isinstance(getattr(module, n), type) else "" for n in dir(module)}
def doc(kind, name):
    member = getattr(kind, name)
    return (member.__doc__ or "") if callable(member) and not isinstance(member, type) else None
classes = {n: {m: doc(getattr(module, n), m) for m in dir(getattr(module, n))} for n, kind in members.items() if kind}
print(json.dumps({"members": members, "classes": classes}))
"""


def run_python(code: str, path: Path, *arguments: object) -> str:
    """Run code in a process of its own (two versions do not fit into one), with `path` to import from; returns its stdout."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{path}"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def describe(module: str, path: Path, *libraries: Path) -> dict[str, Any]:
    """One library's names."""
    described: dict[str, Any] = json.loads(run_python(DESCRIBE, path, module, *libraries).splitlines()[-1])
    return described


def fetch(version: str) -> Path:
    """The wheel of the published bindings, from the cache or the network."""
    folder = cache_folder() / "tensorrt-bindings" / f"{version}-{sys.implementation.cache_tag}"
    if not (found := list(folder.glob("*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
        done = subprocess.run(
            [*command, "--timeout=10", "--dest", str(folder), f"{PACKAGE}=={version}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode != 0 or not (found := list(folder.glob("*.whl"))):
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"{PACKAGE} {version} cannot be fetched: {last}")
    return found[0]


def empty_libraries(extension: Path, folder: Path) -> list[Path]:
    """Libraries under the names that the extension needs, with empty functions for all it takes from them."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\s+U (\w+)$", listing, re.MULTILINE)  # those of the system carry a version
    needed = sorted(set(re.findall(rb"libnv\w+\.so\.\d+", extension.read_bytes())))
    assert names
    assert needed
    code = folder / "empty.c"
    code.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in names))
    for name in (n.decode() for n in needed):
        subprocess.run(
            ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(code)],
            check=True, capture_output=True,
        )  # fmt: skip
    return [folder / n.decode() for n in needed]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path, list[Path]]]:
    """Version -> description of the published bindings, their folder, and the empty libraries."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the bindings are fetched for Linux on x86-64")
    if lacking := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(lacking)} is not installed")
    found = {}
    for version in VERSIONS:
        folder = tmp_path_factory.mktemp("bindings")
        with zipfile.ZipFile(fetch(version)) as archive:
            archive.extractall(folder)
        libraries = empty_libraries(folder / "tensorrt_bindings" / "tensorrt.so", folder)
        found[version] = describe("tensorrt_bindings", folder, *libraries), folder, libraries
    return found


@pytest.fixture(scope="module")
def rtx() -> dict[str, Any]:
    """Description of the installed tensorrt-rtx."""
    if missing("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx is not installed")
    return describe(RTX, ROOT)
