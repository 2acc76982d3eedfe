"""`maskpro-deploy validate`: exit codes, one object, and a text that names what fails."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from maskpro_deploy.commands.validate import command
from maskpro_deploy.errors import ConfigError, InputError, PatternError
from maskpro_deploy.models import demo_is_cached
from maskpro_deploy.pattern import NMPattern

UP = "model.layers.1.mlp.up_proj.weight"


def invoke(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture
def broken(tiny_sparse, tmp_path):
    folder = shutil.copytree(tiny_sparse, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][5, 8:12] = 1.0
    tensors[UP][6, :4] *= -1
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_proof_ends_with_0(tiny_sparse):
    done = invoke(tiny_sparse)
    assert done.exit_code == 0
    assert "model.layers.*.mlp.up_proj.weight" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("holds: 2:4 in all 14 required tensors")


def test_a_refutation_ends_with_1_and_names_tensor_and_place(broken):
    done = invoke(broken)
    assert done.exit_code == 1
    assert f"fails: {UP}: 1 of 512 groups break it" in done.stdout
    assert "[5, 8]" in done.stdout
    assert "-0.0" in done.stdout
    assert done.stdout.splitlines()[-1] == "does not hold: 1 of 14 required tensors break 2:4"


def test_json_is_one_object_with_every_tensor(broken):
    done = invoke(broken, "--json")
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert (value["holds"], value["pattern"], value["failed_tensors"], value["negative_zeros"]) == (False, "2:4", [UP], 2)
    assert len(value["tensors"]) == 14
    hurt = next(t for t in value["tensors"] if t["name"] == UP)
    assert (hurt["violations"], hurt["first"], hurt["satisfies"]) == (1, [[5, 8]], [])


def test_options_reach_the_check(tiny_sparse):
    assert invoke(tiny_sparse, "--sparsity", "4:8").exit_code == 0
    assert invoke(tiny_sparse, "--sparsity", "1:4").exit_code == 1
    assert invoke(tiny_sparse / "model.safetensors", "--sparsity", "3:4").exit_code == 1
    assert invoke(tiny_sparse / "model.safetensors", "--sparsity", "3:4", "--at-most").exit_code == 0
    assert invoke(tiny_sparse, "--require", "all").exit_code == 0


def test_transposes_are_judged_on_request(tiny_sparse, tmp_path):
    done = invoke(tiny_sparse, "--transposable")
    assert done.exit_code == 1
    assert "groups of its transpose break it, first at [" in done.stdout
    assert done.stdout.splitlines()[-1] == "does not hold: 14 of 14 required tensors break 2:4 along both axes"
    weight = np.kron(np.eye(2), np.ones((2, 2))).astype(np.float32)
    save_file({"a.weight": weight}, tmp_path / "w.safetensors")
    page = tmp_path / "proof.html"
    done = invoke(tmp_path / "w.safetensors", "--transposable", "--sparsity", "2:4", "--html", page)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith("holds: 2:4 along both axes in all 1 required tensors")
    assert "exactly N of every M along both axes" in page.read_text()


def test_short_groups_are_explained(tiny_sparse, tmp_path):
    folder = shutil.copytree(tiny_sparse, tmp_path / "short")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][5, 8:12] = 0.0
    save_file(tensors, folder / "model.safetensors")
    done = invoke(folder)
    assert done.exit_code == 0
    assert "1 groups are short: a kept weight that is itself zero" in done.stdout


def test_detection_names_what_it_found(tiny_sparse):
    assert invoke(tiny_sparse / "model.safetensors").stdout.rstrip().endswith("(detected)")


def test_nothing_to_check_ends_with_1(tmp_path):
    save_file({"norm.weight": np.ones(4, np.float32)}, tmp_path / "x.safetensors")
    done = invoke(tmp_path / "x.safetensors")
    assert done.exit_code == 1
    assert "nothing here could be checked" in done.stdout


def test_errors_are_those_of_the_library(tmp_path):
    assert isinstance(invoke(tmp_path / "nope").exception, InputError)
    assert isinstance(invoke(tmp_path, "--sparsity", "4:2").exception, PatternError)


def test_the_page_has_a_row_a_tensor_and_the_verdict(broken, tmp_path):
    pytest.importorskip("matplotlib")
    done = invoke(broken, "--html", tmp_path / "out" / "report.html")
    assert done.exit_code == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "does not hold: 1 of 14 required tensors break 2:4" in page
    assert page.count("self_attn.q_proj.weight") >= 2
    assert "share of the multiply-adds" in page
    assert not re.search(r"(src|href)=|<script|<link|@import", page.replace('href="#', ""))  # self-contained


def test_pages_of_what_cannot_be_checked_or_plotted_are_written_too(tmp_path):
    pytest.importorskip("matplotlib")
    save_file({"<b>.norm.weight": np.ones(4, np.float32)}, tmp_path / "x.safetensors")
    assert invoke(tmp_path / "x.safetensors", "--html", tmp_path / "r.html").exit_code == 1
    save_file({"<b>.weight": np.ones((4, 6), np.uint8)}, tmp_path / "x.safetensors")
    assert invoke(tmp_path / "x.safetensors", "--html", tmp_path / "r.html").exit_code == 1
    assert "&lt;b&gt;.weight: dtype U8" in (tmp_path / "r.html").read_text()


def test_a_page_has_to_be_a_file(tiny_sparse, tmp_path):
    pytest.importorskip("matplotlib")
    assert isinstance(invoke(tiny_sparse, "--html", tmp_path).exception, ConfigError)


def test_detection_names_what_each_kind_of_layer_holds(tmp_path):
    rng = np.random.default_rng(0)
    weights = {f"layers.{i}.up.weight": NMPattern(2, 4).top(rng.random((4, 16))).astype(np.float32) for i in range(2)}
    weights["layers.0.down.weight"] = NMPattern(4, 8).top(rng.random((4, 32))).astype(np.float32)
    weights["layers.0.dense.weight"] = np.ones((4, 48), np.float32)
    save_file(weights, tmp_path / "x.safetensors")
    done = invoke(tmp_path / "x.safetensors")
    assert done.exit_code == 1
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("layers.*")]
    patterns = {row[0].split(".")[2]: row[5] for row in rows}
    assert patterns == {"up": "2:4", "down": "4:8", "dense": "none"}


@pytest.mark.slow
@pytest.mark.skipif(not demo_is_cached(), reason="the demo model is not in the cache")
def test_the_dense_demo_model_holds_nothing():
    done = invoke("demo", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["required_tensors"] == 210
