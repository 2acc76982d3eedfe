"""Runs on several processes of this machine, as `torchrun` starts them, and what their first rank prints."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    count: int, arguments: list[str], *, own: dict[int, list[str]] | None = None, environment: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """`python ARGUMENTS` as so many ranks; `own` has more arguments for some of them, `environment` more variables for all."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared = {"WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", **place, **(environment or {})}
    processes = []
    for rank in range(count):
        variables = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
        command = [sys.executable, *arguments, *(own or {}).get(rank, [])]
        processes.append(
            subprocess.Popen(command, env=variables, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return processes


def finish_ranks(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of every rank."""
    ended = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            ended.append((process.returncode, output, errors))
    finally:
        for process in processes:
            process.kill()
    return ended


def run_ranks(count: int, arguments: list[str], environment: dict[str, str] | None = None) -> list[str]:
    """What every rank printed; all have to end well."""
    ended = finish_ranks(start_ranks(count, arguments, environment=environment))
    assert all(code == 0 for code, _, _ in ended), "\n".join(errors for _, _, errors in ended)
    return [output for _, output, _ in ended]
