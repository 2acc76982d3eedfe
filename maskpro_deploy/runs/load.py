"""The run of `benchmark serve`: servers are started where they have to be, asked, and their figures saved load by load."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskpro_deploy.bench.graph_work import graph_work
from maskpro_deploy.bench.load.generator import Source, allow_many_connections, make_event_loop
from maskpro_deploy.bench.load.openai_client import OpenAIClient
from maskpro_deploy.bench.load.point import Point, PointKey, PointsFile
from maskpro_deploy.bench.load.result import LoadResult
from maskpro_deploy.bench.load.schedule import cut_text_windows, draw_random_tokens, take_prompts
from maskpro_deploy.bench.load.summary import describe
from maskpro_deploy.bench.load.sweep import Part, Server, run_sweep
from maskpro_deploy.bench.results.document import Document, to_markdown, to_text
from maskpro_deploy.data import load_text
from maskpro_deploy.errors import InputError, Interrupted
from maskpro_deploy.manifest import Manifest, safe_path
from maskpro_deploy.reports.benchmarks import build_load_page, write_run
from maskpro_deploy.runs.load_options import BUILTIN, RANDOM, LoadOptions
from maskpro_deploy.runs.output import Output, check_valid, emit_result
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import check_free, new_folder, write_json
from maskpro_deploy.system.progress import Meter, Progress
from maskpro_deploy.targets.servers import LOOPBACK, Target, is_url, running_targets

SESSIONS_NOTE = "Both servers were started again {} times, since two processes of the same model differ by a few per cent."
PROCESS_NOTE = (
    "Each server is one process, and two processes of the same model have differed by a few per cent (URL --against the same "
    "URL, or BUNDLE --against BUNDLE, shows it here). A verdict on a difference of that size says nothing."
)
_WORDS_PER_TOKEN = 0.75  # English, about; the server's own count stands in the result
_SAMPLE_DOCUMENTS = 20


def benchmark_servers(options: LoadOptions, output: Output) -> None:
    """Put the load on the servers, write the report, print.

    Raises:
        CheckFailed: the run is invalid.
        MaskProError: a server or the prompts cannot be used.
    """
    if options.prompts not in (RANDOM, BUILTIN):
        load_text(options.prompts)  # what cannot be read shows before a server is started
    if not all(map(is_url, options.targets)):
        require("serve", "serving a bundle")
    out, points, finished = output.out, None, {}
    if out is not None:
        check_free(out, force=output.force)
        require("report", "writing report.html")
        points = PointsFile(out, options.identity())
        finished = points.begin(resume=output.resume, force=output.force)
    result = _measure_load(options, points, finished)
    document = describe(result)
    if out is not None and points is not None:
        _write_folder(result, document, out, force=output.force)
        points.finish()
    emit_result(result, to_text(document), out=out, as_json=output.as_json)
    check_valid(result)


def _measure_load(options: LoadOptions, points: PointsFile | None, finished: Mapping[PointKey, Point]) -> LoadResult:
    """Start what has to be started, and measure what is not finished; finished loads are kept if the user stops it."""
    allow_many_connections()
    meter = Meter("benchmark", "loads" if options.config.sessions == 1 else "sessions")
    try:
        for url in filter(is_url, options.targets):  # a bad one shows before a server is started
            options.client(url)
        return _measure_sessions(options, points, finished, meter)
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


def _measure_sessions(
    options: LoadOptions, points: PointsFile | None, finished: Mapping[PointKey, Point], meter: Meter
) -> LoadResult:
    """Each session with servers of its own; finished ones are taken as they were."""
    config = options.config
    complete = {s for s in range(config.sessions) if all((s, load.label) in finished for load in config.loads)}
    results: dict[int, LoadResult] = {}
    for session in sorted(set(range(config.sessions)) - complete) or [0]:  # one at least: the result says what was measured
        part = Part(meter, session, config.sessions, f"session {session + 1}") if config.sessions > 1 else meter
        with (
            running_targets(options.targets, options.serve_options, last_first=session % 2 == 1) as targets,
            asyncio.Runner(loop_factory=make_event_loop) as runner,
        ):
            results[session] = runner.run(_measure_targets(targets, options, points, finished, session, part))
    some = next(iter(results.values()))
    for session in complete - set(results):
        kept = tuple(finished[session, load.label] for load in config.loads)
        results[session] = dataclasses.replace(some, points=kept, duration_s=0.0)
    first, *others = (results[session] for session in sorted(results))
    return first.merge(others)


async def _measure_targets(
    targets: list[Target],
    options: LoadOptions,
    points: PointsFile | None,
    finished: Mapping[PointKey, Point],
    session: int,
    progress: Progress,
) -> LoadResult:
    """One session, on servers that answer."""
    config = options.config
    async with contextlib.AsyncExitStack() as stack:
        servers, clients = [], {}
        for target in targets:
            client_config = options.client(target.url, started_here=target.bundle is not None)
            client = await stack.enter_async_context(OpenAIClient(client_config))
            listed = await client.models()
            root = next((m.get("root") for m in listed if m["id"] == client.model), None)
            facts = {"model_id": client.model, "root": root, "base_url": client.root, **_describe(target, options.provider)}
            servers.append(Server(name=target.name, client=client, facts=facts))
            clients[target.name] = client
        source, notes = await _make_source(clients, options)
        for name, client in clients.items():
            refused = await client.learn_limits(source((config.seed, 2**31, 1, 0)), config.amount.timeout_s)
            if refused:
                notes.append(f"{name} refuses the fields {' and '.join(refused)}: they were left out.")
        if len(targets) > 1:
            notes.append(PROCESS_NOTE if config.sessions == 1 else SESSIONS_NOTE.format(config.sessions))
        keep = points.add if points is not None else lambda point: None
        return await run_sweep(
            servers, source, config,
            settings=options.stated, notes=notes, session=session, finished=finished, on_point=keep, progress=progress,
        )  # fmt: skip


async def _make_source(clients: Mapping[str, OpenAIClient], options: LoadOptions) -> tuple[Source, list[str]]:
    """Where requests come from, and remarks on that."""
    text = load_text(BUILTIN)
    vocabulary = await _tokenize_sample(clients, "\n".join(text.documents[:_SAMPLE_DOCUMENTS]))
    if options.prompts not in (RANDOM, BUILTIN):
        return take_prompts(load_text(options.prompts).documents, options.output_len), []
    words = max(1, round(options.input_len * _WORDS_PER_TOKEN))
    if options.prompts == RANDOM and options.endpoint == "completions" and vocabulary is not None:
        # ids of ordinary text: neither special tokens nor ids beyond the vocabulary
        return draw_random_tokens(vocabulary, options.input_len, options.output_len), []
    notes = []
    if options.prompts == RANDOM:
        chat = options.endpoint == "chat"
        why = "A chat takes no token ids" if chat else "The server has no /tokenize to ask for token ids"
        notes.append(f"{why}: prompts are {words} words of running text, about {options.input_len} tokens.")
    return cut_text_windows(text.documents, words, options.output_len), notes


async def _tokenize_sample(clients: Mapping[str, OpenAIClient], sample: str) -> list[int] | None:
    """The tokens that occur in a text, which have to be the same for all servers; None if one does not tell them."""
    tokens = {name: await client.tokenize(sample) for name, client in clients.items()}
    known = [t for t in tokens.values() if t is not None]
    if len(known) == 2 and known[0] != known[1]:
        raise InputError(
            f"{' and '.join(tokens)} have different vocabularies: a token of one is not a token of the other.\n"
            "Measure them in separate runs."
        )
    return sorted(set(known[0])) if len(known) == len(clients) else None


def _describe(target: Target, provider: str) -> dict[str, Any]:
    """Where a server runs, and what it serves as far as that is known."""
    facts: dict[str, Any] = {"started_here": target.bundle is not None, "same_machine": urlsplit(target.url).hostname in LOOPBACK}
    if target.bundle is None:
        return facts
    manifest = Manifest.load(target.bundle)
    facts |= {"path": str(target.bundle), "dtype": manifest.graph.dtype, "sparsity": manifest.sparsity}
    if provider == "cpu":  # where equal graphs mean equal kernels; the server chooses one of them
        graphs = (manifest.graph, *manifest.siblings)
        facts["graphs_sha256"] = "+".join(graph_work(safe_path(target.bundle, g.file)).structure_sha256 for g in graphs)
    return facts


def _write_folder(result: LoadResult, document: Document, out: Path, *, force: bool) -> None:
    """result.json, report.md, report.html and one file per server and load in vLLM's format, as a whole or not at all."""
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    with new_folder(out, force=force) as folder:
        write_run(folder, value, to_markdown(document), build_load_page(result))
        (folder / "vllm").mkdir()
        for i, point in enumerate(value["points"], start=1):
            for j, arm in enumerate(point["arms"], start=1):
                write_json(folder / "vllm" / f"load-{i}-server-{j}.json", arm)
