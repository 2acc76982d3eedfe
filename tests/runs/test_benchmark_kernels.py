from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cases import fail, run, run_json

from maskpro_deploy.bench.kernels.measure import KernelCase
from maskpro_deploy.bench.kernels.result import KernelResult
from maskpro_deploy.bench.products.measure import ModelProducts, sum_whole_model
from maskpro_deploy.bench.roofline import Arithmetic, Bandwidth, measure_bandwidth
from maskpro_deploy.errors import ConfigError, FormatError, InputError, Interrupted
from maskpro_deploy.runs.output import RunFolder
from maskpro_deploy.targets.products import FORMS, FP32, SPARSE, Gemm, OpenForm, Product, draw_weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 48), (36, 20)])  # 36 rows make no whole blocks: one scale a column
def test_each_form_multiplies_with_its_weights(form: str, shape: tuple[int, int]) -> None:
    gemm = Gemm(form=form, k=shape[0], n=shape[1])
    x = np.random.default_rng(0).standard_normal((3, gemm.k), dtype=np.float32)
    outputs = Product(gemm, copies=2, threads=1).call(x)()
    for seed, found in enumerate(outputs):
        integers, scale = draw_weights(gemm, seed)
        expected = x @ (integers * scale)
        assert np.abs(found - expected).max() <= (1e-5 if form in (FP32, SPARSE) else 0.03) * np.abs(expected).max()


def test_forms_hold_the_same_numbers_and_the_sparse_one_two_of_every_four() -> None:
    same = [draw_weights(Gemm(form=form, k=64, n=8), 0) for form in (FP32, "int8", "int4")]
    assert all((a == same[0][0]).all() and (s == same[0][1]).all() for a, s in same)
    sparse, _ = draw_weights(Gemm(form=SPARSE, k=64, n=8), 0)
    assert ((sparse.reshape(16, 4, 8) != 0).sum(axis=1) <= 2).all()
    assert (sparse != 0).any()


def test_a_form_tells_how_far_its_product_is_off() -> None:
    case = KernelCase(k=64, n=48, m=3, count=2, copies=2)
    assert OpenForm(FP32, 1, lambda: None).error(case) < 1e-5
    assert OpenForm("int8", 1, lambda: None).error(case) < 0.03


def test_kernels_of_a_bundle_are_one_json_object_and_three_files(
    dense_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskpro_deploy.runs.kernels.measure_bandwidth", partial(measure_bandwidth, buffer_bytes=4 << 20))
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


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's ceilings are not measured, which takes seconds."""
    where = "maskpro_deploy.runs.kernels"
    bandwidth = Bandwidth(
        bytes_per_s=1e10, read_bytes_per_s=1e10, copy_bytes_per_s=1e10, threads=1, buffer_bytes=1, method="given"
    )
    monkeypatch.setattr(f"{where}.measure_bandwidth", lambda threads: bandwidth)
    monkeypatch.setattr(f"{where}.measure_onnxruntime", lambda threads: Arithmetic(operations_per_s=1e10, method="given"))


@pytest.fixture
def quick(dense_bundle: Path, tmp_path: Path, known_machine: None) -> tuple[object, ...]:
    """A short run into a folder."""
    settings = ("--forms", "fp32,int8", "--sessions", 2, "--samples", 4, "--threads", 1)
    return ("benchmark", "kernels", dense_bundle, *settings, "--out", tmp_path / "report")


def stop_after(saves: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt the run once it has been saved so many times."""
    save, seen = RunFolder.save, iter(range(1, 1000))

    def interrupted(self: RunFolder, result: KernelResult) -> None:
        save(self, result)
        if next(seen) == saves:
            raise KeyboardInterrupt

    patch.setattr(RunFolder, "save", interrupted)


def samples_of(value: dict[str, Any]) -> dict[tuple[int, int, int], list[float]]:
    return {(p["m"], p["k"], p["n"]): p["forms"][0]["samples"]["seconds"] for p in value["products"]}


def test_an_interrupted_run_loses_the_case_it_was_at_and_no_more(
    quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*quick, "--tokens", "1,2")
    with monkeypatch.context() as patch:
        stop_after(13, patch)  # a session has 5 shapes at 2 M, and is saved again at its end: the second one, after 2 cases
        error, _ = fail(*arguments)
    assert isinstance(error, Interrupted)
    assert "--resume" in str(error)
    state = json.loads((tmp_path / "report/result.json").read_text())
    assert (state["finished"], state["cpu_finished"], state["sessions"]) == (False, False, 1)
    before = samples_of(state)
    assert sorted(map(len, before.values())) == [2] * 8 + [4] * 2
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["result.json"]
    error, _ = fail(*arguments)
    assert "--force" in str(error)
    value = run_json(*arguments, "--resume")
    assert (value["finished"], value["sessions"], len(value["earlier"])) == (True, 2, 1)
    after = samples_of(value)
    assert all(len(found) == 4 for found in after.values())
    assert all(after[case][: len(found)] == found for case, found in before.items())
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.html", "report.md", "result.json"]
    assert "Goes on with a run of" in (tmp_path / "report/report.md").read_text()
    again = run_json(*arguments, "--resume")
    assert samples_of(again) == after  # there is nothing left to do


def test_append_adds_sessions_and_tokens_and_goes_on_after_an_interrupt(
    quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*quick, "--tokens", "1,2")
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        fail(*quick, "--tokens", "2,3", "--append")
    value = run_json(*quick, "--tokens", "2,3", "--resume")
    counts = {m: {len(found) for (at, _, _), found in samples_of(value).items() if at == m} for m in (1, 2, 3)}
    assert counts == {1: {4}, 2: {8}, 3: {4}}
    assert {t["m"] for t in value["whole_model"]} == {1, 2, 3}
    assert value["valid"] is True


def test_what_a_gpu_found_is_kept_and_the_cpu_is_not_measured_again(
    quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {
        "dtype": "int8",
        "m": 1,
        "n": 2,
        "k": 3,
        "failed": "",
        "wrong": "",
        "refused": {},
        "against_dense": {},
        "median_ms": {},
    }
    found = {
        "measured": True,
        "device": "a GPU",
        "refused": {},
        "cells": [cell],
        "planned": 2,
        "break_even": [],
        "whole_model": [],
    }
    models = []

    def measure_on_gpu(model: ModelProducts) -> dict[str, Any]:
        models.append(model)
        if len(models) == 1:
            model.save({**found, "cells": [cell, {**cell, "failed": "no memory"}]})
            raise KeyboardInterrupt
        return found if len(models) == 2 else {"measured": False, "reason": "torch sees no CUDA device"}

    monkeypatch.setattr("maskpro_deploy.runs.kernels.measure_on_gpu", measure_on_gpu)
    fail(*quick, "--tokens", 1)
    state = json.loads((tmp_path / "report/result.json").read_text())
    assert (state["finished"], state["cpu_finished"]) == (False, True)
    value = run_json(*quick, "--tokens", 1, "--resume")
    assert (models[1].earlier, models[1].device) == ([cell], "a GPU")  # what failed is tried again
    assert value["gpu"] == found
    assert samples_of(value) == samples_of(state)
    assert run_json(*quick, "--tokens", "1", "--resume")["gpu"] == found  # the GPU is gone, its figures are not


def test_other_settings_are_not_gone_on_with(quick: tuple[object, ...]) -> None:
    run(*quick, "--tokens", 1)
    for changed, said in (
        (("--tokens", "1,2"), "tokens is [1, 2], and was [1]"),
        (("--forms", "fp32"), "the forms are fp32, and were fp32,int8"),
        (("--threads", "2"), "threads is 2, and was 1"),
    ):
        error, _ = fail(*quick, "--tokens", 1, *changed, "--resume")
        assert isinstance(error, InputError)
        assert said in str(error)


def test_only_a_result_of_this_kind_is_gone_on_with(quick: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    for text, said in (
        ('{"schema": "maskpro-deploy/benchmark", "version": 2, "kind": "serve"}', "`benchmark kernels`"),
        ('{"schema": "maskpro-deploy/kernels", "version": 2, "products": [{}]}', "damaged: KeyError"),
    ):
        (tmp_path / "report/result.json").write_text(text)
        error, _ = fail(*quick, "--tokens", 1, "--append")
        assert isinstance(error, FormatError)
        assert said in str(error)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume",), "--resume needs --out"),
        (("--forms", "fp32,int3"), "--forms int3 is not known"),
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
    assert sum_whole_model([cell, other, late], 2) == [{"dtype": "float16", "m": 1, "ms": {"cutlass": 7.0, "dense": 11.0}}]
