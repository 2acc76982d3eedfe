"""The bundle's contract: the same after a trip through JSON, strict about damage, closed to paths outside."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import small_shape

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, ModelShape, SparseWeight, file_entry, safe_path

names = st.text(min_size=1, max_size=8)
sizes = st.integers(1, 2**40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda s: st.lists(s, max_size=2) | st.dictionaries(names, s, max_size=2),
)
shapes = st.builds(
    ModelShape,
    **dict.fromkeys(("name", "architecture"), names),
    **dict.fromkeys(("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "max_length"), sizes),
    eos_token_ids=st.lists(sizes, max_size=3).map(tuple),
    bos_token_id=st.none() | sizes,
    pad_token_id=st.none() | sizes,
)
weights = st.builds(SparseWeight, initializer=names, source=names, shape=st.tuples(sizes, sizes), axis=st.integers(0, 1))
engines = st.builds(
    EngineFile,
    **dict.fromkeys(("file", "library", "library_version", "target", "dtype", "sparse_kernels"), names),
    settings=st.dictionaries(names, json_values, max_size=2),
)


def example(folder: Path, **changes: object) -> Manifest:
    """A manifest with one file."""
    (folder / "model.onnx").write_bytes(b"graph")
    base = Manifest(
        model=small_shape(),
        graph=Graph(file="model.onnx", form="cat", opset=23, dtype="fp32"),
        files=(file_entry(folder, folder / "model.onnx"),),
        sparsity="2:4",
        sparse_weights=(SparseWeight(initializer="a", source="b", shape=(4, 8), axis=0),),
    )
    return dataclasses.replace(base, **changes)


@settings(max_examples=40, deadline=None)
@given(
    model=shapes,
    sparse=st.lists(weights, max_size=2).map(tuple),
    built=st.lists(engines, max_size=2).map(tuple),
    source=st.dictionaries(names, json_values, max_size=2),
    sparsity=st.none() | st.just("2:4"),
)
def test_round_trip(model, sparse, built, source, sparsity):
    with tempfile.TemporaryDirectory() as folder:
        made = example(Path(folder), model=model, sparse_weights=sparse, engines=built, source=source, sparsity=sparsity)
        made.save(Path(folder))
        assert Manifest.load(Path(folder)) == made


def test_fields_of_a_newer_writer_are_dropped(tmp_path):
    made = example(tmp_path)
    made.save(tmp_path)
    value = json.loads((tmp_path / "manifest.json").read_text())
    value["new"] = value["model"]["new"] = value["graph"]["new"] = 1
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    assert Manifest.load(tmp_path) == made


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "..", "a/..", "", ".", "../../x/y", "a\\..\\..\\x", "C:/x", "C:\\x", 5, None, "a\0b"],
)
def test_paths_that_leave_the_bundle_are_refused(tmp_path, path):
    with pytest.raises(FormatError):
        safe_path(tmp_path, path)


@pytest.mark.parametrize("path", ["model.onnx", "engines/sm89/x.engine", "..x", "a..b/c"])
def test_paths_inside_are_kept(tmp_path, path):
    assert safe_path(tmp_path, path) == tmp_path / path


def places(value, prefix=()):
    """Every place in a JSON value."""
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*prefix, key))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_damaged_manifest_loads_or_is_a_plain_error(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        example(folder).save(folder)
        value = json.loads((folder / "manifest.json").read_text())
        *way, last = data.draw(st.sampled_from([p for p in places(value) if p]))
        parent = value
        for key in way:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(json_values)
        else:
            del parent[last]
        (folder / "manifest.json").write_text(json.dumps(value))
        try:
            manifest = Manifest.load(folder)
            manifest.check_hashes(folder)
        except FormatError as e:
            text = str(e)
        else:
            text = ""
        assert len(text.splitlines()) <= 3


def test_siblings_and_what_a_graph_gained_later_may_be_missing(tmp_path):
    graph = Graph(file="model.onnx", form="static", opset=24, dtype="fp32", quantization="int8 per column", length=64)
    example(tmp_path, siblings=(graph,)).save(tmp_path)
    assert Manifest.load(tmp_path).siblings == (graph,)
    value = json.loads((tmp_path / "manifest.json").read_text())
    del value["siblings"], value["graph"]["quantization"], value["graph"]["length"]
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    assert Manifest.load(tmp_path) == example(tmp_path)


@pytest.mark.parametrize("field", sorted({f.name for f in dataclasses.fields(Manifest)} - {"siblings"}))
def test_every_missing_field_is_named(tmp_path, field):
    example(tmp_path).save(tmp_path)
    value = json.loads((tmp_path / "manifest.json").read_text())
    del value[field]
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FormatError, match=field):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("way", "wrong"),
    [
        (("model", "vocab_size"), "8"),
        (("model", "vocab_size"), 8.0),
        (("model", "num_layers"), True),
        (("model", "name"), 5),
        (("model", "name"), None),
        (("model", "eos_token_ids"), 2),
        (("model", "eos_token_ids"), ["2"]),
        (("model", "bos_token_id"), "1"),
        (("graph", "opset"), None),
        (("graph", "file"), ["model.onnx"]),
        (("graph", "length"), "64"),
        (("files", 0, "bytes"), "5"),
        (("files", 0, "sha256"), 0),
        (("sparse_weights", 0, "shape"), [4, None]),
        (("sparse_weights", 0, "axis"), [0]),
        (("sparse_weights", 0, "source"), {}),
        (("sparsity",), 24),
        (("source",), []),
        (("verification",), None),
        (("tool_version",), 1),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path, way, wrong):
    example(tmp_path).save(tmp_path)
    value = json.loads((tmp_path / "manifest.json").read_text())
    parent = value
    for key in way[:-1]:
        parent = parent[key]
    parent[way[-1]] = wrong
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FormatError, match=str(way[-1])):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("change", [{"version": 2}, {"schema": "other"}, {"version": "1"}])
def test_another_version_is_refused(tmp_path, change):
    example(tmp_path).save(tmp_path)
    value = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(value | change))
    with pytest.raises(FormatError, match="this tool reads"):
        Manifest.load(tmp_path)


def test_sizes_are_checked_at_once_and_hashes_on_demand(tmp_path):
    example(tmp_path).save(tmp_path)
    Manifest.load(tmp_path).check_hashes(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"grapf")
    with pytest.raises(FormatError, match="SHA-256"):
        Manifest.load(tmp_path).check_hashes(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"gra")
    with pytest.raises(FormatError, match="has 3 bytes"):
        Manifest.load(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(FormatError, match="is missing"):
        Manifest.load(tmp_path)


def test_what_is_no_bundle_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Manifest.load(tmp_path / "nope")


def test_a_manifest_is_not_changed_by_its_maker(tmp_path):
    made = example(tmp_path)
    before = copy.deepcopy(made)
    made.save(tmp_path)
    assert made == before
