"""What the doctor finds out, from real sources and from recorded ones of other machines."""

from __future__ import annotations

import os
import stat

import pytest

from maskpro_deploy.doctor import abilities
from maskpro_deploy.doctor.abilities import BASE, tensorrt_lanes
from maskpro_deploy.doctor.hardware import Gpu, cpu_features, find_gpus, parse_gpus
from maskpro_deploy.doctor.machine import examine
from maskpro_deploy.system.extras import EXTRAS

H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", driver="580.1", memory="81559 MiB")
T4 = Gpu(name="Tesla T4", compute_capability="7.5", driver="580.1", memory="15360 MiB")


def test_this_machine_is_healthy_enough_to_run_the_tests():
    found = examine()
    assert found.healthy
    assert {b.name for b in found.base} == set(BASE.values())
    assert all(b.detail[0].isdigit() for b in found.base)
    assert {e.name for e in found.extras} == set(EXTRAS)
    assert [s.name for s in found.steps] == ["demo", "learn", "validate", "export", "build-engine", "serve", "benchmark", "eval"]
    assert found.cores >= 1
    assert found.cache_free_bytes > 0


def test_whatever_is_not_ready_says_what_it_lacks():
    found = examine()
    for item in (*found.base, *found.extras, *found.lanes, *found.steps):
        assert item.ready == (not item.lacks), item


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile\n",
            ("AVX2", "AVX-512", "VNNI", "BF16", "AMX"),
        ),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16 sve\n", ("BF16", "NEON", "SVE", "I8MM")),
        ("flags : fpu sse2\n", ()),
        ("", ()),
    ],
)
def test_cpu_features(tmp_path, text, features):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path / "cpuinfo") == features
    assert cpu_features(tmp_path / "nope") == ()


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    """The program is one that answers as the real one does."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100, 9.0, 580.1, 81559 MiB"\necho "Tesla T4, 7.5, 580.1, 15360 MiB"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_gpus() == (H100, T4)
    assert (H100.sparse_tensor_cores, T4.sparse_tensor_cores) == (True, False)
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert find_gpus() == ()


@pytest.mark.parametrize("text", ["", "No devices were found", "a, b\n", "x, [N/A], 1, 2"])
def test_strange_answers_claim_no_sparse_tensor_cores(text):
    assert not any(g.sparse_tensor_cores for g in parse_gpus(text))


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == ()


@pytest.mark.parametrize(
    ("tensorrt", "gpus", "providers", "ready"),
    [
        (None, (), (), [False, False]),
        ("11.4.0", (H100,), (), [True, False]),
        ("11.4.0", (), (), [False, False]),
        ("10.16.1", (H100,), ("TensorrtExecutionProvider",), [False, True]),
        ("10.16.1", (H100,), ("CPUExecutionProvider",), [False, False]),
        ("10.16.1", (), ("TensorrtExecutionProvider",), [False, False]),
    ],
)
def test_lanes_need_their_version_a_gpu_and_a_provider(monkeypatch, tensorrt, gpus, providers, ready):
    monkeypatch.setattr(abilities, "version", lambda name: tensorrt if name == "tensorrt" else None)
    lanes = tensorrt_lanes(gpus, providers)
    assert [lane.ready for lane in lanes[:2]] == ready
    assert not lanes[2].ready
    assert "tensorrt-rtx" in lanes[2].install


def test_a_gpu_without_sparse_tensor_cores_is_told(monkeypatch):
    monkeypatch.setattr(abilities, "version", lambda name: "11.4.0")
    assert "dense kernels only" in tensorrt_lanes((T4,), ())[0].detail
    assert "dense kernels only" not in tensorrt_lanes((H100,), ())[0].detail


def test_a_broken_or_old_base_package_is_found(monkeypatch):
    monkeypatch.setitem(abilities.BASE, "no_such_module", "no-such-module")
    monkeypatch.setattr(abilities, "lower_bound", lambda name: "99.0" if name == "numpy" else None)
    found = examine()
    assert not found.healthy
    broken = {b.name: b.lacks[0] for b in found.base if not b.ready}
    assert broken.keys() == {"numpy", "no-such-module"}
    assert broken["numpy"] == "is older than 99.0"
    assert "does not import" in broken["no-such-module"]


def test_lower_bounds_come_from_our_own_metadata():
    assert abilities.lower_bound("numpy") == "2.0"
    assert abilities.lower_bound("no-such-package") is None
