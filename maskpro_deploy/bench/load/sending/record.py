"""What is recorded of requests."""

from __future__ import annotations

from dataclasses import dataclass

from maskpro_deploy.bench.load.sending.client import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one request; times are seconds after the start of its sub-run.

    Attributes:
        index: its place in the order of sending.
        scheduled_s: when it should have been sent; None in a closed loop.
        sent_s: when it was sent.
        done_s: when nothing more was to come.
        arrivals_s: when the pieces of the answer came.
        input_tokens: by the server's count, or as sent where the server does not count; None if neither is known.
        output_tokens: by the server's count, or the number of pieces.
        counted: whether the server counted the output.
        streamed: whether the answer came piece by piece.
        failure: why it has no answer, or None.
    """

    index: int
    scheduled_s: float | None
    sent_s: float
    done_s: float
    arrivals_s: tuple[float, ...] = ()
    input_tokens: int | None = None
    output_tokens: int = 0
    counted: bool = False
    streamed: bool = True
    failure: Failure | None = None

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
    """One sub-run.

    Attributes:
        records: of all requests, in the order of sending.
        duration_s: from the start to the end of the last request.
        beats_s: how late each beat of the event loop came.
        clock_jump: in words, if the clocks went apart; None if they did not.
        session: how many times the servers had been started anew before.
        block: the block of a comparison it belongs to, and `position` its place in it.
        position: see `block`.
    """

    records: tuple[Record, ...]
    duration_s: float
    beats_s: tuple[float, ...] = ()
    clock_jump: str | None = None
    session: int = 0
    block: int = 0
    position: int = 0
