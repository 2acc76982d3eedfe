"""The GPU's memory through NVIDIA's bindings, over a driver that is compiled for the test and keeps this machine's memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskpro_deploy.extras import missing

ROOT = Path(__file__).resolve().parents[2]
# runs in a process of its own: bindings look for the driver once
CHECKS = """
import ctypes, threading
import numpy as np
from maskpro_deploy.errors import MachineError
from maskpro_deploy.runtime.cuda_device import CudaDevice
from maskpro_deploy.runtime.device import HostDevice, Memory

driver = ctypes.CDLL("libcuda.so.1")
gpu = CudaDevice()
assert (gpu.name, gpu.compute_capability, gpu.stream) == ("Host GPU", "sm89", 0x7FFF00000001)
memory = Memory(gpu)

# what is copied, cut and joined is what the host's own memory gives
rng = np.random.default_rng(0)
source = rng.integers(0, 255, (6, 40), np.uint8)
found = []
for device in (gpu, HostDevice()):
    a, b = device.allocate(240), device.allocate(300)
    device.upload(a, source.T.copy().T)
    device.zero(b, 300)
    device.copy(b + 7, 50, a + 3, 40, 20, 6)
    device.copy(b, 50, a, 40, 0, 6)
    out = np.empty(300, np.uint8)
    device.download(out, b)
    found.append(out)
    device.free(a), device.free(b)
assert (found[0] == found[1]).all() and found[0].any()
assert driver.host_live() == 0

# made in one thread, used in another
results = []
def use():
    block = memory.take(1000)
    gpu.upload(block.address, np.arange(10))
    out = np.empty(10, np.int64)
    gpu.download(out, block.address)
    results.append(out.tolist())
    gpu.download(np.empty(5000, np.int64), memory.take(40000).address)
thread = threading.Thread(target=use)
thread.start(), thread.join()
assert results == [list(range(10))]

# memory that is short: idle blocks go first, then it is said
free = gpu.free_bytes()
big = memory.take(9 << 20)
del big
other = memory.take(12 << 20)
try:
    memory.take(12 << 20)
except MachineError as e:
    print(e)
del other

graph = gpu.capture(lambda: gpu.zero(memory.take(10).address, 10))
gpu.launch(graph), gpu.launch(graph)
assert driver.host_launches() == 2
gpu.discard(graph)
print("no graph:", gpu.capture(lambda: gpu.wait()))  # waiting cannot be recorded
del memory
assert driver.host_live() == 0, driver.host_live()
print("done")
"""


@pytest.mark.skipif(bool(missing("native")), reason="cuda-bindings is not installed")
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")
def test_memory_threads_and_graphs(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    source = Path(__file__).with_name("host_driver.c")
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CHECKS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the Host GPU has no memory left for 13 MB" in done.stdout
    assert "--max-num-seqs" in done.stdout
    assert "no graph: None" in done.stdout
    assert "decode steps run without a CUDA graph: cuStreamSynchronize failed: refused" in done.stderr
    assert done.stdout.endswith("done\n")
