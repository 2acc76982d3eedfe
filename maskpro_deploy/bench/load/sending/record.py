"""What is recorded of requests."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.bench.load.sending.client import Failure


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
        """How late it was sent."""
        return 0.0 if self.scheduled_s is None else self.sent_s - self.scheduled_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One sub-run."""

    records: tuple[Record, ...]  # of all requests, in the order of sending
    duration_s: float  # from the start to the end of the last request
    beats_s: tuple[float, ...] = ()  # how late each beat of the event loop came
    clock_jump: str | None = None  # in words, if the clocks went apart; None if they did not
    session: int = 0  # how many times the servers had been started anew before
    block: int = 0  # the block of a comparison it belongs to, and `position` its place in it
    position: int = 0  # see `block`
