"""The load generator: sends requests by the timetable or the concurrency it is given, and records what became of each.

Everything runs on one event loop with the garbage collector at rest. The generator watches itself: the *lag* of an open loop
(actual minus scheduled send time), the delay of the event loop (a beat every 10 ms that comes late), and the clocks. In an open
loop latencies count from the *scheduled* time, so that a generator or server that falls behind cannot hide it; in a closed loop
from the actual one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import select
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from maskpro_deploy.bench.arms import Clock, ClockWatch, frozen_gc
from maskpro_deploy.bench.load.client import Answer, Client, Failure, Record, Recording, Request, describe_error
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load, OpenLoop, Seed, draw_arrivals
from maskpro_deploy.errors import ConfigError, check_range
from maskpro_deploy.system.progress import SILENT, Progress

BEAT_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much to send."""

    requests: int | None = 50  # so many; None: as many as `duration_s` allows
    duration_s: float | None = None  # requests are sent for so long; those under way at its end are waited for
    warmup: int = 4  # requests sent and forgotten before
    timeout_s: float = 120.0  # a request that takes longer has failed

    def __post_init__(self) -> None:
        if (self.requests is None) == (self.duration_s is None):
            raise ConfigError("give either a number of requests (--num-prompts) or a time (--duration).")
        check_range("--num-prompts", self.requests, least=1)
        check_range("--duration", self.duration_s, above=0)
        check_range("--warmup", self.warmup, least=0)
        check_range("--timeout", self.timeout_s, above=0)


Source = Callable[[Seed], Request]


@dataclass(slots=True)
class _Run:
    """The state of one sub-run."""

    client: Client
    clock: Clock
    progress: Progress
    amount: Amount
    count: int | None
    started: float = 0.0
    records: list[Record] = field(default_factory=list)

    def now(self) -> float:
        return self.clock() - self.started

    async def send(self, index: int, request: Request, scheduled_s: float | None) -> None:
        """Send one request and record it; nothing that the client raises gets out."""
        sent = self.clock()
        answer = await ask(self.client, request, self.amount.timeout_s)
        done = self.clock()
        start = self.started
        pieces = answer.arrivals_s
        self.records.append(
            Record(
                index=index,
                scheduled_s=scheduled_s,
                sent_s=sent - start,
                done_s=done - start,
                arrivals_s=tuple(t - start for t in pieces),
                input_tokens=answer.input_tokens if answer.input_tokens is not None else request.input_len,
                output_tokens=answer.output_tokens if answer.output_tokens is not None else len(pieces) if answer.streamed else 0,
                counted=answer.output_tokens is not None,
                streamed=answer.streamed,
                failure=answer.failure,
            )
        )
        self._report()

    def _report(self) -> None:
        """How far it is: by requests, or by time where their number is not known."""
        answers = len(self.records)
        if self.count is not None:
            self.progress.update(answers, self.count, f"{answers} answers")
        elif self.amount.duration_s is not None:
            self.progress.update(min(self.now(), self.amount.duration_s), self.amount.duration_s, f"{answers} answers")


async def ask(client: Client, request: Request, timeout_s: float) -> Answer:
    """One request's answer, a failure where the client raises or takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            answer = await client(request)
    except TimeoutError:
        return Answer(failure=Failure(kind="timeout", message=f"no whole answer within {timeout_s:g} s"))
    except Exception as e:  # whatever a client raises, this request was not answered
        return Answer(failure=Failure(kind=type(e).__name__, message=describe_error(e)))
    if answer.failure is None and not answer.arrivals_s:
        return Answer(failure=Failure(kind="empty answer", message="the answer holds no token"))
    return answer


async def run_load(
    client: Client,
    source: Source,
    load: Load,
    amount: Amount,
    *,
    seed: Seed = (0,),
    session: int = 0,
    block: int = 0,
    position: int = 0,
    clock: Clock = time.perf_counter,
    wall: Clock = time.time,
    progress: Progress = SILENT,
) -> Recording:
    """Put a load on a client and record it.

    `source` makes each request of `seed` and its index; `seed` makes the timetable too. The recording repeats `session`, `block`
    and `position`. The client has to use the same `clock`; `progress` is updated after each request.
    """
    await _warm_up(client, [source((*seed, 1, i)) for i in range(amount.warmup)], load, amount.timeout_s)
    times = _make_timetable(load, amount, seed)
    count = len(times) if times is not None else amount.requests
    prepared = [source((*seed, 0, i)) for i in range(count)] if count is not None else None
    run = _Run(client, clock, progress, amount, count)
    beats: list[float] = []
    watch = ClockWatch(clock, wall)
    with frozen_gc() if gc.isenabled() else nullcontext():  # who measures in a loop freezes once for all
        beating = asyncio.create_task(_beat(beats, clock))
        run.started = clock()
        try:
            if times is not None and prepared is not None:
                await _open_loop(run, prepared, times)
            else:
                assert isinstance(load, ClosedLoop)
                requests = iter(prepared) if prepared is not None else (source((*seed, 0, i)) for i in itertools.count())
                await _closed_loop(run, requests, load.concurrency, amount.duration_s)
            duration = run.now()
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
    return Recording(
        records=tuple(sorted(run.records, key=lambda r: r.index)),
        duration_s=duration,
        beats_s=tuple(beats),
        clock_jump=watch.find_jump(),
        session=session,
        block=block,
        position=position,
    )


def check_amount(load: Load, amount: Amount) -> None:
    """Refuse what no timetable can be made of, all requests at once for some time, with a `ConfigError`."""
    if isinstance(load, OpenLoop) and math.isinf(load.rate) and amount.requests is None:
        raise ConfigError("--request-rate inf sends all requests at once: give their number (--num-prompts), not a --duration.")


def _make_timetable(load: Load, amount: Amount, seed: Seed) -> list[float] | None:
    """When to send in an open loop; None for a closed one."""
    if not isinstance(load, OpenLoop):
        return None
    check_amount(load, amount)
    if amount.requests is not None:
        count = amount.requests
    else:
        assert amount.duration_s is not None
        count = max(1, round(load.rate * amount.duration_s))
    return [float(t) for t in draw_arrivals(load, count, seed)]


async def _warm_up(client: Client, requests: list[Request], load: Load, timeout_s: float) -> None:
    """Send requests and forget them; as many at a time as a closed loop will, so that its connections are open."""
    at_once = load.concurrency if isinstance(load, ClosedLoop) else 1
    for i in range(0, len(requests), at_once):
        await asyncio.gather(*(ask(client, request, timeout_s) for request in requests[i : i + at_once]))


async def _open_loop(run: _Run, requests: list[Request], times: list[float]) -> None:
    """Send each request at its time, whatever became of those before."""
    async with asyncio.TaskGroup() as group:
        for index, (request, due) in enumerate(zip(requests, times, strict=True)):
            while (wait := due - run.now()) > 0:
                await asyncio.sleep(wait)
            group.create_task(run.send(index, request, due))


async def _closed_loop(run: _Run, requests: Iterator[Request], concurrency: int, duration_s: float | None) -> None:
    """Keep so many requests under way until they are used up or the time is over."""
    numbered = enumerate(requests)

    async def worker() -> None:
        while duration_s is None or run.now() < duration_s:
            try:
                index, request = next(numbered)
            except StopIteration:
                return
            await run.send(index, request, None)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


async def _beat(beats: list[float], clock: Clock) -> None:
    """Wake every 10 ms and note how late that was."""
    while True:
        due = clock() + BEAT_S
        await asyncio.sleep(BEAT_S)
        beats.append(clock() - due)


def make_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for a load generator.

    epoll counts whole milliseconds and rounds up, which would send every request up to 1 ms late. An epoll descriptor can itself
    be waited for, and `select` counts microseconds.
    """
    if sys.platform != "linux":
        return asyncio.SelectorEventLoop()

    class FineSelector(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < 1024:  # all that select can take
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(FineSelector())


def allow_many_connections() -> None:
    """Let this process open as many files as it may: each request under way is one, and the usual limit is 1024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems call a limit infinite that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
