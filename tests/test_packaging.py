"""The package as it is built and installed: nothing forgotten, nothing extra, one import name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from maskpro_deploy import __version__
from maskpro_deploy.doctor.abilities import BASE
from maskpro_deploy.system.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REAL = {"maskpro_deploy/exporters": "exporters", "maskpro_deploy/runtime": "runtime"}
# distributions that bring a module of another name
MODULES = {
    "lm-eval": "lm_eval",
    "mobius-onnx": "mobius",
    "onnxruntime-ep-nv-tensorrt-rtx": "onnxruntime_ep_nv_tensorrt_rtx",
    "onnxruntime-genai": "onnxruntime_genai",
    "onnxruntime-gpu": "onnxruntime",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "prometheus-client": "prometheus_client",
    "tensorrt-rtx": "tensorrt_rtx",
    "cuda-bindings": "cuda.bindings",
}


def modules():
    """Every Python module of the package, by its installed path."""
    for top in ("maskpro_deploy", *REAL.values()):
        for folder, folders, files in os.walk(ROOT / top):  # links are not followed
            folders[:] = [f for f in folders if f != "__pycache__"]
            for file in files:
                if file.endswith(".py"):
                    path = (Path(folder) / file).relative_to(ROOT).as_posix()
                    yield path if top == "maskpro_deploy" else f"maskpro_deploy/{path}"


def distribution(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def test_the_package_list_is_the_tree():
    packages = {Path(m).parent.as_posix().replace("/", ".") for m in modules()}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(packages)


def test_every_folder_with_modules_is_a_package():
    found = set(modules())
    for module in found:
        assert f"{Path(module).parent.as_posix()}/__init__.py" in found


def test_extras_are_those_of_the_table():
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = {
        name: {MODULES.get(d := distribution(r), d) for r in requirements if distribution(r) != "maskpro-deploy"}
        for name, requirements in extras.items()
    }
    assert declared == {name: set(names) for name, names in EXTRAS.items()}


def test_the_doctor_knows_the_base():
    assert sorted(distribution(d) for d in PYPROJECT["project"]["dependencies"]) == sorted(BASE.values())


def test_the_version_stands_in_one_place():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "maskpro_deploy._version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


@pytest.mark.parametrize(("link", "target"), REAL.items())
def test_links_are_relative_and_committed_as_links(link, target):
    assert (ROOT / link).is_symlink()
    assert (ROOT / link).readlink() == Path("..") / target
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-s", link], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("120000 ")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    top = ("maskpro_deploy", "exporters", "runtime", "tests", "scripts", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in top:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
    data = {"maskpro_deploy/py.typed", "maskpro_deploy/text/corpus.jsonl.xz"}
    data |= {f"maskpro_deploy/learn/kernels/{name}.c" for name in ("native_numbers", "native_step", "native_weights")}
    data |= {f"maskpro_deploy/reports/{p.name}" for p in (ROOT / "maskpro_deploy" / "reports").glob("*.html")}
    page = ROOT / "runtime" / "http" / "page"
    data |= {f"maskpro_deploy/runtime/http/page/{p.name}" for p in page.iterdir() if p.suffix in (".html", ".css", ".js", ".svg")}
    data |= {"maskpro_deploy/runtime/http/openapi/page.html"}
    assert held == set(modules()) | data


def test_the_installed_package_works_outside_its_tree(wheel, tmp_path):
    """Unpacked elsewhere, it imports as one name and reads its own text."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import maskpro_deploy, maskpro_deploy.exporters, maskpro_deploy.runtime\n"
        "from maskpro_deploy.data import load_text\n"
        "print(maskpro_deploy.__file__, len(load_text('builtin').documents))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "site" / "maskpro_deploy" / "__init__.py"), "272"]


def test_the_wheel_says_how_it_is_licensed_and_which_command_it_brings(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(archive.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "maskpro-deploy = maskpro_deploy.cli:main" in entry
    assert "[lm_eval.models]\nmaskpro = " in entry  # by which the harness finds the model
