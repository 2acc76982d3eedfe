"""Bundles: manifest, files, graph and masks have to agree. The bundle is a real export of the tiny model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import sha256_file
from maskpro_deploy.validation import validate


@pytest.fixture(scope="module")
def made(tiny_sparse, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export(tiny_sparse, out, ExportConfig())
    return out


@pytest.fixture
def bundle(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "bundle")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def write(folder, manifest, *, rehash=True):
    """Write a manifest whose file entries fit the files again."""
    for entry in manifest["files"] if rehash else ():
        path = folder / entry["path"]
        entry.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def position(folder, name):
    """File, byte offset and shape of an initializer."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    where = {e.key: e.value for e in tensor.external_data}
    return folder / where["location"], int(where.get("offset", 0)), tuple(tensor.dims)


def poke(folder, name, at, value):
    """Change one weight in the data file."""
    file, offset, shape = position(folder, name)
    raw = np.memmap(file, np.float32, "r+", offset, shape)
    raw[at] = value
    raw.flush()


def test_an_exported_bundle_holds(made):
    report = validate(made)
    assert report.holds
    assert (report.kind, report.pattern, len(report.required)) == ("bundle", NMPattern(2, 4), 14)
    assert all(t.axis == 0 for t in report.required)


def test_its_graph_alone_holds_too(made):
    assert len(validate(made / "model.onnx", NMPattern(2, 4)).required) == 14


@pytest.mark.parametrize("seed", range(5))
def test_a_changed_weight_is_found_with_and_without_its_hash(bundle, seed):
    manifest = manifest_of(bundle)
    rng = np.random.default_rng(seed)
    entry = manifest["sparse_weights"][rng.integers(len(manifest["sparse_weights"]))]
    file, offset, shape = position(bundle, entry["initializer"])
    values = np.fromfile(file, np.float32, count=int(np.prod(shape)), offset=offset).reshape(shape)
    zeros = np.argwhere(values == 0)
    poke(bundle, entry["initializer"], tuple(zeros[rng.integers(len(zeros))]), 1.0)
    report = validate(bundle)
    assert any("SHA-256" in p for p in report.problems)
    assert [t.name for t in report.failed] == [entry["initializer"]]
    write(bundle, manifest)
    report = validate(bundle)
    assert report.problems == ()
    assert not report.holds


@pytest.mark.parametrize("field", ["shape", "axis", "initializer"])
def test_a_manifest_that_contradicts_the_graph_does_not_hold(bundle, field):
    manifest = manifest_of(bundle)
    entry = next(w for w in manifest["sparse_weights"] if w["shape"][0] != w["shape"][1])
    entry[field] = {"shape": entry["shape"][::-1], "axis": 1 - entry["axis"], "initializer": "gone"}[field]
    write(bundle, manifest)
    report = validate(bundle)
    assert not report.holds
    assert len(report.problems) == 1


def test_a_manifest_that_does_not_list_a_file_of_the_graph_does_not_hold(bundle):
    manifest = manifest_of(bundle)
    manifest["files"] = [f for f in manifest["files"] if not f["path"].endswith(".data")]
    write(bundle, manifest)
    assert "does not list" in validate(bundle).problems[0]


def test_another_pattern_in_the_manifest_does_not_hold(bundle):
    manifest = manifest_of(bundle)
    manifest["sparsity"] = "1:4"
    write(bundle, manifest)
    report = validate(bundle)
    assert len(report.failed) == 14
    manifest["sparsity"] = "four"
    write(bundle, manifest)
    with pytest.raises(FormatError, match="no valid sparsity"):
        validate(bundle)


def test_masks_in_a_bundle_tell_short_groups_from_violations(bundle, tiny_sparse):
    manifest = manifest_of(bundle)
    entry = next(w for w in manifest["sparse_weights"] if w["shape"][0] != w["shape"][1])
    mask = MaskSet.load(tiny_sparse / MASKS_FILE).mask(entry["source"]).T
    kept, free = np.argwhere(mask)[7], np.argwhere(~mask)[7]
    shutil.copy(tiny_sparse / MASKS_FILE, bundle / MASKS_FILE)
    poke(bundle, entry["initializer"], tuple(kept), 0.0)
    write(bundle, manifest)
    report = validate(bundle)
    assert report.holds, report.problems
    assert sum(t.short for t in report.required) == 1
    poke(bundle, entry["initializer"], tuple(free), 1.0)
    write(bundle, manifest)
    assert validate(bundle).failed[0].outside == 1


def test_without_masks_a_short_group_is_a_violation(bundle):
    manifest = manifest_of(bundle)
    entry = manifest["sparse_weights"][0]
    (bundle / MASKS_FILE).unlink(missing_ok=True)
    manifest["files"] = [f for f in manifest["files"] if f["path"] != MASKS_FILE]
    write(bundle, manifest)
    assert validate(bundle).holds
    poke(bundle, entry["initializer"], slice(0, 4), 0.0)
    write(bundle, manifest)
    report = validate(bundle)
    assert not report.holds
    assert "--at-most" in report.verdict
    assert validate(bundle, at_most=True).holds


def test_masks_of_another_model_in_a_bundle_are_a_contradiction(bundle, tiny_sparse):
    manifest = manifest_of(bundle)
    masks = MaskSet.load(tiny_sparse / MASKS_FILE)
    other = {n: masks.pattern.top(np.random.default_rng(0).random(masks.shapes[n])) for n in masks}
    MaskSet.from_arrays(masks.pattern, other).save(bundle / MASKS_FILE)
    write(bundle, manifest)
    report = validate(bundle)
    assert not report.holds
    assert any("other masks" in p for p in report.problems)
    assert all(t.outside for t in report.failed)


def test_a_dense_bundle_holds_nothing(tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path / "dense", ExportConfig())
    report = validate(tmp_path / "dense")
    assert not report.holds
    assert report.pattern is None


def test_a_truncated_file_is_an_error(bundle):
    file = bundle / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="bytes"):
        validate(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    for name in ("model.onnx.data", MASKS_FILE):
        outside = tmp_path / name
        shutil.move(bundle / name, outside)
        (bundle / name).symlink_to(outside)
        with pytest.raises(FormatError, match="link out of the bundle"):
            validate(bundle)
        (bundle / name).unlink()
        shutil.move(outside, bundle / name)
    assert validate(bundle).holds


class TestSiblings:
    @pytest.fixture
    def pair(self, bundle):
        """A bundle with a second graph over the same data."""
        manifest = manifest_of(bundle)
        model = onnx.load(bundle / "model.onnx", load_external_data=False)
        onnx.save(model, bundle / "model.other.onnx")
        manifest["siblings"] = [manifest["graph"] | {"file": "model.other.onnx"}]
        manifest["files"].append({"path": "model.other.onnx"})
        write(bundle, manifest)
        return bundle

    def test_a_sibling_over_the_same_bytes_holds(self, pair):
        assert validate(pair).holds

    @pytest.mark.parametrize("change", ["offset", "renamed"])
    def test_a_sibling_with_other_weights_is_a_contradiction(self, pair, change):
        manifest = manifest_of(pair)
        listed = [w["initializer"] for w in manifest["sparse_weights"]]
        model = onnx.load(pair / "model.other.onnx", load_external_data=False)
        tensors = [t for t in model.graph.initializer if t.name in listed]
        if change == "offset":
            one = next(t for t in tensors if list(t.dims) == list(tensors[0].dims) and t is not tensors[0])
            del one.external_data[:]
            one.external_data.extend(tensors[0].external_data)
        else:
            for node in model.graph.node:
                node.input[:] = ["another" if name == tensors[0].name else name for name in node.input]
            tensors[0].name = "another"
        onnx.save(model, pair / "model.other.onnx")
        write(pair, manifest)
        report = validate(pair)
        assert not report.holds
        assert "model.other.onnx does not use" in report.problems[0]
