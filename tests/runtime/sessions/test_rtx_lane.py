"""What TensorRT-RTX's plug-in is given: a fitting engine by its EPContext file, else the graph with one profile."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from engine_files import engine_file

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.errors import FormatError, InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Manifest, file_entry
from maskpro_deploy.runtime import SessionConfig, open_session
from maskpro_deploy.runtime.sessions import rtx_lane
from maskpro_deploy.runtime.sessions.rtx_lane import choose_input, why_not_loadable

PROFILE = {
    "input_ids": [[1, 1], [1, 32], [4, 32]],
    "attention_mask": [[1, 1], [1, 32], [4, 95]],
    "past_key_values.0.key": [[1, 2, 0, 8], [1, 2, 0, 8], [4, 2, 63, 8]],
}
ENGINE = dataclasses.replace(
    engine_file(
        dtype="fp32", settings={"profiles": [{"name": "mixed:4x32", "shapes": PROFILE}]}, ep_context="engines/x_ctx.onnx"
    ),
    library="tensorrt-rtx",
    library_version="1.7.1.116",
    target="sm89",
)


@pytest.fixture
def bundle(sparse_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with an engine of TensorRT-RTX and its wrapper, on a machine with that version in the plug-in."""
    monkeypatch.setattr(rtx_lane, "read_library_version", lambda: "1.7.1")
    monkeypatch.setattr(rtx_lane, "compute_capability", lambda: "sm89")
    folder = Path(shutil.copytree(sparse_bundle, tmp_path / "bundle"))
    (folder / "engines").mkdir()
    for file in (ENGINE.file, str(ENGINE.ep_context)):
        (folder / file).write_bytes(b"x")
    save(folder, ENGINE)
    return folder


def save(folder: Path, engine: EngineFile) -> None:
    manifest = Manifest.load(folder, engines=False)
    files = [f for f in manifest.files if not f.path.startswith("engines/")]
    entries = (file_entry(folder, folder / file) for file in (engine.file, str(engine.ep_context)))
    dataclasses.replace(manifest, engines=(engine,), files=(*files, *entries)).save(folder)


def choose(folder: Path, wanted: str | None = None) -> rtx_lane.PluginInput:
    manifest = Manifest.load(folder, engines=False)
    return choose_input(folder, manifest, manifest.graph, wanted)


def test_a_fitting_engine_is_run_by_its_wrapper(bundle: Path) -> None:
    chosen = choose(bundle)
    assert chosen.model == bundle / str(ENGINE.ep_context)
    assert chosen.profile["input_ids"][2] == (4, 32)
    assert chosen.options.keys() == {"nv_runtime_cache_path"}
    assert chosen.rewrite == "ORT_DISABLE_ALL"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"library": "tensorrt"}, "it is one of tensorrt, and --provider tensorrt-rtx runs those of tensorrt-rtx"),
        ({"library_version": "1.8.0"}, "it was built with tensorrt-rtx 1.8.0, and 1.7.1 is installed"),
        ({"target": "sm120"}, "it was built for sm120, and this GPU is sm89"),
        ({"ep_context": None}, "it has no EPContext file: build it again"),
    ],
)
def test_another_engine_gives_way_to_the_graph_and_says_why_if_it_was_asked_for(
    bundle: Path, changes: dict[str, str], reason: str
) -> None:
    engine = dataclasses.replace(ENGINE, **changes)
    assert why_not_loadable(engine, "1.7.1", "sm89") == reason
    if engine.ep_context is not None:
        save(bundle, engine)
        chosen = choose(bundle)
        assert chosen.model == bundle / "model.onnx"
        assert "input_ids:1x1," in chosen.options["nv_profile_min_shapes"]
        with pytest.raises(MachineError, match=f"cannot run that engine: {reason}"):
            choose(bundle, engine.file)


def test_a_damaged_engine_and_an_unknown_one_are_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no engine other\.engine"):
        choose(bundle, "other.engine")
    (bundle / ENGINE.file).write_bytes(b"y")
    with pytest.raises(FormatError, match="SHA-256"):
        choose(bundle)


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_plain_words(sparse_bundle: Path) -> None:
    with pytest.raises(MachineError) as caught:
        open_session(sparse_bundle, SessionConfig(provider="tensorrt-rtx"))
    assert str(caught.value).splitlines() == [
        "--provider tensorrt-rtx needs an NVIDIA GPU, and there is none here.",
        "Run on the CPU: --provider cpu.",
    ]
