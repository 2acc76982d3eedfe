from __future__ import annotations

import numpy as np
import pytest

from maskpro_deploy.bench import roofline
from maskpro_deploy.bench.roofline import ARITHMETIC, MEMORY, Load

BANDWIDTH = roofline.Bandwidth(
    bytes_per_s=1e9, read_bytes_per_s=1e9, copy_bytes_per_s=1e9, threads=1, buffer_bytes=1, method="given"
)
GEMM = roofline.Arithmetic(operations_per_s=1e10, method="given")


def test_bandwidth_is_measured_and_says_how() -> None:
    found = roofline.measure_bandwidth(threads=2, buffer_bytes=8 << 20)
    assert found.read_bytes_per_s is not None
    assert found.copy_bytes_per_s is not None
    assert found.bytes_per_s == max(found.read_bytes_per_s, found.copy_bytes_per_s) > 0
    assert "2 threads over buffers of 8 MiB" in found.method


def test_bandwidth_that_cannot_be_measured_is_none() -> None:
    found = roofline.measure_bandwidth(threads=1, buffer_bytes=1 << 55)
    assert found.bytes_per_s is None
    assert "not enough memory" in found.method
    assert roofline.compute_floor([Load(bytes=1000, operations=10)], found, GEMM) is None


def test_arithmetic_is_measured_and_says_how() -> None:
    found = roofline.measure_arithmetic(size=128)
    assert found.operations_per_s > 1e7
    assert found.method == "numpy, fp32 matrices of 128 x 128, best of 5"
    a = np.ones((64, 64), np.float32)
    assert "by hand on 2 threads" in roofline.measure_arithmetic(2, lambda: a @ a, size=64, method="by hand").method


def test_the_floor_is_the_longer_of_bytes_and_operations() -> None:
    by_bytes = roofline.compute_floor([Load(bytes=4e6, operations=1e7)], BANDWIDTH, GEMM)
    assert by_bytes == roofline.Floor(seconds=4e-3, bound=MEMORY)
    by_operations = roofline.compute_floor([Load(bytes=4e6, operations=1e8)], BANDWIDTH, GEMM)
    assert by_operations == roofline.Floor(seconds=1e-2, bound=ARITHMETIC)
    assert roofline.compute_floor([Load(bytes=4e6, operations=None)], BANDWIDTH, GEMM) == by_bytes
    assert roofline.compute_floor([Load(bytes=4e6, operations=1e8)], BANDWIDTH, None) == by_bytes
    assert roofline.compute_floor([Load(bytes=None, operations=1e8)], BANDWIDTH, GEMM) is None


def test_floors_of_parts_add_up_and_the_longest_names_the_bound() -> None:
    prefill, step = Load(bytes=4e6, operations=1e8), Load(bytes=4e6, operations=1e7)
    both = roofline.compute_floor([prefill, step], BANDWIDTH, GEMM)
    assert both == roofline.Floor(seconds=pytest.approx(1.4e-2), bound=ARITHMETIC)
    many = roofline.compute_floor([prefill, step, step, step], BANDWIDTH, GEMM)
    assert many is not None
    assert many.bound == MEMORY
