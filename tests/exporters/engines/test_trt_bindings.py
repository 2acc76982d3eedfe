"""Every name of the TensorRT libraries that the builder uses exists in them, in TensorRT 10 and 11 as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_names import follow, signatures
from published_bindings import VERSIONS, published, rtx, run_python

from maskpro_deploy.backends.tensorrt_ import library
from maskpro_deploy.exporters.engines import builder

__all__ = ["published", "rtx"]  # fixtures
# one text, so that values are followed from one module into the next
SOURCE = "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in (builder, library))


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
        ("ILogger", "log"),
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
        "from maskpro_deploy.exporters.engines.builder import EngineBuilder\n"
        "try: EngineBuilder('tensorrt').build(pathlib.Path('x'), [], sparse=True, targets=(), timing_cache=None, on_step=print)\n"
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
