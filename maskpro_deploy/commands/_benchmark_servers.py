"""The servers that a load is put on: a URL as it is, a bundle served by a child process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from maskpro_deploy.errors import InputError, MachineError

_READY = re.compile(r"^serving (?P<name>.+) at (?P<url>http://\S+)/v1 ")
_START_S = 600.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure.

    Attributes:
        name: how the report calls it.
        url: where it answers.
        bundle: what it serves, if it was started here.
    """

    name: str
    url: str
    bundle: Path | None = None


def is_url(target: str) -> bool:
    """Whether a target is a server that runs already."""
    return "://" in target


@contextlib.contextmanager
def running_targets(targets: Sequence[str], options: Sequence[str]) -> Iterator[list[Target]]:
    """Targets that answer, for as long as the `with` block lasts; `options` are those of `serve`, for bundles.

    Raises:
        InputError: a target is neither a URL nor a bundle.
        MachineError: a server did not start.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for target, name in zip(targets, _names(targets), strict=True):
            if is_url(target):
                found.append(Target(name=name, url=target))
            else:
                url = stack.enter_context(serving_bundle(Path(target), options))
                found.append(Target(name=name, url=url, bundle=Path(target)))
        yield found


def _names(targets: Sequence[str]) -> list[str]:
    """Folder names and URLs without their scheme; numbered where they are the same."""
    names = [t.split("://", 1)[1].rstrip("/") if is_url(t) else Path(t).resolve().name for t in targets]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names


@contextlib.contextmanager
def serving_bundle(bundle: Path, options: Sequence[str]) -> Iterator[str]:
    """`maskpro-deploy serve` on a free port of the loopback interface, in a process of its own."""
    from maskpro_deploy.manifest import Manifest

    Manifest.load(bundle)  # what is no bundle shows before a process is started
    command = [sys.executable, "-m", "maskpro_deploy", "serve", str(bundle), "--port", "0", *options]
    environment = {k: v for k, v in os.environ.items() if k != "MASKPRO_API_KEY"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield _wait(process, bundle)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[str], bundle: Path) -> str:
    """The URL, once it answers; what the process says is read to the end, so that it never waits for a reader."""
    said: deque[str] = deque(maxlen=20)
    ready: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip())
            if match := _READY.match(line):
                ready.put(match["url"])
        ready.put(None)

    threading.Thread(target=read, name="maskpro-server-log", daemon=True).start()
    try:
        url = ready.get(timeout=_START_S)
    except Empty:
        raise MachineError(f"{bundle} was not served within {_START_S:g} s.") from None
    if url is not None:
        return url
    code = process.wait()
    errors = [line.removeprefix("error: ") for line in said if line]
    message = f"{bundle} cannot be served (exit code {code}): {' '.join(errors[-3:]) or 'no reason was given.'}"
    raise InputError(message) if code == InputError.exit_code else MachineError(message)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
