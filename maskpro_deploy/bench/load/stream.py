"""What OpenAI-compatible servers answer: streams of server-sent events, whole completions, errors.

One event may carry several tokens or none (the first chunk of a chat often names the role only, the last the token counts), so
tokens are counted by the server's `usage`; where a server gives none, pieces are counted instead, and the result says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from maskpro_deploy.bench.load.client import Answer, Failure

_DONE = b"[DONE]"


class Stream:
    """Reads the events of one streamed answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._arrivals: list[float] = []
        self._texts: list[str] = []
        self._closing: float | None = None  # an event that ended the answer without text
        self._usage: Mapping[str, Any] = {}
        self._failure: Failure | None = None
        self._finished = False

    def feed(self, chunk: bytes, now: float) -> None:
        """Take bytes that came at `now`."""
        for data in self._events(chunk):
            if data == _DONE:
                self._finished = True
            else:
                self._take(data, now)

    def _events(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the lines that are complete; comments and other fields are skipped."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()

    def _take(self, data: bytes, now: float) -> None:
        try:
            value = json.loads(data)
        except ValueError:
            self._fail("bad answer", f"an event that is no JSON: {data[:80]!r}")
            return
        if not isinstance(value, dict):
            self._fail("bad answer", f"an event that is no object: {data[:80]!r}")
            return
        if value.get("error"):
            self._fail("error in stream", _message(value))
            return
        if isinstance(value.get("usage"), dict):
            self._usage = value["usage"]
        for choice in value.get("choices") or ():
            text, said, ends = _piece(choice)
            self._texts.append(text)
            self._finished = self._finished or ends
            if text or (said and not ends):
                self._arrivals.append(now)
            elif ends:
                self._closing = now

    def _fail(self, kind: str, message: str) -> None:
        self._failure = self._failure or Failure(kind=kind, message=message)

    def answer(self) -> Answer:
        """The whole, once the server has closed the answer."""
        tokens = _count(self._usage, "completion_tokens")
        if self._closing is not None and tokens is not None and len(self._arrivals) < tokens:
            self._arrivals.append(self._closing)  # the last token has no text: one that ends the text, say
        if self._failure is None and not self._finished:
            self._fail("cut off", "the stream ended before the answer did")
        return Answer(
            arrivals_s=self._arrivals,
            input_tokens=_count(self._usage, "prompt_tokens"),
            output_tokens=tokens,
            text="".join(self._texts),
            failure=self._failure,
        )


def _piece(choice: Any) -> tuple[str, bool, bool]:
    """Text of a choice in an event, whether it can stand for a token, and whether it ends the answer."""
    if not isinstance(choice, dict):
        return "", False, False
    ends = choice.get("finish_reason") is not None
    if "delta" not in choice:
        text = choice.get("text")
        return (text if isinstance(text, str) else ""), isinstance(text, str), ends
    delta = choice["delta"] if isinstance(choice["delta"], dict) else {}
    parts = [delta.get(name) for name in ("reasoning_content", "reasoning", "content")]
    text = "".join(p for p in parts if isinstance(p, str))
    return text, isinstance(delta.get("content"), str) and "role" not in delta, ends


def read_whole_answer(raw: bytes, now: float) -> Answer:
    """An answer that came in one piece at `now`."""
    try:
        value = json.loads(raw)
        choice = value["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
    except (ValueError, KeyError, IndexError, TypeError):
        return Answer(failure=Failure(kind="bad answer", message=f"no completion: {raw[:80]!r}"))
    usage = value.get("usage") or {}
    return Answer(
        arrivals_s=(now,),
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        text=str(text),
        streamed=False,
    )


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None


def read_refusal(status: int, raw: bytes) -> Answer:
    """What a server says instead of an answer."""
    try:
        message = _message(json.loads(raw))
    except ValueError:
        message = raw[:200].decode(errors="replace").strip().partition("\n")[0]
    return Answer(failure=Failure(kind=f"http {status}", message=message or f"HTTP {status}"))


def _message(value: Any) -> str:
    error = value.get("error", value) if isinstance(value, dict) else value
    text = error.get("message", error) if isinstance(error, dict) else error
    return str(text).strip().partition("\n")[0][:300]
