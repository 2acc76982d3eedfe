"""A line of JSON for every request: who asked what when, how much, and how long it took. Never a text, never a key.

    {"time": "2026-01-31T12:00:00.123Z", "id": "…", "client": "127.0.0.1", "key": "name", "method": "POST",
     "path": "/v1/completions", "status": 200, "seconds": 1.234, "stream": false, "answers": 1, "max_tokens": 64,
     "prompt_tokens": 12, "cached_tokens": 0, "completion_tokens": 34, "finished": ["stop"], "queued_s": 0.001,
     "first_token_s": 0.05}

The fields from `stream` on are of requests that generate. A `status` of null says that the client left before there was an
answer. A request that was refused has the `error` that its client was told; with traces every line has the `trace` of its span.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime.generate.sequence import GenerationSequence

FACTS = "maskpro.facts"  # where a request's scope has what its route knows of it
ERROR = "maskpro.error"  # and the code of the error that its client got
STDERR = "-"
_QUIET = ("/live", "/health", "/metrics", "/ui/status")  # probes would be all that there is to read


class RequestLog:
    """Where the lines go; a file that cannot be written any more loses lines, and no request.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, place: str) -> None:
        self._lock = threading.Lock()
        self._place = place
        self._file = self._open()

    def _open(self) -> TextIO:
        try:
            return sys.stderr if self._place == STDERR else Path(self._place).open("a", encoding="utf-8", buffering=1)
        except OSError as e:
            raise InputError(f"--request-log {self._place} cannot be written: {e.strerror}.") from e

    def reopen(self) -> None:
        """Go on in a new file of the same name, as after a rotation. An InputError if it cannot be opened; no line is lost."""
        made = self._open()
        with self._lock:
            before, self._file = self._file, made
        if before is not sys.stderr:
            with suppress(OSError):
                before.close()

    def write(self, facts: Mapping[str, Any]) -> None:
        """One line, but none for a probe that went well."""
        if is_quiet(facts):
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now, **facts}, ensure_ascii=True, separators=(",", ":"))
        with self._lock, suppress(OSError, ValueError):
            self._file.write(f"{line}\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stderr:
            with suppress(OSError):
                self._file.close()


def is_quiet(facts: Mapping[str, Any]) -> bool:
    """Whether a request is a probe that went well."""
    return facts["path"] in _QUIET and facts["status"] == 200


def describe_answers(
    sequences: list[GenerationSequence], prompt_tokens: int, *, stream: bool, cached_tokens: int = 0
) -> dict[str, Any]:
    """What became of the answers of a request, for its line."""
    starts = [s.times.started - s.times.arrived for s in sequences if s.times.started]
    firsts = [s.times.first_token - s.times.arrived for s in sequences if s.times.first_token]
    return {
        "stream": stream,
        "answers": len(sequences),
        "max_tokens": sequences[0].params.max_tokens if sequences else 0,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "completion_tokens": sum(len(s.tokens) for s in sequences),
        "finished": [s.finish_reason for s in sequences],
        "queued_s": round(max(starts), 4) if starts else None,
        "first_token_s": round(min(firsts), 4) if firsts else None,
    }
