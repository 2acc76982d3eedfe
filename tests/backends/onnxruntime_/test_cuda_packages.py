"""Loading CUDA's libraries for onnxruntime: when it is done, and what of it is seen."""

from __future__ import annotations

import logging

import pytest

from maskpro_deploy.backends.onnxruntime_.sessions import load_cuda_for

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("providers", "wanted"),
    [
        (["CPUExecutionProvider"], 0),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], 1),
        ([("TensorrtExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"], 1),
    ],
)
def test_only_providers_on_a_gpu_load_cuda(monkeypatch: pytest.MonkeyPatch, providers: list[object], wanted: int) -> None:
    calls = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append(1))
    load_cuda_for(providers)
    assert len(calls) == wanted


def test_what_is_missing_is_logged_and_never_printed_among_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13"))
    with caplog.at_level(logging.DEBUG):
        load_cuda_for(["CUDAExecutionProvider"])
    assert capsys.readouterr() == ("", "")
    assert "libcublas.so.13" in caplog.text


def test_an_onnxruntime_that_cannot_load_them_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    load_cuda_for(["CUDAExecutionProvider"])
    assert capsys.readouterr() == ("", "")


def test_the_installed_onnxruntime_takes_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    load_cuda_for(["CUDAExecutionProvider"])
    assert capsys.readouterr() == ("", "")
