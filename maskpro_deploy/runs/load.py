"""Putting a load on servers for `benchmark serve`: clients, prompts, the run, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from maskpro_deploy.errors import InputError, Interrupted
from maskpro_deploy.targets.servers import LOOPBACK, Target, is_url, running_targets

if TYPE_CHECKING:
    from maskpro_deploy.bench.load.openai_client import ClientConfig, OpenAIClient
    from maskpro_deploy.bench.load.point import Point, PointKey
    from maskpro_deploy.bench.load.points import PointsFile
    from maskpro_deploy.bench.load.result import LoadResult
    from maskpro_deploy.bench.load.sending.generator import Source
    from maskpro_deploy.bench.load.sweep import LoadConfig
    from maskpro_deploy.system.progress import Progress

RANDOM, BUILTIN = "random", "builtin"
WORDS_PER_TOKEN = 0.75  # English, about; the server's own count stands in the result

SESSIONS_NOTE = "Both servers were started anew {} times, since two processes of the same model differ by some per cent."
PROCESS_NOTE = (
    "Each server is one process, and two processes of the same model have differed by some per cent (URL --against the same URL, "
    "or BUNDLE --against BUNDLE, shows it here). A verdict on a difference of that size says nothing."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is asked."""

    kind: str
    input_len: int
    output_len: int


def measure(
    names: list[str],
    config: LoadConfig,
    prompts: Prompts,
    options: dict[str, Any],
    points: PointsFile | None,
    finished: Mapping[PointKey, Point],
) -> LoadResult:
    """Start what has to be started, and measure."""
    import asyncio

    from maskpro_deploy.bench.load.sending.event_loop import allow_many_connections, make_event_loop
    from maskpro_deploy.bench.load.sweep import Part
    from maskpro_deploy.system.progress import Meter

    allow_many_connections()
    meter = Meter("benchmark", "loads" if config.sessions == 1 else "sessions")
    server_options = ["--provider", options["provider"], "--max-num-seqs", str(options["max_num_seqs"])]
    server_options += ["--threads", str(options["threads"])] if options["threads"] is not None else []
    try:
        for name in filter(is_url, names):  # a bad one shows before a server is started
            _client_config(name, options)
        complete = {s for s in range(config.sessions) if all((s, load.label) in finished for load in config.loads)}
        results: dict[int, LoadResult] = {}
        for session in sorted(set(range(config.sessions)) - complete) or [0]:  # one at least: the result says what was measured
            part = Part(meter, session, config.sessions, f"session {session + 1}") if config.sessions > 1 else meter
            with (
                running_targets(names, server_options, last_first=session % 2 == 1) as targets,
                asyncio.Runner(loop_factory=make_event_loop) as runner,
            ):
                running = _measure_targets(targets, config, prompts, options, points, finished, session, part)
                results[session] = runner.run(running)
        some = next(iter(results.values()))
        for session in complete - set(results):
            kept = tuple(finished[session, load.label] for load in config.loads)
            results[session] = dataclasses.replace(some, points=kept, duration_s=0.0)
        first, *others = (results[session] for session in sorted(results))
        return first.merge(others)
    except KeyboardInterrupt:
        if points is None or not points.any_finished:
            raise
        raise Interrupted(
            f"interrupted; finished loads are kept in {points.folder}.\nGo on with the same command and --resume."
        ) from None
    finally:
        meter.close()
        if points is not None and not points.any_finished:
            points.finish()


async def _measure_targets(
    targets: list[Target],
    config: LoadConfig,
    prompts: Prompts,
    options: dict[str, Any],
    points: PointsFile | None,
    finished: Mapping[PointKey, Point],
    session: int,
    progress: Progress,
) -> LoadResult:
    from maskpro_deploy.bench.load.openai_client import OpenAIClient
    from maskpro_deploy.bench.load.sweep import Server, run_sweep

    async with contextlib.AsyncExitStack() as stack:
        servers, clients = [], {}
        for target in targets:
            client = await stack.enter_async_context(OpenAIClient(_client_config(target.url, options, bundle=target.bundle)))
            listed = await client.models()
            root = next((m.get("root") for m in listed if m["id"] == client.model), None)
            facts = {"model_id": client.model, "root": root, "base_url": client.root, **_where(target, options["provider"])}
            servers.append(Server(name=target.name, client=client, facts=facts))
            clients[target.name] = client
        source, notes = await _source(clients, prompts, options["endpoint"])
        for name, client in clients.items():
            refused = await client.learn_limits(source((config.seed, 2**31, 1, 0)), config.amount.timeout_s)
            if refused:
                notes.append(f"{name} refuses the fields {' and '.join(refused)}: they were left out.")
        if len(targets) > 1:
            notes.append(PROCESS_NOTE if config.sessions == 1 else SESSIONS_NOTE.format(config.sessions))
        kept = (
            "endpoint",
            "prompts",
            "input_len",
            "output_len",
            "stream",
            "ignore_eos",
            "temperature",
            "same_model",
            "least_difference",
        )
        return await run_sweep(
            servers,
            source,
            config,
            settings={key: options[key] for key in kept},
            notes=notes,
            session=session,
            finished=finished,
            on_point=points.add if points is not None else lambda point: None,
            progress=progress,
        )


def _client_config(url: str, options: dict[str, Any], *, bundle: Path | None = None) -> ClientConfig:
    from maskpro_deploy.bench.load.openai_client import ClientConfig

    return ClientConfig(
        base_url=url,
        endpoint=options["endpoint"],
        model=options["model"] if bundle is None else None,
        stream=options["stream"],
        ignore_eos=options["ignore_eos"],
        temperature=options["temperature"],
        api_key=os.environ.get(options["api_key_env"]) if bundle is None else None,
    )


def _where(target: Target, provider: str) -> dict[str, Any]:
    """Where a server runs, and what it serves as far as that is known."""
    facts: dict[str, Any] = {"started_here": target.bundle is not None, "same_machine": urlsplit(target.url).hostname in LOOPBACK}
    if target.bundle is None:
        return facts
    from maskpro_deploy.bench.graph_work import graph_work
    from maskpro_deploy.manifest import Manifest, safe_path

    manifest = Manifest.load(target.bundle)
    facts |= {"path": str(target.bundle), "dtype": manifest.graph.dtype, "sparsity": manifest.sparsity}
    if provider == "cpu":  # where equal graphs mean equal kernels; the server chooses one of them
        graphs = (manifest.graph, *manifest.siblings)
        facts["graphs_sha256"] = "+".join(graph_work(safe_path(target.bundle, g.file)).structure_sha256 for g in graphs)
    return facts


async def _source(clients: dict[str, OpenAIClient], prompts: Prompts, endpoint: str) -> tuple[Source, list[str]]:
    """Where requests come from, and remarks on that.

    Raises:
        InputError: the servers have different vocabularies, or the prompts cannot be read.
    """
    from maskpro_deploy.bench.load.sending.requests import cut_text_windows, draw_random_tokens, take_prompts
    from maskpro_deploy.data import load_text

    text = load_text(BUILTIN)
    sample = "\n".join(text.documents[:20])
    tokens = {name: await client.tokenize(sample) for name, client in clients.items()}
    known = [t for t in tokens.values() if t is not None]
    if len(known) == 2 and known[0] != known[1]:
        raise InputError(
            f"{' and '.join(tokens)} have different vocabularies: a token of one is not a token of the other.\n"
            "Measure them in separate runs."
        )
    if prompts.kind not in (RANDOM, BUILTIN):
        return take_prompts(load_text(prompts.kind).documents, prompts.output_len), []
    words = max(1, round(prompts.input_len * WORDS_PER_TOKEN))
    if prompts.kind == RANDOM and endpoint == "completions" and len(known) == len(clients):
        # ids of ordinary text: neither special tokens nor ids beyond the vocabulary
        return draw_random_tokens(sorted(set(known[0])), prompts.input_len, prompts.output_len), []
    notes = []
    if prompts.kind == RANDOM:
        why = "A chat takes no token ids" if endpoint == "chat" else "The server has no /tokenize to ask for token ids"
        notes.append(f"{why}: prompts are {words} words of running text, about {prompts.input_len} tokens.")
    return cut_text_windows(text.documents, words, prompts.output_len), notes


def write_files(result: LoadResult, out: Path, *, force: bool) -> None:
    """result.json, report.md, report.html and one file per server and load in vLLM's format, as a whole or not at all."""
    from maskpro_deploy.bench.load.summary import describe
    from maskpro_deploy.reports.load import build_page
    from maskpro_deploy.reports.run import write_run
    from maskpro_deploy.system.files import new_folder, write_json

    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    with new_folder(out, force=force) as folder:
        write_run(folder, value, describe(result), build_page(result))
        (folder / "vllm").mkdir()
        for i, point in enumerate(value["points"], start=1):
            for j, arm in enumerate(point["arms"], start=1):
                write_json(folder / "vllm" / f"load-{i}-server-{j}.json", arm)
