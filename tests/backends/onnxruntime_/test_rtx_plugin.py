"""TensorRT-RTX's plug-in: options that it knows, plain refusals, and sessions on devices of a plug-in's kind."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from manifests import small_shape

from maskpro_deploy.backends.onnxruntime_ import rtx_plugin
from maskpro_deploy.backends.onnxruntime_.sessions import check_plugin_started, open_graph
from maskpro_deploy.backends.onnxruntime_.tensorrt_provider import whole_profile
from maskpro_deploy.backends.providers import CPU_PROVIDER, RTX_PROVIDER
from maskpro_deploy.errors import MachineError, MissingExtraError
from maskpro_deploy.manifest import Graph
from maskpro_deploy.system import extras

# what the library of onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 has among its strings
RECORDED = {
    "enable_cuda_graph", "nv_detailed_build_log", "nv_length_aux_stream_array", "nv_max_workspace_size", "nv_op_types_to_exclude",
    "nv_profile_index", "nv_profile_max_shapes", "nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_runtime_cache_path",
    "nv_use_sync_gpu_allocator", "nv_weight_streaming_budget",
}  # fmt: skip
MODEL = small_shape(
    num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_size=32, max_length=1024, vocab_size=100, eos_token_ids=(0,)
)
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"


def known_options() -> set[str]:
    """The plug-in's own strings where it is installed, else the recorded ones."""
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        return RECORDED
    library = Path(spec.origin).parent / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    return {m.decode() for m in re.findall(rb"(?<![\w])(?:nv_\w+|enable_cuda_graph)(?=\0)", library.read_bytes())}


def test_every_option_is_known_to_the_plug_in_and_profiles_have_its_format() -> None:
    graph = Graph(file="model.onnx", form="cat", opset=23, dtype="fp16")
    options = rtx_plugin.make_options(whole_profile(MODEL, graph, batch=4, new=64, length=256), Path("/k"))
    assert options.keys() <= known_options()
    assert options["nv_runtime_cache_path"] == "/k"
    for which in ("min", "opt", "max"):  # 'input1:dim1xdimd2...,input2:dim1xdim2...,...', says the library
        assert re.fullmatch(r"([\w.]+:\d+(x\d+)*)(,[\w.]+:\d+(x\d+)*)*", options[f"nv_profile_{which}_shapes"])
    assert "input_ids:4x64," in options["nv_profile_max_shapes"]
    assert rtx_plugin.make_options(None, Path("/k")).keys() == {"nv_runtime_cache_path"}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the plug-in whose library is none, as a loader sees one whose driver is missing."""
    folder = tmp_path / MODULE
    folder.mkdir()
    library = folder / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    library.write_bytes(b"no library")
    (folder / "libtensorrt_rtx.so.1.7.1").write_bytes(b"")
    (folder / "__init__.py").write_text(f"def get_library_path():\n    return {str(library)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(extras.EXTRAS, rtx_plugin.EXTRA, ("onnxruntime", MODULE))
    sys.modules.pop(MODULE, None)
    rtx_plugin._register.cache_clear()
    yield folder
    sys.modules.pop(MODULE, None)
    rtx_plugin._register.cache_clear()


@pytest.mark.usefixtures("broken")
def test_a_plug_in_that_cannot_be_loaded_is_one_plain_error_each_time() -> None:
    for _ in range(2):
        with pytest.raises(MachineError, match=r"cannot load TensorRT-RTX's plug-in: \S*libonnxruntime_providers") as caught:
            rtx_plugin.find_devices()
        assert len(str(caught.value).splitlines()) == 2
        assert "--provider cpu" in str(caught.value)


def test_the_version_is_read_without_loading_anything(broken: Path) -> None:
    assert rtx_plugin.read_library_version() == "1.7.1"
    assert MODULE not in sys.modules
    (broken / "libtensorrt_rtx.so.1.7.1").rename(broken / "tensorrt_rtx_1_8.dll")
    assert rtx_plugin.read_library_version() == "1.8"


def test_a_missing_plug_in_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, rtx_plugin.EXTRA, ("no_such_module",))
    with pytest.raises(MissingExtraError, match=r"pip install 'maskpro-deploy\[tensorrt-rtx-plugin\]'"):
        rtx_plugin.find_devices()


def test_a_session_opens_on_devices_and_one_without_the_plug_in_is_refused(sparse_bundle: Path) -> None:
    """Devices are given as a plug-in's are; the CPU is the one that is everywhere."""
    import onnxruntime

    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == CPU_PROVIDER]
    session = open_graph(sparse_bundle / "model.onnx", devices=devices[:1], threads=1)
    assert session.get_providers() == [CPU_PROVIDER]
    plain = open_graph(sparse_bundle / "model.onnx", threads=1)
    inputs = {
        i.name: np.zeros((1, 2, 0, 8), np.float32) if i.name.startswith("past") else np.array([[1, 2, 3]])
        for i in plain.get_inputs()
    }
    np.testing.assert_array_equal(session.run(["logits"], inputs)[0], plain.run(["logits"], inputs)[0])
    check_plugin_started(session, CPU_PROVIDER)
    with pytest.raises(MachineError, match=f"goes on without {RTX_PROVIDER}"):
        check_plugin_started(session, RTX_PROVIDER)
