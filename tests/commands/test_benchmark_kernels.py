from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bundle_cases import fail, run, run_json

from maskpro_deploy.bench.kernels import KernelCase
from maskpro_deploy.bench.roofline import measure_bandwidth
from maskpro_deploy.commands._benchmark_gemm import FORMS, FP32, INT4, INT8, SPARSE, Gemm, OpenForm, Product, weights
from maskpro_deploy.commands._gpu_products import whole_model
from maskpro_deploy.errors import ConfigError, InputError


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 48), (36, 20)])  # 36 rows make no whole blocks: one scale a column
def test_each_form_multiplies_with_its_weights(form: str, shape: tuple[int, int]) -> None:
    gemm = Gemm(form=form, k=shape[0], n=shape[1])
    x = np.random.default_rng(0).standard_normal((3, gemm.k), dtype=np.float32)
    outputs = Product(gemm, copies=2, threads=1).call(x)()
    for seed, found in enumerate(outputs):
        integers, scale = weights(gemm, seed)
        expected = x @ (integers * scale)
        assert np.abs(found - expected).max() <= (1e-5 if form in (FP32, SPARSE) else 0.03) * np.abs(expected).max()


def test_forms_hold_the_same_numbers_and_the_sparse_one_two_of_every_four() -> None:
    same = [weights(Gemm(form=form, k=64, n=8), 0) for form in (FP32, INT8, INT4)]
    assert all((a == same[0][0]).all() and (s == same[0][1]).all() for a, s in same)
    sparse, _ = weights(Gemm(form=SPARSE, k=64, n=8), 0)
    assert ((sparse.reshape(16, 4, 8) != 0).sum(axis=1) <= 2).all()
    assert (sparse != 0).any()


def test_a_form_tells_how_far_its_product_is_off() -> None:
    case = KernelCase(k=64, n=48, m=3, count=2, copies=2)
    assert OpenForm(FP32, 1, lambda: None).error(case) < 1e-5
    assert OpenForm(INT8, 1, lambda: None).error(case) < 0.03


def test_kernels_of_a_bundle_are_one_json_object_and_three_files(
    dense_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskpro_deploy.bench.roofline.measure_bandwidth", partial(measure_bandwidth, buffer_bytes=4 << 20))
    arguments = ("benchmark", "kernels", dense_bundle, "--tokens", "1,4", "--sessions", 2, "--samples", 4, "--threads", 1)
    value = run_json(*arguments, "--out", tmp_path / "report")
    assert value["valid"] is True
    assert value["forms"] == ["fp32", "2:4", "int8", "int4"]
    assert sum(p["count"] for p in value["products"] if p["m"] == 1) == 7 * 2 + 1
    assert all(form["product_ms"] > 0 for product in value["products"] for form in product["forms"])
    assert [t["against_first"] for t in value["whole_model"] if t["form"] == "fp32"] == [None, None]
    assert value["whole_model"][1]["against_first"] == {"verdict": None}  # two sessions do not make a comparison
    assert value["gpu"]["measured"] or value["gpu"]["reason"]
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html", "report.md", "result.json"]
    assert json.loads((tmp_path / "report/result.json").read_text())["schema"] == "maskpro-deploy/kernels"
    quick = ("--tokens", 1, "--sessions", 1, "--samples", 2, "--threads", 1, "--forms", "int8,int4")
    out = run("benchmark", "kernels", dense_bundle, *quick).stdout
    assert "against int8" in out
    assert "2:4" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--forms", "fp32,int3"), "--forms 'int3' is not known"),
        (("--tokens", "0"), "--tokens 0"),
        (("--sessions", "0"), "--sessions 0"),
        (("--samples", "1"), "--samples 1"),
    ],
)
def test_wrong_settings_name_the_flag(arguments: tuple[str, ...], said: str, dense_bundle: Path) -> None:
    error, _ = fail("benchmark", "kernels", dense_bundle, *arguments)
    assert isinstance(error, ConfigError)
    assert said in str(error)


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    error, _ = fail("benchmark", "kernels", tmp_path)
    assert isinstance(error, InputError)


def test_a_model_on_the_gpu_is_added_up_where_all_its_shapes_were_measured() -> None:
    cell = {"dtype": "float16", "m": 1, "count": 3, "median_ms": {"dense": 2.0, "cutlass": 1.0}}
    other = {**cell, "count": 1, "median_ms": {"dense": 5.0, "cutlass": 4.0, "cusparselt": 1.0}}
    late = {**cell, "m": 8}
    assert whole_model([cell, other, late], 2) == [{"dtype": "float16", "m": 1, "ms": {"cutlass": 7.0, "dense": 11.0}}]
