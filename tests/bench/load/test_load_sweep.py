from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from virtual import VirtualLoop, run, steady

from maskpro_deploy.bench.load.client import Answer, Client, Failure, Request
from maskpro_deploy.bench.load.figures import Slo
from maskpro_deploy.bench.load.generator import Amount
from maskpro_deploy.bench.load.point import Point, PointsFile
from maskpro_deploy.bench.load.result import LoadResult
from maskpro_deploy.bench.load.schedule import ClosedLoop, OpenLoop, draw_random_tokens
from maskpro_deploy.bench.load.summary import describe
from maskpro_deploy.bench.load.sweep import LoadConfig, Server, run_sweep
from maskpro_deploy.bench.results.document import to_markdown
from maskpro_deploy.bench.stats import SLOWER
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError
from maskpro_deploy.reports.benchmarks import build_load_page
from maskpro_deploy.reports.blocks import render

SOURCE = draw_random_tokens(range(100), input_len=8, output_len=4)
CONFIG = LoadConfig(
    loads=(ClosedLoop(concurrency=2), OpenLoop(rate=5.0), OpenLoop(rate=8.0, burstiness=math.inf)),
    amount=Amount(requests=120, warmup=1),
    slo=Slo.parse("ttft:500"),
)
Make = Callable[[VirtualLoop], Client]


def sweep(*servers: Make, config: LoadConfig = CONFIG, **settings: object) -> LoadResult:
    async def go(loop: VirtualLoop) -> LoadResult:
        named = [Server(name=f"server {i}", client=make(loop), facts={"model_id": "m"}) for i, make in enumerate(servers)]
        return await run_sweep(named, SOURCE, config, settings={"output_len": 4}, clock=loop.time, wall=loop.wall, **settings)  # type: ignore[arg-type]

    return run(go)


def noisy(seed: int, slower: float = 1.0) -> Make:
    rng = np.random.default_rng(seed)
    return lambda loop: steady(loop, factor=lambda: slower * float(np.exp(rng.normal(0, 0.02))))


def texts(answer: str, tokens: int = 4) -> Make:
    def make(loop: VirtualLoop) -> Client:
        async def client(request: Request) -> Answer:
            return Answer(arrivals_s=[loop.time() + 0.1], input_tokens=8, output_tokens=tokens, text=answer)

        return client

    return make


def test_a_sweep_of_one_server() -> None:
    result = sweep(noisy(0))
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert value["kind"] == "serve"
    assert value["valid"] is True
    assert [p["mode"] for p in value["points"]] == ["closed", "open", "open"]
    first, second, third = (p["arms"][0] for p in value["points"])
    assert (first["max_concurrency"], first["request_rate"]) == (2, "inf")
    assert (second["request_rate"], second["burstiness"], third["burstiness"]) == (5.0, 1.0, "inf")
    assert all(arm["completed"] == 120 and arm["model_id"] == "m" for arm in (first, second, third))
    assert second["request_throughput"] == pytest.approx(5.0, rel=0.02)
    assert "most goodput (ttft within 500 ms) at concurrency 2" in describe(result).headline
    assert result.points[0].self_test is None


def test_a_slower_server_is_seen_and_an_equal_one_is_not() -> None:
    config = replace(CONFIG, loads=CONFIG.loads[:1])
    (slow,) = sweep(noisy(0, 1.05), noisy(1), config=config).points
    found = slow.compared
    assert {metric: r.verdict for metric, r in found.items() if r} == dict.fromkeys(
        ("ttft", "tpot", "e2el", "request_throughput"), SLOWER
    )
    assert found["e2el"].speedup == pytest.approx(1 / 1.05, rel=0.01)  # type: ignore[union-attr]
    same = sweep(noisy(2), noisy(3), config=config)
    assert same.points[0].compared["e2el"].differs is False  # type: ignore[union-attr]
    assert same.valid
    assert same.points[0].self_test.differs is False  # type: ignore[union-attr]
    assert "whole request: server 0 runs at" in describe(same).verdicts[2]
    judged = same.comparisons(same.points[0])["e2el"]
    assert judged is not None
    assert (judged.comparisons, same.to_json()["verdicts"]["comparisons"]) == (4, 4)  # three times and throughput


def test_luck_that_lasts_as_long_as_a_process_is_no_difference_over_sessions() -> None:
    config = replace(CONFIG, loads=CONFIG.loads[:1], blocks=16, sessions=8, amount=Amount(requests=128, warmup=0))

    def over_sessions(slower: float) -> LoadResult:
        rng = np.random.default_rng(0)
        luck = np.exp(rng.normal(0, 0.03, size=(8, 2)))
        parts = [
            sweep(noisy(2 * s, slower * luck[s, 0]), noisy(2 * s + 1, luck[s, 1]), config=config, session=s) for s in range(8)
        ]
        return parts[0].merge(parts[1:])

    same = over_sessions(1.0)
    found = same.points[0].compared["e2el"]
    assert found is not None
    assert (found.differs, found.sessions) == (False, 8)
    slow = over_sessions(1.2).points[0].compared["e2el"]
    assert slow is not None
    assert slow.verdict == SLOWER
    assert len(same.points[0].figures("server 0").records) == 128
    assert [r.block for r in same.points[0].recordings["server 0"]] == [b for b in range(16) for _ in range(2)]


def test_both_servers_get_the_same_prompts_and_timetables_in_interleaved_blocks() -> None:
    seen: dict[str, list[object]] = {"a": [], "b": []}
    order: list[str] = []

    def watched(name: str) -> Make:
        def make(loop: VirtualLoop) -> Client:
            inner = steady(loop)

            async def client(request: Request) -> Answer:
                seen[name].append(request.prompt)
                order.append(name)
                return await inner(request)

            return client

        return make

    config = LoadConfig(loads=(OpenLoop(rate=5.0),), amount=Amount(requests=4, warmup=0), blocks=2)
    result = sweep(watched("a"), watched("b"), config=config)
    assert seen["a"] == seen["b"]
    assert "".join(order[6:]) == "abbabaab"  # after three check requests to each
    a, b = result.points[0].recordings.values()
    assert [r.records[0].scheduled_s for r in a] == [r.records[0].scheduled_s for r in b]
    assert result.comparisons(result.points[0]) == dict.fromkeys(("ttft", "tpot", "e2el"))  # two blocks make no verdict


def test_servers_that_disagree_are_not_measured() -> None:
    with pytest.raises(CheckFailed, match="different amounts of work: 4 and 3"):
        sweep(texts("a"), texts("b", tokens=3))
    same = replace(CONFIG, same_model=True)
    with pytest.raises(CheckFailed, match="said to be the same model"):
        sweep(texts("a"), texts("b"), config=same)

    async def other_tokenizer(request: Request) -> Answer:
        return Answer(arrivals_s=[200.0], input_tokens=9, output_tokens=4)

    with pytest.raises(CheckFailed, match="their tokenizers differ"):
        sweep(texts("a"), lambda loop: other_tokenizer)

    async def refuses(request: Request) -> Answer:
        return Answer(failure=Failure(kind="http 500", message="broken"))

    with pytest.raises(CheckFailed, match="does not answer a first request: http 500: broken"):
        sweep(lambda loop: refuses)


def test_servers_whose_answers_grow_apart_under_load_are_not_compared() -> None:
    def stops_early(loop: VirtualLoop) -> Client:
        inner, calls = steady(loop), iter(range(10_000))

        async def client(request: Request) -> Answer:
            return await inner(request if next(calls) < 10 else replace(request, output_len=3))

        return client

    result = sweep(steady, stops_early, config=replace(CONFIG, loads=CONFIG.loads[:1], blocks=2))
    assert "did different amounts of work: 4.0 and 3.0 tokens an answer" in result.invalid_reasons[0]
    assert describe(result).verdicts == []


def test_an_invalid_point_makes_the_run_invalid_and_prints_no_verdict() -> None:
    def shaky(loop: VirtualLoop) -> Client:
        inner, calls = steady(loop), iter(range(10_000))

        async def client(request: Request) -> Answer:
            return Answer(failure=Failure(kind="http 500", message="broken")) if next(calls) % 2 else await inner(request)

        return client

    result = sweep(shaky, config=replace(CONFIG, loads=CONFIG.loads[:1]))
    assert not result.valid
    assert describe(result).headline.startswith("Invalid: concurrency 2: 60 of 120 requests failed (60 x http 500: broken)")
    assert "Why this run is invalid" in to_markdown(describe(result))


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = sweep(noisy(0))
    points = PointsFile(tmp_path / "out", {"a": 1})
    assert points.begin(resume=False, force=False) == {}
    for point in whole.points[:2]:
        points.add(point)
    again = PointsFile(tmp_path / "out", {"a": 1})
    with pytest.raises(InputError, match="--resume"):
        again.begin(resume=False, force=False)
    finished = again.begin(resume=True, force=False)
    assert list(finished.values()) == list(whole.points[:2])  # to the bit
    added: list[Point] = []
    resumed = sweep(noisy(0), finished=finished, on_point=added.append)
    assert resumed.points[:2] == whole.points[:2]
    assert [p.load for p in added] == [CONFIG.loads[2]]
    again.finish()
    assert list(tmp_path.iterdir()) == []


def test_points_on_disk_that_cannot_be_used(tmp_path: Path) -> None:
    point = sweep(noisy(0), config=replace(CONFIG, loads=CONFIG.loads[:1])).points[0]
    points = PointsFile(tmp_path / "out", {"a": 1})
    points.begin(resume=False, force=False)
    points.add(point)
    file = points.folder / "points.jsonl"
    file.write_text(file.read_text() + '{"label": "cut sh')  # a crash while writing
    assert list(points.begin(resume=True, force=False)) == [(0, "concurrency 2")]
    points.add(replace(point, load=ClosedLoop(concurrency=3)))
    assert list(points.begin(resume=True, force=False)) == [(0, "concurrency 2"), (0, "concurrency 3")]
    with pytest.raises(InputError, match="other settings"):
        PointsFile(tmp_path / "out", {"a": 2}).begin(resume=True, force=False)
    file.write_text(file.read_text() + '{"label": 1}\n')
    with pytest.raises(FormatError, match="line 4"):
        points.begin(resume=True, force=False)
    assert points.begin(resume=False, force=True) == {}


def test_the_page_has_the_curve_the_distributions_and_the_lag() -> None:
    pytest.importorskip("matplotlib")
    config = replace(CONFIG, loads=CONFIG.loads[:2], amount=Amount(requests=20))
    html = render(build_load_page(sweep(noisy(0), noisy(1), config=config)))
    for title in (
        "against throughput",
        "inter-token latency",
        "lag of the generator",
        "How to reproduce",
        "Environment",
        "Verdicts",
    ):
        assert title in html
    assert "src=" not in html  # nothing is fetched
    assert 'href="http' not in html.replace("http://www.w3.org", "")


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="--request-rate or --concurrency"):
        LoadConfig(loads=())
    with pytest.raises(ConfigError, match="--blocks 0"):
        LoadConfig(loads=CONFIG.loads, blocks=0)
