"""Native code for steps on a CPU: C text, compiled for this machine at first use, and run in as many threads as torch has.

The code for a pattern is kept in the cache folder. Its name has a hash of all that decides on it (source, flags, compiler, this
CPU's features), as a home folder may be shared by unlike machines, and one of its bytes: a damaged file is never loaded. Where
there is no compiler, or it fails, torch does the work, which is logged once.
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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from maskpro_deploy.learn.kernels.optimizer import HALF_BITS, LEVELS, first_bound
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.files import cache_folder

log = logging.getLogger(__name__)

MAX_GROUP = 16  # weights in it: more would not stay in a core's first cache
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_OWN_CPU = "-march=native"  # not all compilers know it everywhere
_TIMEOUT_S = 60.0
_THREAD_WEIGHTS = 1 << 15  # fewer are not worth another thread


class AdamConstants(ctypes.Structure):
    """`constants` in `native_numbers.c`."""

    _fields_ = tuple((name, ctypes.c_float) for name in ("beta2", "one_less_beta2", "carry", "one_less_beta1", "levels"))

    @classmethod
    def of(cls, betas: tuple[float, float]) -> AdamConstants:
        """Those of the decays of both moments."""
        beta1, beta2 = betas
        bound = first_bound(beta1, beta2)
        return cls(beta2, 1 - beta2, beta1 * bound / LEVELS, 1 - beta1, LEVELS / bound * (1 << HALF_BITS))


class NativeCode:
    """The code of a file for a pattern. Its function `step` works on a structure that several threads share."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._step = library.step
        self._step.restype, self._step.argtypes = None, [ctypes.c_void_p]

    def run(self, arguments: ctypes.Structure, weights: int) -> None:
        """Work on the arguments until all is done; `weights` says how many threads that is worth. Their number changes no bit."""
        threads = min(torch.get_num_threads(), weights // _THREAD_WEIGHTS)
        if threads > 1:
            _together(self._step, arguments, threads)
        else:
            self._step(ctypes.addressof(arguments))


def native_code(file: str, pattern: NMPattern, macros: Mapping[str, str]) -> NativeCode | None:
    """The code of a C file of this folder, built if need be; None for groups that are too large, and where building fails.

    `macros` are those that the file speaks of, beyond M and N.
    """
    if pattern.m > MAX_GROUP:
        return None
    library = load(f"{Path(file).stem}-{pattern.n}-{pattern.m}", source(file, pattern, macros))
    return None if library is None else NativeCode(library)


def source(file: str, pattern: NMPattern, macros: Mapping[str, str]) -> str:
    """The C text for a pattern: a file behind the macros that it speaks of and what all files share."""
    defined = {"M": str(pattern.m), "N": str(pattern.n), **macros}
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("native_numbers.c", file)]
    return "".join(f"#define {name} {value}\n" for name, value in defined.items()) + "\n".join(texts)


@functools.cache
def load(name: str, code: str) -> ctypes.CDLL | None:
    """C text as a library, built if need be; None where that fails. Decided once a process."""
    compiler = _compiler()
    if compiler is None:
        _warn("no C compiler found (CC, cc, gcc, clang): learning steps take longer.")
        return None
    try:
        try:
            return _load_cached(name, compiler, code)
        except OSError as e:  # no such folder can be made or written, or code there may not run
            log.info("native code is not kept: %s", e)
            with tempfile.TemporaryDirectory() as folder:
                return ctypes.CDLL(str(_build(compiler, code, Path(folder))))
    except (OSError, subprocess.SubprocessError) as e:
        _warn(f"the step could not be compiled ({_in_short(e)}): learning steps take longer.")
        return None


@functools.cache
def _warn(line: str) -> None:
    """Log a warning once a process: what one step lacks, the next one lacks, too."""
    log.warning("%s", line)


def _together(step: Any, arguments: ctypes.Structure, threads: int) -> None:
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


def _load_cached(name: str, compiler: list[str], code: str) -> ctypes.CDLL:
    """From the cache folder, built there if need be."""
    folder = cache_folder() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")  # and so decide what code is run here
    version = _run([*compiler, "--version"]).partition("\n")[0]
    decides = _hash("\n".join((code, *_FLAGS, _OWN_CPU, *compiler, version, _cpu())).encode())
    stem = f"{name}-{decides}"
    for kept in folder.glob(f"{stem}-*.so"):
        with suppress(FileNotFoundError):
            if kept.stem == f"{stem}-{_hash(kept.read_bytes())}":
                return ctypes.CDLL(str(kept))
            kept.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = _build(compiler, code, Path(scratch))
        final = folder / f"{stem}-{_hash(built.read_bytes())}.so"
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
