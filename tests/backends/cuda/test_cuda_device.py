"""The GPU's memory through NVIDIA's bindings, over a driver that is compiled for the test and keeps this machine's memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_engines import engine_bundle_in

from maskpro_deploy.system.extras import missing

ROOT = Path(__file__).resolve().parents[3]
# runs in a process of its own: bindings look for the driver once
CHECKS = """
import ctypes, threading, time
import numpy as np
from maskpro_deploy.errors import MachineError
from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.memory import HostDevice, Memory

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
assert 20 < gpu.time_ms(lambda: time.sleep(0.03)) < 2000 and gpu.time_ms(lambda: None) < 20
print("no graph:", gpu.capture(lambda: gpu.wait()))  # waiting cannot be recorded
del memory
assert driver.host_live() == 0, driver.host_live()
print("done")
"""


# an engine's stand-in on the same driver: the session's caches go through the bindings
SESSION = """
import functools, json, sys
from pathlib import Path
import numpy as np
from library_on_host import Library, VERSION
from maskpro_deploy.runtime import SessionConfig, open_session
from maskpro_deploy.backends.tensorrt_ import executor
from maskpro_deploy.runtime.sessions import native
native.missing = lambda library: [] if library == "tensorrt" else [library]
native.load_library = executor.load_library = lambda name: Library
native.EngineExecutor = functools.partial(executor.EngineExecutor, graphs=False)  # the driver records nothing
session = open_session(Path(sys.argv[1]), SessionConfig(provider="trt-native"))
first = session.forward(np.array([[3, 4, 5], [6, 7, 8]]))[1]
joined = first.select([1]).join(session.forward(np.array([[1, 2]]))[1]).join(first)
steps = session.forward(np.array([[9], [9], [9], [9]]), joined)[0][:, -1]
print(json.dumps([session.greedy([3, 4, 5], 20), steps.argmax(axis=-1).tolist()]))
"""
pytestmark = [
    pytest.mark.skipif(bool(missing("native")), reason="cuda-bindings is not installed"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled driver."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("host_driver.c")
    build = ["gcc", "-w", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source), "-ldl"]
    subprocess.run(build, check=True)
    return folder


def run_on(driver: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that finds the driver."""
    paths = f"{ROOT}:{ROOT / 'tests' / 'helpers'}"
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("form", ["cat", "static"])
def test_a_session_over_the_bindings_gives_onnxruntimes_tokens(driver, form, tiny_sparse, tmp_path, session) -> None:
    bundle = engine_bundle_in(tmp_path / "bundle", form, tiny_sparse)
    greedy, steps = json.loads(run_on(driver, SESSION, str(bundle)).stdout)
    assert greedy == session.greedy([3, 4, 5], 20)
    rows = [[6, 7, 8, 9], [1, 2, 9], [3, 4, 5, 9], [6, 7, 8, 9]]
    assert steps == [int(session.logits(np.array([row]))[0, -1].argmax()) for row in rows]


def test_memory_threads_and_graphs(driver: Path) -> None:
    done = run_on(driver, CHECKS)
    assert "the Host GPU has no memory left for 13 MB" in done.stdout
    assert "--max-num-seqs" in done.stdout
    assert "no graph: None" in done.stdout
    assert "calls run without a CUDA graph: cuStreamSynchronize failed: refused" in done.stderr
    assert done.stdout.endswith("done\n")
