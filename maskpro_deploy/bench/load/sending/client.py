"""What is sent, what comes back, and what a client is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from maskpro_deploy.errors import first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request."""

    prompt: str | tuple[int, ...]  # text, or token ids
    output_len: int  # tokens to generate at most
    input_len: int | None = None  # tokens of the prompt, where they are known before it is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request was not answered."""

    kind: str  # few words that failures are counted by, such as "http 503", "timeout", "connection", "cut off"
    message: str  # what the server or the system said, one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered."""

    # when each piece of the answer came, on the clock of the run; one time for an answer that came whole
    arrivals_s: Sequence[float] = ()
    input_tokens: int | None = None  # tokens of the prompt as the server counted them; None if it does not say
    output_tokens: int | None = None  # tokens generated, by the server's count; None if it does not say
    text: str = ""  # the answer
    streamed: bool = True  # whether it came piece by piece: only then is the first arrival the first token
    failure: Failure | None = None  # why it is no answer, or None


class Client(Protocol):
    """Sends a request and waits for all of the answer. It may raise: that is a failure of the request."""

    async def __call__(self, request: Request, /) -> Answer: ...


def describe_error(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.strerror:  # the system's words, without what a library puts around them
        code = error.errno or 0
        return os.strerror(code) if code > 0 else error.strerror
    return first_line(error)
