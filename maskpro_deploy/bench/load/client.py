"""What is sent, what comes back, what a client is, and what is recorded of requests."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one request; times are seconds after the start of its sub-run."""

    index: int  # its place in the order of sending
    scheduled_s: float | None  # when it should have been sent; None in a closed loop
    sent_s: float  # when it was sent
    done_s: float  # when nothing more was to come
    arrivals_s: tuple[float, ...] = ()  # when the pieces of the answer came
    input_tokens: int | None = None  # by the server's count, or as sent where the server does not count; None if neither is known
    output_tokens: int = 0  # by the server's count, or the number of pieces
    counted: bool = False  # whether the server counted the output
    streamed: bool = True  # whether the answer came piece by piece
    failure: Failure | None = None  # why it has no answer, or None

    @property
    def since_s(self) -> float:
        """The time from which its latency counts."""
        return self.sent_s if self.scheduled_s is None else self.scheduled_s

    @property
    def lag_s(self) -> float:
        return 0.0 if self.scheduled_s is None else self.sent_s - self.scheduled_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One sub-run."""

    records: tuple[Record, ...]  # of all requests, in the order of sending
    duration_s: float  # from the start to the end of the last request
    beats_s: tuple[float, ...] = ()  # how late each beat of the event loop came
    clock_jump: str | None = None  # in words, if the clocks went apart; None if they did not
    session: int = 0  # how many times the servers had been restarted before
    block: int = 0  # the block of a comparison it belongs to, and `position` its place in it
    position: int = 0  # see `block`
