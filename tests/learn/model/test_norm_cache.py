"""Norms of layers' inputs between runs: the same bits with and without them, and nothing that is damaged is believed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskpro_deploy.learn.model import norm_cache
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.norm_cache import NormCache
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm


class Setup:
    """The tiny model, its layers, calibration tokens, and how often norms were computed."""

    def __init__(self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self.computed = folder, cache / "norms", 0
        generator = torch.Generator().manual_seed(0)
        self.batches = [torch.randint(0, 320, (size, 16), generator=generator) for size in (4, 3)]
        real = norm_cache.whole_model_norms

        def count(*args: Any) -> dict[str, Tensor]:
            self.computed += 1
            return real(*args)

        monkeypatch.setenv("MASKPRO_CACHE", str(cache))
        monkeypatch.setattr(norm_cache, "whole_model_norms", count)
        self.real = real

    def model(self, dtype: torch.dtype = torch.float32) -> LearningModel:
        return LearningModel(load_causal_lm(self.folder, dtype))

    def norms(
        self, sha256: str = "weights", dtype: torch.dtype = torch.float32, batches: Sequence[Tensor] | None = None,
        include: str | None = None, **settings: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        model = self.model(dtype)
        model.model.config.update(settings)
        layers = prunable_layers(model.model, NMPattern(2, 4), include, None)
        return NormCache(sha256)(model, layers, batches or self.batches)

    def file(self) -> Path:
        (found,) = self.cache.iterdir()
        return found


@pytest.fixture
def setup(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tiny_checkpoint, tmp_path / "cache", monkeypatch)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_kept_norms_are_the_computed_ones_bit_for_bit(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = setup.norms()
    assert "earlier run" not in caplog.text
    second = setup.norms()
    assert setup.computed == 1
    assert "the norms of the inputs of 14 layers are those of an earlier run" in caplog.text
    model = setup.model()
    plain = setup.real(model, prunable_layers(model.model, NMPattern(2, 4), None, None), setup.batches)
    assert equal(first, second)
    assert equal(first, plain)
    assert all(x.dtype == torch.float32 for x in second.values())


def test_whatever_decides_on_the_norms_makes_others_of_them(setup: Setup) -> None:
    other = [setup.batches[0], setup.batches[1].flip(0)]
    together = [torch.cat(setup.batches)]  # the same tokens in one batch add up in another order
    changes: list[dict[str, Any]] = [
        {}, {"sha256": "others"}, {"dtype": torch.bfloat16}, {"batches": other}, {"batches": together}, {"include": "mlp"},
        {"rms_norm_eps": 1e-3},
    ]  # fmt: skip
    for count, change in enumerate(changes, start=1):
        setup.norms(**change)
        assert setup.computed == count, change
        setup.norms(**change)
        assert setup.computed == count, change


def test_where_a_model_stands_does_not_matter(setup: Setup) -> None:
    setup.norms()
    setup.norms(_name_or_path="elsewhere")
    assert setup.computed == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_layers(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path, metadata={"format": norm_cache.FORMAT, "sha256": norm_cache._hash(tensors)})


def no_hash(path: Path) -> None:
    save_file(load_file(path), path, metadata={"format": norm_cache.FORMAT})


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, other_layers, no_hash])
def test_a_damaged_file_is_computed_again_and_replaced(setup: Setup, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    first = setup.norms()
    whole = setup.file().read_bytes()
    damage(setup.file())
    assert setup.file().read_bytes() != whole
    assert equal(setup.norms(), first)
    assert setup.computed == 2
    assert sum("is damaged" in r.message for r in caplog.records) == 1
    assert equal(load_file(setup.file()), load_file_of(whole, setup.cache.parent))
    assert equal(setup.norms(), first)
    assert setup.computed == 2


def load_file_of(data: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "whole.safetensors").write_bytes(data)
    return load_file(folder / "whole.safetensors")


def test_a_folder_that_cannot_be_written_to_costs_time_only(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.cache.parent.mkdir()
    setup.cache.write_text("a file in the folder's place")
    assert equal(setup.norms(), setup.norms())
    assert setup.computed == 2
    assert "were not kept" in caplog.text


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.norm_cache import NormCache
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm
model = LearningModel(load_causal_lm(Path(sys.argv[1]), torch.float32))
layers = prunable_layers(model.model, NMPattern(2, 4), None, None)
tokens = torch.arange(64).view(4, 16)
sys.stdin.readline()
norms = [NormCache(f"run {i}")(model, layers, [tokens]) for i in range(8)]
print(json.dumps([hashlib.sha256(b"".join(n[k].numpy().tobytes() for k in sorted(n))).hexdigest() for n in norms]))
"""


def test_two_processes_at_once_come_to_the_same_norms(tiny_checkpoint: Path, setup: Setup) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tiny_checkpoint)]
    root = Path(__file__).resolve().parents[3]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) for _ in range(2)]
    for process in both:  # both are started before either goes on
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    hashes = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert len({h for found in hashes for h in found}) == 1
    assert len(list(setup.cache.iterdir())) == 8  # no working folder is left
    assert all(norm_cache._hash(load_file(path)) for path in setup.cache.iterdir())
