"""A sweep over loads: one server, or two in interleaved blocks of sub-runs.

Two servers are compared as `bench.arms` compares models: they answer the same check requests first, with the same number of
tokens (the same text, where they are said to be the same model), or nothing is measured. Then each load is put on them in
blocks of short sub-runs, A B B A, B A A B, and so on; in a block both get the same prompts and timetables. The interval of the
ratio takes blocks as its unit or, since two processes with the same model differ by some per cent for as long as they live,
sessions: pairs of servers restarted. The first sub-runs of the first server against its second ones in the same blocks are
the self-test: a sound harness sees no difference there.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.bench import environment, stats
from maskpro_deploy.bench.arms import Clock, block_order, frozen_gc
from maskpro_deploy.bench.load.client import Answer, Client, Recording
from maskpro_deploy.bench.load.figures import Figures, Limits, Slo
from maskpro_deploy.bench.load.generator import Amount, Source, ask, check_amount, run_load
from maskpro_deploy.bench.load.point import Point, PointKey
from maskpro_deploy.bench.load.result import LoadResult, ServerFacts
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load
from maskpro_deploy.errors import CheckFailed, ConfigError, check_range
from maskpro_deploy.system.progress import SILENT, Progress

CHECKS = 3  # requests that both servers answer before anything is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server to put a load on."""

    name: str  # how the report calls it
    client: Client  # asks it
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else the report should say of it


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """What to measure."""

    loads: tuple[Load, ...]  # the points of the sweep
    amount: Amount = field(default_factory=Amount)  # how much to send at each point to each server
    # of a comparison; each server has two sub-runs in a block, and its share of the amount in each
    blocks: int = stats.MIN_BLOCKS
    sessions: int = 1  # how many times two servers are restarted; they share the blocks
    slo: Slo | None = None  # bounds that goodput counts by, or None
    limits: Limits = field(default_factory=Limits)  # where a run stops being valid
    same_model: bool = False  # two servers have to answer the check requests with the same text
    seed: int = 0  # of prompts and timetables
    # the smallest difference of interest, as a fraction; it concerns the verdicts only
    least_difference: float = stats.LEAST_DIFFERENCE

    def __post_init__(self) -> None:
        stats.check_least_difference(self.least_difference)
        if not self.loads:
            raise ConfigError("nothing to measure: give --request-rate or --concurrency.")
        for load in self.loads:
            check_amount(load, self.amount)
        check_range("--blocks", self.blocks, least=1, note=f"{stats.MIN_BLOCKS} for a verdict")
        check_range("--sessions", self.sessions, least=1, note=f"{stats.MIN_SESSIONS} for a verdict")

    @property
    def blocks_per_session(self) -> int:
        """Two at least where there are several sessions: both orders in each."""
        return self.blocks if self.sessions == 1 else max(2, -(-self.blocks // self.sessions))

    def share(self, load: Load) -> Amount:
        """What one sub-run of a comparison sends."""
        least = load.concurrency if isinstance(load, ClosedLoop) else 1
        runs, amount = 2 * self.sessions * self.blocks_per_session, self.amount
        return dataclasses.replace(
            amount,
            requests=None if amount.requests is None else max(least, -(-amount.requests // runs)),
            duration_s=None if amount.duration_s is None else amount.duration_s / runs,
            warmup=least if amount.warmup else 0,  # opens the connections; the check requests woke the server
        )


async def run_sweep(
    servers: Sequence[Server],
    source: Source,
    config: LoadConfig,
    *,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    session: int = 0,
    finished: Mapping[PointKey, Point] | None = None,
    on_point: Callable[[Point], None] = lambda point: None,
    clock: Clock = time.perf_counter,
    wall: Clock = time.time,
    progress: Progress = SILENT,
) -> LoadResult:
    """Put all loads on one or two servers, of which the first is compared with the second.

    The result repeats `settings` and `notes`. `session` counts how often the servers have been started again before, and
    `LoadResult.merge` puts sessions together. Points in `finished` are not measured again; `on_point` is told each new one. The
    clients have to use the same `clock`. A `CheckFailed` where the servers answer nothing, or nothing that may be compared.
    """
    if not 1 <= len(servers) <= 2:
        raise ConfigError(f"a load is put on one server, or on two to compare them; not on {len(servers)}.")
    started, before, repeated = clock(), environment.capture(), ("seed", "blocks", "sessions")
    points: list[Point] = []
    clients = {server.name: server.client for server in servers}
    await _check(clients, source, config)
    for index, load in enumerate(config.loads):
        done = (finished or {}).get((session, load.label))
        if done is None:
            part = Part(progress, index, len(config.loads), load.label)
            with frozen_gc():
                done = await _measure(clients, source, load, session, (config.seed, index), config, clock, wall, part)
            on_point(done)
        points.append(done)
    return LoadResult(
        environment={**before, "load_average_1min_after": environment.load_average()},
        config={**(settings or {}), **{name: getattr(config, name) for name in repeated}, **dataclasses.asdict(config.amount)},
        servers=tuple(ServerFacts(name=s.name, facts=s.facts) for s in servers),
        points=tuple(points),
        slo=config.slo,
        limits=config.limits,
        duration_s=clock() - started,
        notes=tuple(notes),
    )


class Part:
    """Progress of one load, or of one session, as a part of the whole."""

    def __init__(self, whole: Progress, index: int, count: int, label: str) -> None:
        self._whole, self._index, self._count, self._label = whole, index, count, label

    def update(self, done: float, total: float, note: str = "") -> None:
        self._whole.update(self._index + done / total, self._count, f"{self._label}, {note}" if note else self._label)

    def close(self) -> None:
        pass


async def _check(clients: Mapping[str, Client], source: Source, config: LoadConfig) -> None:
    """Ask all servers the same before anything is timed; also wakes them up."""
    for i in range(CHECKS if len(clients) > 1 else 1):
        request = source((config.seed, 2**31, 0, i))
        answers: dict[str, Answer] = {}
        for name, client in clients.items():
            answers[name] = await ask(client, request, config.amount.timeout_s)
            if (failure := answers[name].failure) is not None:
                said = f"{name} does not answer a first request: {failure.kind}: {failure.message}"
                raise CheckFailed(f"{said}\nNothing was measured.")
        if len(answers) < 2:
            continue
        (first, a), (second, b) = answers.items()
        both = f"{first} and {second}"
        if a.input_tokens != b.input_tokens:
            counts = f"{a.input_tokens} and {b.input_tokens} tokens in the same prompt"
            raise CheckFailed(f"{both} count {counts}: their tokenizers differ.\nMeasure them in separate runs.")
        if a.output_tokens != b.output_tokens:
            counts = f"{a.output_tokens} and {b.output_tokens} tokens for the same request"
            raise CheckFailed(f"{both} do different amounts of work: {counts}.\nNothing was measured.")
        if config.same_model and a.text != b.text:
            same = f"{both} are said to be the same model, but answer the same request differently"
            raise CheckFailed(f"{same}.\nNothing was measured.")


async def _measure(
    clients: Mapping[str, Client],
    source: Source,
    load: Load,
    session: int,
    seed: tuple[int, ...],
    config: LoadConfig,
    clock: Clock,
    wall: Clock,
    progress: Progress,
) -> Point:
    """One load on all servers."""
    recordings: dict[str, list[Recording]] = {name: [] for name in clients}
    if len(clients) == 1:
        ((name, client),) = clients.items()
        only = await run_load(client, source, load, config.amount, seed=seed, clock=clock, wall=wall, progress=progress)
        return Point(load=load, recordings={name: (only,)})
    amount, first, count = config.share(load), next(iter(clients)), config.blocks_per_session
    for number in range(count):
        block = session * count + number
        for position, name in enumerate(block_order(list(clients), block)):
            half = len(recordings[name]) - 2 * number  # 0 in the first sub-run of a block, 1 in the second
            recordings[name].append(
                await run_load(
                    *(clients[name], source, load, dataclasses.replace(amount, warmup=amount.warmup if number == 0 else 0)),
                    seed=(*seed, block, half),
                    session=session,
                    block=block,
                    position=position,
                    clock=clock,
                    wall=wall,
                )
            )
            progress.update(4 * number + position + 1, 4 * count, f"block {block + 1}")
        if Figures(recordings[first]).answered == []:
            break  # nothing comes back: the point is invalid, and more of it tells no more
    return Point(load=load, recordings={name: tuple(r) for name, r in recordings.items()})
