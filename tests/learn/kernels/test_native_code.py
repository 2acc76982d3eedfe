"""Native code is built once, privately, from whole files; where it cannot be built learning goes on without it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.distributions.planes import pack, top_of_centred
from maskpro_deploy.learn.kernels import native_code as native
from maskpro_deploy.learn.kernels.contract import Chunk
from maskpro_deploy.learn.kernels.optimizer import Moments, noise
from maskpro_deploy.learn.kernels.site_step import ByChunks, chunk_step
from maskpro_deploy.learn.kernels.weight_step import kept_step
from maskpro_deploy.pattern import NMPattern

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(native._compiler() is None, reason="there is no C compiler on this machine")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, nothing decided yet."""
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    native._warn.cache_clear()
    return tmp_path / "cache" / "native"


def learns(caplog: pytest.LogCaptureFixture) -> tuple[str, list[str]]:
    """Take a step in whatever way there is; which, and what was said."""
    with caplog.at_level(logging.INFO):
        step = chunk_step(conditional_bernoulli(NMPattern(1, 2)), CPU)
    torch.manual_seed(0)
    logits, moments = torch.randn(2, 50).half(), Moments(torch.zeros(2, 50, dtype=torch.int8), torch.zeros(2, 50).bfloat16())
    bits = step(Chunk(torch.randn(100), torch.randn(100), logits, moments, noise((2, 50), 0, CPU), 0.1, (0.9, 0.95)))
    assert torch.equal(bits, pack(top_of_centred(logits, 1)))
    return ByChunks(step).moved_by, [r.getMessage() for r in caplog.records]


@needs_compiler
def test_it_is_built_once_and_privately(fresh: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learns(caplog) == ("native", [])
    (kept,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("it was built again"))
    assert learns(caplog) == ("native", [])
    assert list(fresh.iterdir()) == [kept]


@needs_compiler
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-100] + bytes(100)])
def test_a_damaged_file_is_built_again(fresh: Path, caplog: pytest.LogCaptureFixture, damage: object) -> None:
    learns(caplog)
    (kept,) = fresh.iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # the code that is loaded stays as it is
    kept.write_bytes(damage(whole))  # type: ignore[operator]
    assert learns(caplog) == ("native", [])
    (again,) = fresh.iterdir()
    assert again.stem.endswith(native._hash(again.read_bytes()))


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_trusted(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    assert learns(caplog) == ("native", [f"native code is not kept: others may write to {fresh}"])
    assert not list(fresh.iterdir())


@needs_compiler
def test_a_cache_that_is_no_folder(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh.parent.write_text("a file")
    form, (said,) = learns(caplog)
    assert form == "native"
    assert said.startswith("native code is not kept: ")


@needs_compiler
def test_two_processes_may_build_it_at_once(fresh: Path) -> None:
    code = (
        "from maskpro_deploy.learn.kernels.weight_step import kept_step; from maskpro_deploy.pattern import NMPattern\n"
        "import torch; assert kept_step(NMPattern(1, 2), torch.device('cpu')).moved_by == 'native'"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    assert all(f.stem.endswith(native._hash(f.read_bytes())) for f in fresh.iterdir())


def test_without_a_compiler_torch_does_it(fresh: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.setenv("PATH", "")
    assert learns(caplog) == ("torch", ["no C compiler found (CC, cc, gcc, clang): learning steps take longer."])
    kept_step.cache_clear()
    assert kept_step(NMPattern(1, 2), CPU).moved_by == "torch"
    kept_step.cache_clear()
    assert len(caplog.records) == 1  # what the logits lack the weights lack, too: said once
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no luck >&2; exit 1", "no luck"),
        ("[ $1 = --version ] && exit 0; sleep 60", "took more than 0.5 s"),
        (
            "[ $1 = --version ] && exit 0; while [ $1 != -o ]; do shift; done; echo no library > $2",
            "ELF header|too short",
        ),
    ],
)
def test_a_compiler_that_fails_hangs_or_makes_nonsense(
    fresh: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "_TIMEOUT_S", 0.5)
    form, said = learns(caplog)
    assert form == "torch"
    warned = [s for s in said if s.endswith("learning steps take longer.")]
    assert len(warned) == 1
    assert any(part in warned[0] for part in reason.split("|")), warned
