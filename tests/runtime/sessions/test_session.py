"""Opening bundles: providers, refusals, and the model that comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from maskpro_deploy.backends.onnxruntime_.sessions import resolve_provider
from maskpro_deploy.errors import ConfigError, FormatError, InputError, MachineError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.runtime import OrtSession
from maskpro_deploy.runtime.sessions.session import SessionConfig, open_session


def test_greedy_is_the_likeliest_token_each_time(session: OrtSession) -> None:
    tokens = [10, 20, 30]
    for _ in range(6):
        tokens.append(int(np.argmax(session.logits(np.array([tokens]))[0, -1])))
    assert session.greedy([10, 20, 30], 6) == tokens[3:]
    assert session.greedy([1], 0) == []


def test_logits_are_single_floats_for_every_token(session: OrtSession) -> None:
    logits = session.logits(np.array([[1, 2, 3], [4, 5, 6]]))
    assert logits.shape == (2, 3, session.shape.vocab_size)
    assert logits.dtype == np.float32


def test_providers_in_use_are_told(session: OrtSession) -> None:
    assert session.providers == ("CPUExecutionProvider",)


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert resolve_provider("auto", ["CPUExecutionProvider"]) == "cpu"
    assert resolve_provider("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"]) == "cuda"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_an_error_and_no_silent_fall_back(sparse_bundle: Path, provider: str) -> None:
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this onnxruntime has GPU providers")
    with pytest.raises(MachineError, match="maskpro-deploy\\[gpu\\]"):
        open_session(sparse_bundle, SessionConfig(provider=provider))


def test_a_provider_that_fails_to_start_is_an_error_when_asked_for_and_a_warning_else(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """onnxruntime may list a provider and then go on without it, as with a GPU build on a machine without a GPU."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a GPU provider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(MachineError, match="CUDAExecutionProvider"):
        open_session(sparse_bundle, SessionConfig(provider="cuda"))
    assert open_session(sparse_bundle, SessionConfig(threads=1)).providers == ("CPUExecutionProvider",)
    assert "running on the CPU" in caplog.text


def test_a_half_precision_bundle_runs_and_agrees(tiny_sparse: Path, tmp_path: Path, session: OrtSession) -> None:
    export(tiny_sparse, tmp_path / "fp16", ExportConfig(dtype="fp16"))
    half = open_session(tmp_path / "fp16", SessionConfig(provider="cpu", threads=1))
    tokens = np.array([[3, 4, 5, 6]])
    assert half.logits(tokens).dtype == np.float32
    np.testing.assert_allclose(half.logits(tokens), session.logits(tokens), atol=0.1)
    assert half.greedy([3, 4, 5, 6], 3) == session.greedy([3, 4, 5, 6], 3)


def test_bf16_on_a_cpu_is_refused_with_the_reason(tiny_sparse: Path, tmp_path: Path) -> None:
    export(tiny_sparse, tmp_path / "bf16", ExportConfig(dtype="bf16"))
    with pytest.raises(InputError, match="bf16 kernels"):
        open_session(tmp_path / "bf16", SessionConfig(provider="cpu"))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="bundle"):
            open_session(folder)


def changed(source: Path, target: Path, **graph: str) -> Path:
    """A copy of a bundle with another `graph` entry in its manifest."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["graph"].update(graph)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_a_graph_that_is_not_of_its_form_is_refused(sparse_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not the 'static' form"):
        open_session(changed(sparse_bundle, tmp_path / "b", form="static"))


@pytest.mark.parametrize("form", ["static", "gqa"])
def test_every_form_answers_alike_alone_and_as_a_sibling(
    form: str, tiny_sparse: Path, tmp_path: Path, session: OrtSession
) -> None:
    for folder, forms in (("first", (form,)), ("second", ("cat", form))):
        export(tiny_sparse, tmp_path / folder, ExportConfig(forms=forms, max_length=64), compare=False)
        own = open_session(tmp_path / folder, SessionConfig(threads=1, form=None if folder == "first" else form))
        assert own.greedy([5, 6, 7], 12) == session.greedy([5, 6, 7], 12)
        assert own.providers == ("CPUExecutionProvider",)


def test_a_form_that_the_bundle_lacks_is_named_with_the_way_to_get_it(sparse_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"--form gqa.*\n.*--forms cat,gqa"):
        open_session(sparse_bundle, SessionConfig(form="gqa"))
    with pytest.raises(ConfigError, match="--form ring"):
        SessionConfig(form="ring")


def test_a_damaged_graph_is_named(sparse_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"onnxruntime cannot load \S+: (?!\[ONNXRuntimeError\])\w"):
        open_session(changed(sparse_bundle, tmp_path / "b", file="tokenizer.json"), SessionConfig(provider="cpu"))


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="--provider quantum"):
        SessionConfig(provider="quantum")
    with pytest.raises(ConfigError, match="--threads"):
        SessionConfig(threads=0)


def test_what_onnxruntime_prints_stays_off_standard_output(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints why a GPU provider fails, before it goes on without it; `--json` must still give one object."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def noisy(*args: object, **options: object) -> object:
        print("*** EP Error ***")
        return real(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noisy)
    open_session(sparse_bundle)
    out, err = capsys.readouterr()
    assert out == ""
    assert "EP Error" in err
