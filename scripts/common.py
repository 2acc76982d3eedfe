"""What the scripts share: the path, the command line, commands in processes of their own, the load of the machine, turns of arms.

A script imports it first: that puts the tree that the script belongs to at the beginning of `sys.path`. It needs nothing but the
standard library, so that the workers of a script can run in environments without this package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MASKPRO = (sys.executable, "-m", "maskpro_deploy")  # the command line of this tree: run it with `environment()`
CASES = ROOT / "tests" / "cases"

sys.path.insert(0, str(ROOT))


def use_test_modules() -> None:
    """Make the modules that tests share (`tests/helpers`, `tests/cases`) importable."""
    sys.path[1:1] = [str(ROOT / "tests" / "helpers"), str(CASES)]


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script, as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process that imports this package from this tree, and some more."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def run_command(command: Sequence[str], *, accept: Collection[int] = (0,), env: Mapping[str, str] | None = None) -> str:
    """What a command wrote to stdout.

    Args:
        command: the program and its arguments.
        accept: the exit codes that are no failure.
        env: its variables; by default those of `environment()`.

    Raises:
        SystemExit: if it ended with another exit code; with the end of what it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env or environment(), check=False)
    if done.returncode not in accept:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def make_environments(folder: Path, packages: Mapping[str, Sequence[str]]) -> Iterator[Path]:
    """The Python of each environment in a folder, by name; one that is missing is made with its packages."""
    for name, requirements in packages.items():
        python = folder / name / "bin" / "python"
        if not python.exists():
            venv.create(folder / name, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True, stdout=sys.stderr)
        yield python


@contextmanager
def show_load() -> Iterator[None]:
    """Print the load of the machine before and after what is measured."""
    for moment in ("before", "after"):
        print(f"load {moment}: {' '.join(f'{v:.2f}' for v in os.getloadavg())} on {os.cpu_count()} cores", flush=True)
        if moment == "before":
            yield


def take_turns(arms: Collection[str], rounds: int) -> Iterator[tuple[int, str]]:
    """The number of a round and an arm, for all rounds; every second round goes through the arms backwards."""
    for number in range(rounds):
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            yield number, name


def time_call(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios of two arms, each round compared with itself."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def show_figures(figures: Mapping[str, object]) -> None:
    """Print one figure a line."""
    for name, value in figures.items():
        print(f"{name}: {value}")


def show_json(result: object) -> None:
    """Print the last line of a script: its result as one JSON object."""
    print(json.dumps(result, allow_nan=False))
