"""The servers that a load is put on: a URL as it is, a bundle served by a child process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from maskpro_deploy.errors import InputError, MachineError

# addresses that only this machine reaches
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_READY = re.compile(r"^serving (?P<name>.+) at (?P<url>https?://\S+)/v1 ")
_START_S = 600.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to measure, as the report calls it; `bundle` is what it serves, if it was started here."""

    name: str
    url: str
    bundle: Path | None = None


def is_url(target: str) -> bool:
    """Whether a target is a server that runs already."""
    return "://" in target


@contextlib.contextmanager
def running_targets(targets: Sequence[str], options: Sequence[str], *, last_first: bool = False) -> Iterator[list[Target]]:
    """Targets - URLs and bundles - that answer, for as long as the `with` block lasts; `options` are those of `serve`.

    Raises:
        InputError: a target is neither a URL nor a bundle.
        MachineError: a server did not start.
    """
    with contextlib.ExitStack() as stack:
        running = []
        named = list(zip(targets, _name_targets(targets), strict=True))
        for target, name in named[::-1] if last_first else named:
            bundle = None if is_url(target) else Path(target)
            url = target if bundle is None else stack.enter_context(serving_bundle(bundle, options))
            running.append(Target(name=name, url=url, bundle=bundle))
        yield running[::-1] if last_first else running


def _name_targets(targets: Sequence[str]) -> list[str]:
    """Folder names and URLs without their scheme; numbered where they are the same."""
    names = [t.split("://", 1)[1].rstrip("/") if is_url(t) else Path(t).resolve().name for t in targets]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names


@contextlib.contextmanager
def serving_bundle(bundle: Path, options: Sequence[str]) -> Iterator[str]:
    """`maskpro-deploy serve` on a free port of the loopback interface, in a process of its own.

    What is measured does not depend on the defaults that a model's authors recommend, unless `options` ask for them.
    """
    from maskpro_deploy.manifest import Manifest

    Manifest.load(bundle)  # what is not a bundle shows before a process is started
    own = ["--port", "0", "--generation-config", "none"]
    command = [sys.executable, "-m", "maskpro_deploy", "serve", str(bundle), *own, *options]
    environment = {k: v for k, v in os.environ.items() if k != "MASKPRO_API_KEY"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    log = _Log(process)
    try:
        yield _wait_for_url(process, log, bundle)
    finally:
        _stop(process)
        log.close()


class _Log:
    """What a server says, read to the end, so that it never waits for a reader; only the last lines are kept.

    `url` is given once the server answers; None if it ended before.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: deque[str] = deque(maxlen=20)
        self.url: Queue[str | None] = Queue()
        self._process = process
        self._thread = threading.Thread(target=self._read, name="maskpro-server-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip())
            if match := _READY.match(line):
                self.url.put(match["url"])
        self.url.put(None)

    def close(self) -> None:
        """The process has ended."""
        self._thread.join(_STOP_S)
        assert self._process.stderr is not None
        self._process.stderr.close()


def _wait_for_url(process: subprocess.Popen[str], log: _Log, bundle: Path) -> str:
    """The URL, once the server answers; InputError or MachineError if it ended before, by its exit code."""
    try:
        url = log.url.get(timeout=_START_S)
    except Empty:
        raise MachineError(f"{bundle} was not served within {_START_S:g} s.") from None
    if url is not None:
        return url
    code = process.wait()
    errors = [line.removeprefix("error: ") for line in log.lines if line]
    message = f"{bundle} cannot be served (exit code {code}): {' '.join(errors[-3:]) or 'no reason was given.'}"
    raise InputError(message) if code == InputError.exit_code else MachineError(message)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
