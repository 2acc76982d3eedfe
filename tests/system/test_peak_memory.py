"""Peak memory of a process: its own, not the one of the process that started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from maskpro_deploy.system.peak_memory import peak_rss

MIB = 2**20


def test_a_peak_stays_after_the_memory_is_given_back() -> None:
    before = peak_rss()
    block = np.ones(before + 64 * MIB, dtype=np.uint8)
    during = peak_rss()
    del block
    assert during >= before + 60 * MIB
    assert peak_rss() >= during - 4 * MIB  # the kernel counts pages in batches


def test_a_process_does_not_inherit_the_peak_of_its_parent() -> None:
    block = np.ones(256 * MIB, dtype=np.uint8)
    code = "from maskpro_deploy.system.peak_memory import peak_rss; print(peak_rss())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < 100 * MIB < block.nbytes < peak_rss()
