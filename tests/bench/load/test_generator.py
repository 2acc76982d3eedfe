from __future__ import annotations

import asyncio
import math

import pytest
from virtual import VirtualLoop, run, steady

from maskpro_deploy.bench.load.client import Answer, Client, Failure, Recording, Request
from maskpro_deploy.bench.load.figures import Figures, Limits, compute_latencies_ms
from maskpro_deploy.bench.load.generator import Amount, make_event_loop, run_load
from maskpro_deploy.bench.load.schedule import ClosedLoop, Load, OpenLoop, draw_arrivals, draw_random_tokens
from maskpro_deploy.errors import ConfigError

SOURCE = draw_random_tokens(range(100), input_len=8, output_len=5)
CONSTANT = OpenLoop(rate=10.0, burstiness=math.inf)


def record(load: Load, amount: Amount, make: object = steady) -> Recording:
    async def go(loop: VirtualLoop) -> Recording:
        client: Client = make(loop)  # type: ignore[operator]
        return await run_load(client, SOURCE, load, amount, clock=loop.time, wall=loop.wall)

    return run(go)


def test_an_open_loop_sends_by_its_timetable_however_slow_the_server_is() -> None:
    load = OpenLoop(rate=50.0)
    recording = record(load, Amount(requests=40), lambda loop: steady(loop, first_s=30.0))
    due = draw_arrivals(load, 40, (0,)).tolist()
    assert [r.scheduled_s for r in recording.records] == due
    assert [r.sent_s for r in recording.records] == pytest.approx(due, abs=1e-6)
    assert Figures([recording]).to_json()["max_concurrent_requests"] == 40


def test_a_closed_loop_keeps_its_concurrency_and_the_server_sets_the_rate() -> None:
    recording = record(ClosedLoop(concurrency=3), Amount(requests=30))
    figures = Figures([recording])
    assert figures.to_json()["max_concurrent_requests"] == 3
    assert figures.duration_s == pytest.approx(10 * 0.14)  # 3 at a time, 0.1 s and 4 times 0.01 s each
    assert [r.scheduled_s for r in recording.records] == [None] * 30
    assert figures.values_ms("ttft") == pytest.approx([100.0] * 30)
    assert figures.values_ms("tpot") == pytest.approx([10.0] * 30)
    assert figures.values_ms("itl") == pytest.approx([10.0] * 120)
    assert figures.values_ms("e2el") == pytest.approx([140.0] * 30)
    assert figures.invalid_reasons(Limits()) == []


def test_latency_in_an_open_loop_counts_from_the_scheduled_time() -> None:
    def stalls(loop: VirtualLoop) -> Client:
        inner, calls = steady(loop), iter(range(100))

        async def client(request: Request) -> Answer:
            if next(calls) == 3:
                loop.now += 1.0  # the whole process stands still
            return await inner(request)

        return client

    recording = record(CONSTANT, Amount(requests=20, warmup=0), stalls)
    late = [r for r in recording.records if r.lag_s > 0.01]
    assert [r.index for r in late] == list(range(4, 13))
    assert late[0].lag_s == pytest.approx(0.9)
    assert compute_latencies_ms(late[0])["ttft"] == pytest.approx(1000.0)  # 900 ms late and 100 ms of the server
    (reason,) = Figures([recording]).invalid_reasons(Limits())
    assert "the generator fell behind" in reason
    assert Figures([recording]).invalid_reasons(Limits(max_lag_ms=2000.0)) == []


def test_a_closed_loop_that_is_held_up_is_invalid() -> None:
    def blocks(loop: VirtualLoop) -> Client:
        inner = steady(loop)

        async def client(request: Request) -> Answer:
            answer = await inner(request)
            loop.now += 0.2
            return answer

        return client

    (reason,) = Figures([record(ClosedLoop(concurrency=2), Amount(requests=20), blocks)]).invalid_reasons(Limits())
    assert "held up" in reason


def test_failures_are_counted_by_kind_and_make_the_run_invalid() -> None:
    def shaky(loop: VirtualLoop) -> Client:
        inner, calls = steady(loop), iter(range(100))

        async def client(request: Request) -> Answer:
            match next(calls) % 5:
                case 0:
                    raise ValueError("no luck\nat all")
                case 1:
                    await asyncio.sleep(1e6)
                case 2:
                    return Answer(failure=Failure(kind="http 500", message="broken"))
                case 3:
                    return Answer(output_tokens=0)
            return await inner(request)

        return client

    figures = Figures([record(ClosedLoop(concurrency=1), Amount(requests=10, warmup=0, timeout_s=5.0), shaky)])
    assert figures.failures == {"ValueError": 2, "timeout": 2, "http 500": 2, "empty answer": 2}
    assert len(figures.answered) == 2
    (reason,) = figures.invalid_reasons(Limits())
    assert reason.startswith("8 of 10 requests failed")
    assert "no luck" in reason
    assert "at all" not in reason
    value = figures.to_json()
    assert (len(figures.answered), figures.failed) == (2, 8)
    assert sum(bool(e) for e in value["errors"]) == 8


def test_a_server_that_answers_nothing_gives_no_figures() -> None:
    async def refuses(request: Request) -> Answer:
        return Answer(failure=Failure(kind="http 503", message="busy"))

    figures = Figures([record(CONSTANT, Amount(requests=5), lambda loop: refuses)])
    assert figures.invalid_reasons(Limits()) == ["none of 5 requests was answered (5 x http 503: busy)."]
    assert figures.to_json()["median_ttft_ms"] is None


def test_a_clock_that_jumps_makes_the_run_invalid() -> None:
    def sleeps(loop: VirtualLoop) -> Client:
        inner, calls = steady(loop), iter(range(100))

        async def client(request: Request) -> Answer:
            if next(calls) == 10:
                loop.wall_offset += 30.0
            return await inner(request)

        return client

    (reason,) = Figures([record(ClosedLoop(concurrency=1), Amount(requests=20), sleeps)]).invalid_reasons(Limits())
    assert "the clock jumped" in reason


def test_warm_up_requests_are_sent_and_forgotten_and_have_other_prompts() -> None:
    seen: list[object] = []

    def remembers(loop: VirtualLoop) -> Client:
        inner = steady(loop)

        async def client(request: Request) -> Answer:
            seen.append(request.prompt)
            return await inner(request)

        return client

    recording = record(ClosedLoop(concurrency=2), Amount(requests=6, warmup=3), remembers)
    assert len(recording.records) == 6
    assert len(seen) == len(set(map(str, seen))) == 9


def test_a_time_instead_of_a_number() -> None:
    closed = record(ClosedLoop(concurrency=2), Amount(requests=None, duration_s=1.0, warmup=0))
    assert len(closed.records) == 16  # 8 rounds of 0.14 s begin within a second
    assert closed.duration_s == pytest.approx(8 * 0.14)
    assert len(record(CONSTANT, Amount(requests=None, duration_s=3.0)).records) == 30
    with pytest.raises(ConfigError, match="inf sends all requests at once"):
        record(OpenLoop(rate=math.inf), Amount(requests=None, duration_s=1.0))


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"requests": 0}, "--num-prompts 0"),
        ({"requests": None}, "--duration"),
        ({"requests": 5, "duration_s": 1.0}, "--duration"),
        ({"requests": None, "duration_s": 0.0}, "--duration 0"),
        ({"warmup": -1}, "--warmup -1"),
        ({"timeout_s": 0.0}, "--timeout 0"),
    ],
)
def test_wrong_amounts_name_the_flag(settings: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        Amount(**settings)  # type: ignore[arg-type]


def test_timers_of_the_real_loop_are_finer_than_a_millisecond() -> None:
    async def naps() -> list[float]:
        loop, late = asyncio.get_running_loop(), []
        for _ in range(100):
            due = loop.time() + 0.0003
            await asyncio.sleep(0.0003)
            late.append(loop.time() - due)
        return late

    with asyncio.Runner(loop_factory=make_event_loop) as runner:
        late = sorted(runner.run(naps()))
    assert late[0] >= 0.0
    assert late[len(late) // 10] < 0.0005  # epoll alone would be 0.7 ms late each time; a busy machine may be for some
