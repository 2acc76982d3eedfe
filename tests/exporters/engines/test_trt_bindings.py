"""Every name of the TensorRT libraries that the adapter uses exists in them, in TensorRT 10 and 11 as they are published.

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

import pytest
from adapter_names import follow, signatures

from maskpro_deploy.exporters.engines import execution as trt_execution
from maskpro_deploy.exporters.engines import library as trt_library
from maskpro_deploy.exporters.engines import trt_flags
from maskpro_deploy.system.extras import missing
from maskpro_deploy.system.files import cache_folder

ROOT = Path(__file__).resolve().parents[3]
# one text, so that values are followed from one module into the next
SOURCE = "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in (trt_library, trt_flags, trt_execution))
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


def run_python(code, path, *arguments):
    """Run code in a process of its own (two versions do not fit into one), with `path` to import from; returns its stdout."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{path}"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def describe(module, path, *libraries):
    """One library's names."""
    return json.loads(run_python(DESCRIBE, path, module, *libraries).splitlines()[-1])


def fetch(version):
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


def empty_libraries(extension, folder):
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
def published(tmp_path_factory):
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
def rtx():
    """Description of the installed tensorrt-rtx."""
    if missing("tensorrt-rtx"):
        pytest.skip("tensorrt-rtx is not installed")
    return describe(RTX, ROOT)


def check(uses):
    assert uses.absent == set()
    assert uses.misfits == set()
    assert uses.lost == set()
    # the calls at both ends of a build were reached: from the first to the last
    assert uses.used >= {
        ("", "Builder"),
        ("OnnxParser", "parse"),
        ("IBuilderConfig", "set_flag"),
        ("IOptimizationProfile", "set_shape"),
        ("Builder", "build_serialized_network"),
        ("Runtime", "deserialize_cuda_engine"),
        ("EngineInspector", "get_engine_information"),
        ("LayerInformationFormat", "JSON"),
        ("IProgressMonitor", "step_complete"),
        ("IBuilderConfig", "get_flag"),
        ("BuilderFlag", "STRICT_NANS"),
        ("HardwareCompatibilityLevel", "AMPERE_PLUS"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("IExecutionContext", "set_optimization_profile_async"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "profiler"),
        ("IProfiler", "report_layer_time"),
        ("ICudaEngine", "get_tensor_dtype"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_published_bindings(published, version):
    check(follow(SOURCE, published[version][0]))


def test_every_name_exists_in_tensorrt_rtx(rtx):
    check(follow(SOURCE, rtx))


@pytest.mark.slow
def test_every_name_that_is_asked_for_exists_somewhere(published, rtx):
    """A misspelt `hasattr` would never be true, and nobody would notice."""
    descriptions = [*(d for d, _, _ in published.values()), rtx]
    asked = set.union(*(follow(SOURCE, d).asked for d in descriptions))
    assert ("BuilderFlag", "SPARSE_WEIGHTS") in asked
    for owner, name in asked:
        assert any(name in (d["classes"][owner] if owner else d["members"]) for d in descriptions), (owner, name)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_library_that_gives_no_builder_is_a_plain_error(published, version):
    """What happens without a driver; the published bindings say it by TypeError."""
    _, folder, libraries = published[version]
    code = (
        "import ctypes, sys, pathlib\n"
        "for library in sys.argv[1:]: ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)\n"
        "import tensorrt_bindings\n"
        "sys.modules['tensorrt'] = tensorrt_bindings\n"
        "from maskpro_deploy.errors import MachineError\n"
        "from maskpro_deploy.exporters.engines.library import Library\n"
        "try: Library('tensorrt').build(pathlib.Path('x'), [], sparse=True, targets=(), timing_cache=None, on_step=print)\n"
        "except MachineError as e: print(e)"
    )
    assert f"tensorrt {version} cannot start on this machine" in run_python(code, folder, *libraries)


# -- the finder itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "where", "name"),
    [
        ("builder.create_network(", "builder.make_network(", "absent", "make_network"),
        ("profile.set_shape(", "profile.set_shapes(", "absent", "set_shapes"),
        ("set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)", "set_flag(trt.BuilderFlag.SPARSE)", "absent", "SPARSE"),
        ("LayerInformationFormat.JSON", "LayerInformationFormat.XML", "absent", "XML"),
        ("def step_complete(", "def steps_complete(", "absent", "steps_complete"),
        ("error.desc()", "error.text()", "absent", "text"),
        ("parser.num_errors", "parser.nb_errors", "absent", "nb_errors"),
        ("runtime.deserialize_cuda_engine(engine)", "runtime.deserialize_cuda_engine()", "misfits", "deserialize_cuda_engine"),
        ("parser.parse(_decomposable(graph), str(graph))", "parser.parse(b'', '', 1, 2, 3)", "misfits", "parse"),
        ("context.set_input_shape(", "context.set_shape(", "absent", "set_shape"),
        ("self._profiled.execute_async_v3(stream)", "self._profiled.execute_async_v3()", "misfits", "execute_async_v3"),
        ('trt.BuilderFlag, "STRIP_PLAN"', 'trt.BuilderFlag, "STRIP"', "asked", "STRIP"),
        ('hasattr(config, "set_compute_capability")', 'hasattr(config, "set_capability")', "asked", "set_capability"),
    ],
)
def test_a_wrong_name_is_found_wherever_it_stands(rtx, old, new, where, name):
    assert old in SOURCE
    uses = follow(SOURCE.replace(old, new), rtx)
    assert any(name in str(entry) for entry in getattr(uses, where)), getattr(uses, where)


def test_signatures_are_read_with_defaults_and_overloads():
    doc = "f(*args)\nOverloaded function.\n\n1. f(self: m.C, a: Dict[str, int], b: int = 0) -> m.D\n\n2. f(self: m.C) -> None"
    assert signatures(doc, "f") == [([("a", False), ("b", True)], "m.D"), ([], "None")]


def test_what_is_behind_a_missing_feature_is_not_followed():
    source = (
        "class L:\n"
        "    def __init__(self):\n"
        "        self._t = import_module('t')\n"
        "    def f(self):\n"
        "        if not hasattr(self._t, 'New'):\n"
        "            return self._t.Old()\n"
        "        return self._t.New().work()\n"
    )
    old = {"members": {"Old": "class"}, "classes": {"Old": {"__init__": ""}}}
    new = {"members": {"New": "class"}, "classes": {"New": {"__init__": "", "work": "work(self: t.New) -> int"}}}
    assert follow(source, old).used == {("", "Old")}
    assert follow(source, new).used == {("", "New"), ("New", "work")}
    assert follow(source, {"members": {}, "classes": {}}).absent == {("", "Old")}
