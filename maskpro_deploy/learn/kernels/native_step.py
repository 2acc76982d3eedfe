"""The step of the logits on a CPU, as native code: `native_step.c`, compiled for this machine at first use.

Operation by operation a step makes some hundred passes over its numbers, each a vector or two of arithmetic between a load and a
store; as one loop it makes one. torch.compile does not help on a CPU: it vectorises nothing that mixes float16 and bfloat16.

The code for a pattern is kept in the cache folder. Its name has a hash of all that decides on it (source, flags, compiler, this
CPU's features), as a home folder may be shared by unlike machines, and one of its bytes: a damaged file is never loaded. Where
there is no compiler, or it fails, torch does it, which is logged once.

Shapes: `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import network
from maskpro_deploy.learn.kernels.contract import Chunk, ChunkStep
from maskpro_deploy.learn.kernels.optimizer import HALF_BITS, LEVELS, first_bound
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import cache_folder

log = logging.getLogger(__name__)

_MAX_MASKS = 8  # of a group, to be written out one by one; a recursion goes over more
MAX_GROUP = 16  # weights in it: the recursion's numbers have to stay in a core's cache
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_OWN_CPU = "-march=native"  # not all compilers know it everywhere
_TIMEOUT_S = 60.0
_THREAD_WEIGHTS = 1 << 15  # fewer are not worth another thread


class _Arguments(ctypes.Structure):
    """`chunk` in `native_step.c`."""

    _fields_ = (
        ("grad", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("is_float32", ctypes.c_ssize_t),
        ("logits", ctypes.c_void_p), ("second", ctypes.c_void_p),
        ("logits_stride", ctypes.c_ssize_t), ("second_stride", ctypes.c_ssize_t),
        ("first", ctypes.c_void_p), ("first_stride", ctypes.c_ssize_t),
        ("dither", ctypes.c_void_p), ("dither_stride", ctypes.c_ssize_t),
        ("packed", ctypes.c_void_p), ("groups", ctypes.c_ssize_t), ("begun", ctypes.c_ssize_t),
        *((name, ctypes.c_float) for name in ("beta2", "one_less_beta2", "carry", "one_less_beta1", "scale", "levels")),
    )  # fmt: skip


class NativeStep:
    """A `ChunkStep` in native code, divided among as many threads as torch has; their number changes no bit.

    Weights that are neither bfloat16 nor float32, and strided ones, go to the step `otherwise`.
    """

    moved_by = "native"

    def __init__(self, pattern: NMPattern, library: ctypes.CDLL, otherwise: ChunkStep) -> None:
        self._m, self._otherwise, self._step = pattern.m, otherwise, library.step
        self._step.restype, self._step.argtypes = None, [ctypes.c_void_p]

    def __call__(self, chunk: Chunk) -> Tensor:
        grad, weight, logits, dither = chunk.grad, chunk.weight, chunk.logits, chunk.dither
        first, second = chunk.moments.first, chunk.moments.second
        if grad.dtype == torch.float32:  # rewards of layers have more bits than the weights
            weight = weight.float()
        known = grad.dtype == weight.dtype and weight.dtype in (torch.bfloat16, torch.float32)
        rows = all(x.stride(1) == 1 for x in (logits, first, second, dither))
        if not (known and rows and grad.is_contiguous() and weight.is_contiguous()):
            return self._otherwise(chunk)
        groups = logits.shape[1]
        packed = torch.empty(-(-groups * self._m // 8), dtype=torch.uint8)
        beta1, beta2 = chunk.betas
        bound = first_bound(beta1, beta2)
        arguments = _Arguments(
            grad=grad.data_ptr(), weight=weight.data_ptr(), is_float32=weight.dtype == torch.float32,
            logits=logits.data_ptr(), logits_stride=logits.stride(0), first=first.data_ptr(), first_stride=first.stride(0),
            second=second.data_ptr(), second_stride=second.stride(0), dither=dither.data_ptr(), dither_stride=dither.stride(0),
            packed=packed.data_ptr(), groups=groups, beta2=beta2, one_less_beta2=1 - beta2, carry=beta1 * bound / LEVELS,
            one_less_beta1=1 - beta1, scale=float(chunk.scale), levels=LEVELS / bound * (1 << HALF_BITS),
        )  # fmt: skip

        threads = min(torch.get_num_threads(), groups * self._m // _THREAD_WEIGHTS)
        if threads > 1:
            _together(self._step, arguments, threads)
        else:
            self._step(ctypes.addressof(arguments))
        return packed


def native_step(pattern: NMPattern, otherwise: ChunkStep) -> ChunkStep:
    """The step in native code, or the given one where there can be none."""
    library = load(pattern) if pattern.m <= MAX_GROUP else None
    return otherwise if library is None else NativeStep(pattern, library, otherwise)


@functools.cache
def load(pattern: NMPattern) -> ctypes.CDLL | None:
    """The code for a pattern of up to `MAX_GROUP` weights, built if need be; None where that fails. Decided once a process."""
    compiler = _compiler()
    if compiler is None:
        log.warning("no C compiler found (CC, cc, gcc, clang): learning steps take longer.")
        return None
    code = source(pattern)
    try:
        try:
            return _load_cached(pattern, compiler, code)
        except OSError as e:  # no such folder can be made or written, or code there may not run
            log.info("native code is not kept: %s", e)
            with tempfile.TemporaryDirectory() as folder:
                return ctypes.CDLL(str(_build(compiler, code, Path(folder))))
    except (OSError, subprocess.SubprocessError) as e:
        log.warning("the step could not be compiled (%s): learning steps take longer.", _in_short(e))
        return None


def source(pattern: NMPattern) -> str:
    """The C text for a pattern: `native_step.c` behind the macros that it speaks of."""
    places = range(pattern.m)
    masks = pattern.all_masks().tolist() if pattern.num_masks <= _MAX_MASKS else []

    def each(mask: list[bool], if_kept: str, if_dropped: str, joint: str) -> str:
        return joint.join(f"{if_kept if mask[i] else if_dropped}[{i}]" for i in places)

    products = [each(mask, "keep", "drop", " * ") for mask in masks]
    sums = [each(mask, "kept", "dropped", " + ") for mask in masks]
    parts = [" + ".join(f"part[{s}]" for s, mask in enumerate(masks) if mask[i]) or "0" for i in places]
    macros = {"M": str(pattern.m), "N": str(pattern.n), "EACH_WEIGHT(X)": " ".join(f"X({i}, {p})" for i, p in enumerate(parts))}
    macros["NETWORK(X)"] = " ".join(f"X({i}, {j})" for i, j in network(pattern.m))
    if masks:
        macros["EACH_MASK(X)"] = " ".join(f"X({s}, {p}, {a})" for s, (p, a) in enumerate(zip(products, sums, strict=True)))
    text = Path(__file__).with_name("native_step.c").read_text(encoding="utf-8")
    return "".join(f"#define {name} {value}\n" for name, value in macros.items()) + text


def _together(step: Any, arguments: _Arguments, threads: int) -> None:
    """Let several threads work on a chunk, without Python's lock: torch's own, which are awake, else some of Python's."""
    if parallel := _openmp():
        parallel(step, ctypes.addressof(arguments), threads, 0)
        return
    others = [_pool().submit(step, ctypes.addressof(arguments)) for _ in range(threads - 1)]
    step(ctypes.addressof(arguments))
    for other in others:
        other.result()


@functools.cache
def _openmp() -> Any:
    """`GOMP_parallel` of the OpenMP that torch has loaded: it calls a function in all threads of a team. Or None."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.restype, parallel.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return parallel


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "native-step")


def _compiler() -> list[str] | None:
    """The compiler's command."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


def _load_cached(pattern: NMPattern, compiler: list[str], code: str) -> ctypes.CDLL:
    """From the cache folder, built there if need be."""
    folder = cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")  # and so decide what code is run here
    version = _run([*compiler, "--version"]).partition("\n")[0]
    decides = _hash("\n".join((code, *_FLAGS, _OWN_CPU, *compiler, version, _cpu())).encode())
    name = f"step-{pattern.n}-{pattern.m}-{decides}"
    for kept in folder.glob(f"{name}-*.so"):
        with suppress(FileNotFoundError):
            if kept.stem == f"{name}-{_hash(kept.read_bytes())}":
                return ctypes.CDLL(str(kept))
            kept.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = _build(compiler, code, Path(scratch))
        final = folder / f"{name}-{_hash(built.read_bytes())}.so"
        built.replace(final)  # whoever builds it at the same time comes to a whole file, too
    return ctypes.CDLL(str(final))


def _build(compiler: list[str], code: str, folder: Path) -> Path:
    """Compile into a folder, for this very CPU where the compiler can do that."""
    text, built = folder / "step.c", folder / "step.so"
    text.write_text(code, encoding="utf-8")
    command = [*compiler, *_FLAGS, str(text), "-o", str(built), "-lm"]
    try:
        _run([*command, _OWN_CPU])
    except subprocess.CalledProcessError:
        _run(command)
    return built


def _run(command: list[str]) -> str:
    """Run a command that may hang; its output."""
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=_TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0], out, err)
    return out


def _cpu() -> str:
    """What the compiler sees of this CPU."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        return "\n".join(x for x in lines if x.startswith(("vendor", "cpu family", "model", "flags", "Features", "CPU")))
    return f"{platform.machine()} {platform.processor()}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _in_short(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} took more than {error.timeout:g} s"
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return " ".join(said.split())[:200]
