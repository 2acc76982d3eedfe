"""The command's options reach the builder's settings; what is wrong is one line; the page tells what the report does."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskpro_deploy import exporters
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import MaskProError
from maskpro_deploy.exporters import EngineReport
from maskpro_deploy.exporters.engines.report import UNKNOWN, LayerRow
from maskpro_deploy.exporters.engines.timing.results import NO_GPU, Comparison, PointResult
from maskpro_deploy.manifest import EngineFile
from maskpro_deploy.reports.engine import build_page, render_text
from maskpro_deploy.system.extras import missing

SETTINGS = {
    "sparse_weights": True,
    "form": "cat",
    "max_length": 64,
    "flags": {"aux_streams": 2},
    "profiles": [{"name": "decode:4", "shapes": {"input_ids": [[1, 1], [4, 1], [4, 1]]}}],
    "key": "0123",
}


def row(name, **changes):
    base = LayerRow(
        weight=f"m.0.{name}.weight", node=f"/m/0/{name}", shape=(64, 32), dtype="float16", bytes=4096, tensor_cores="small",
        eligible=True, reason="", chosen="yes", kernel="sm90_sparse_<gemm>",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def report(comparison=None):
    engine = EngineFile(
        file="engines/a.engine", library="tensorrt", library_version="11.4", target="sm90", dtype="fp16",
        sparse_kernels="tensorrt chose sparse kernels for 1 of 2 layers (1 eligible)", settings=SETTINGS,
    )  # fmt: skip
    return EngineReport(
        engine=engine, bytes=5_000_000, reused=False, build_s=2.0, peak_rss_bytes=10**9, warnings=("a <warning>",),
        layers=(row("q_proj"), row("v_proj", eligible=False, reason="K 30 is not a multiple of 4", chosen="no", kernel="")),
        spoiled={"padding": 1, "wrong axis": 0}, log_eligible=1, comparison=comparison,
    )  # fmt: skip


def measured(**changes):
    point = PointResult(
        name="prefill, batch 4, 512 new, 0 past", kind="prefill", batch=4, new=512, past=0, sparse_ms=8.0, dense_ms=10.0,
        speedup=1.25, low=1.24, high=1.26, verdict="faster",
        layers={"m.0.q_proj.weight": (1.0, 2.0), "m.0.v_proj.weight": (None, 3.0)},
        layers_sum_ms=(9.0, 11.0),
    )  # fmt: skip
    smaller = dataclasses.replace(point, name="prefill, batch 2", batch=2)
    made = Comparison(
        dense_file="engines/b.engine", sparse_bytes=1, dense_bytes=2, sparse_build_s=1.0, dense_build_s=2.0, not_measured="",
        points=(point, smaller),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def words(html):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


@pytest.mark.skipif(bool(missing("report")), reason="the report extra is not installed")
@pytest.mark.parametrize("comparison", [None, measured(), measured(not_measured=NO_GPU, points=())])
def test_the_page_tells_every_layer_and_loads_nothing(comparison):
    from maskpro_deploy.reports.blocks import render

    made = report(comparison)
    html = render(build_page(Path("bundle"), made))
    text = words(html)
    assert f"Speed gained by sparsity: {made.gain}." in text
    assert "no: K 30 is not a multiple of 4" in text
    assert "1 pruned layers: padding" in text
    assert "sm90_sparse_&lt;gemm&gt;" in html
    assert "a &lt;warning&gt;" in html
    assert "aux streams 2" in text
    assert ("0.500" in text or "2.000" in text) == (comparison is not None and bool(comparison.points))
    assert not re.search(r"<(script|link|img)|https?://(?!www.w3.org)", html)


def test_the_table_has_times_where_they_were_measured():
    assert "sparse ms" not in render_text(Path("b"), report())
    text = render_text(Path("b"), report(measured()))
    assert re.search(r"q_proj +1 +64 +32 +yes +yes +1\.000 +2\.000", text)
    assert re.search(r"v_proj .* no +- +3\.000", text)
    assert "prefill, batch 4, 512 new, 0 past      8.000    10.000  1.250x  faster" in text
    assert "pruned layers that the graph keeps from sparse tensor cores: 1 padding" in text
    assert UNKNOWN not in text


def test_json_has_the_break_even():
    found = report(measured()).to_json()
    assert found["break_even"] == {"prefill": 2}
    assert found["layer_break_even"] == {"m.0.q_proj.weight": {"prefill": 2}, "m.0.v_proj.weight": {"prefill": None}}
    assert report().to_json()["break_even"] is None


def test_options_reach_the_settings(monkeypatch):
    seen = []
    monkeypatch.setattr(exporters, "build_engine", lambda bundle, config, meter: seen.append(config) or report(), raising=False)
    command = (
        "build-engine b --profiles decode:4 --form static --compare-dense --budget 2m --optimization-level 3 --workspace 1GB "
        "--aux-streams 1 --version-compatible --hardware-compatible ampere+ --weight-streaming --refit identical --strip-weights "
        "--tiling fast --strict-nans --target SM89,sm120 --timing-cache t --max-length 64 --json"
    )
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["gain"].startswith("not measured")
    (config,) = seen
    assert (config.profiles, config.form, config.compare_dense, config.compare_budget_s) == ("decode:4", "static", True, 120.0)
    assert config.targets == ("sm89", "sm120")
    assert all(value not in (None, False) for value in dataclasses.asdict(config.flags).values())
    assert config.flags.workspace_bytes == 10**9


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ("--workspace much", "--workspace"),
        ("--profiles decode:8,4", "--profiles"),
        ("--refit all", "--refit all"),
        ("--form gqa", "--form gqa"),
        ("--sparsity 1:4", "--sparsity 1:4"),
        ("--tiling 3", "--tiling 3"),
    ],
)
def test_a_wrong_option_is_named_in_two_lines_at_most(half_bundle_path, options, flag):
    done = CliRunner().invoke(cli, ["build-engine", str(half_bundle_path), *options.split()])
    assert isinstance(done.exception, MaskProError | SystemExit)
    shown = str(done.exception) if isinstance(done.exception, MaskProError) else done.output
    assert flag in shown
    assert len(shown.strip().splitlines()) <= 3


@pytest.fixture(scope="module")
def half_bundle_path(tiny_sparse, tmp_path_factory):
    from maskpro_deploy.exporters import ExportConfig, export

    out = tmp_path_factory.mktemp("bundle") / "fp16"
    export(tiny_sparse, out, ExportConfig(dtype="fp16"), compare=False)
    return out
