"""`maskpro-deploy benchmark serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands.benchmark.options import SIZES, least_difference_option
from maskpro_deploy.commands.options import DURATION, PATH, force_option, json_option, seed_option, threads_option
from maskpro_deploy.commands.serve import PROVIDERS
from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.runs.load import BUILTIN, RANDOM, Prompts, measure, write_files
from maskpro_deploy.system.output import emit
from maskpro_deploy.targets.servers import is_url

if TYPE_CHECKING:
    from maskpro_deploy.bench.load.sending.schedule import Load
    from maskpro_deploy.bench.load.sweep import LoadConfig


API_KEY_ENV = "MASKPRO_API_KEY"


class RatesType(click.ParamType[tuple[float, ...]]):
    """Requests per second separated by commas, such as 1,2.5,inf."""

    name = "R,R..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(dict.fromkeys(float(part) for part in str(value).split(",")))
        except ValueError:
            raise ConfigError(f"--request-rate {value!r}: expected numbers separated by commas, such as 1,2.5,inf.") from None


@click.command("serve")
@click.argument("target", metavar="URL|BUNDLE")
@click.option("--against", metavar="URL|BUNDLE", help="A second server, measured in interleaved blocks of the same run.")
@click.option("--concurrency", type=SIZES, help="Closed loop: requests under way at the same time.  [default: 1,4]")
@click.option("--request-rate", type=RatesType(), help="Open loop: requests per second, sent by a timetable; inf is all at once.")
@click.option(
    "--burstiness", type=float, default=1.0, show_default=True, help="Gaps of the open loop: 1 is Poisson, less bursts, inf even."
)
@click.option("--num-prompts", type=int, help="Requests at each load.  [default: 50]")
@click.option("--duration", type=DURATION, help="Send for so long at each load, instead of a number of requests.")
@click.option("--warmup", type=int, default=4, show_default=True, help="Requests sent first and not counted.")
@click.option("--timeout", type=DURATION, default="120s", show_default=True, help="A request that takes longer has failed.")
@click.option(
    "--prompts",
    default=RANDOM,
    show_default=True,
    metavar="random|builtin|FILE",
    help="Random token ids, running text that ships with the package, or the texts of a .txt or .jsonl file.",
)
@click.option("--input-len", type=int, default=128, show_default=True, help="Tokens of a prompt (not for FILE).")
@click.option("--output-len", type=int, default=32, show_default=True, help="Tokens to generate.")
@click.option(
    "--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True, help="API to ask."
)
@click.option("--model", help="The server's name of the model; the first one it lists by default.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Ask for the answer token by token.")
@click.option("--ignore-eos/--stop-at-eos", default=True, show_default=True, help="Ask for answers of the full length.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--slo", metavar="METRIC:MS,...", help="Bounds that goodput counts by: ttft, tpot, e2el; such as ttft:500,tpot:50.")
@click.option("--max-failed", type=float, default=0.01, show_default=True, help="Part of the requests that may fail.")
@click.option(
    "--max-lag",
    type=float,
    metavar="MS",
    help="Bound on the generator's p99 lag.  [default: 5, or 5 % of the median ttft if more]",
)
@click.option("--blocks", type=int, default=10, show_default=True, help="Blocks of a comparison; a verdict needs 10.")
@click.option(
    "--sessions",
    type=int,
    help="Times that two bundles are served anew.  [default: 8 for two bundles, as a verdict needs; else 1]",
)
@click.option("--same-model", is_flag=True, help="Both servers have the same model: they have to answer with the same text.")
@click.option(
    "--api-key-env", default=API_KEY_ENV, show_default=True, metavar="NAME", help="Variable that holds the key for URLs."
)
@click.option("--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help="What runs a BUNDLE's model.")
@threads_option
@click.option(
    "--max-num-seqs", type=int, default=16, show_default=True, help="Answers that a BUNDLE's server generates at a time."
)
@seed_option
@least_difference_option
@click.option("--out", type=PATH, help="Folder for result.json, report.md, report.html and one file per load in vLLM's format.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted sweep; needs --out.")
@force_option
@json_option
def command(target: str, against: str | None, out: Path | None, resume: bool, force: bool, as_json: bool, **options: Any) -> None:
    r"""Put a load on an OpenAI-compatible server, or on one started from BUNDLE for the time of the run.

    An open loop (--request-rate) shows what users of that rate would wait, a closed loop (--concurrency) what the server can do.
    Several values make a sweep. Exit code 1: the run is invalid, and the reason is given.

    \b
    Example:
      maskpro-deploy benchmark serve bundle --concurrency 1,2,4 --out report
      maskpro-deploy benchmark serve http://127.0.0.1:8000 --request-rate 1,2,4 --duration 60s --slo ttft:500,tpot:50
      maskpro-deploy benchmark serve bundle --against dense-bundle --concurrency 4
    """
    from maskpro_deploy.bench.load.points import PointsFile
    from maskpro_deploy.bench.load.summary import describe
    from maskpro_deploy.bench.results.document import to_text
    from maskpro_deploy.data import load_text
    from maskpro_deploy.system.extras import require
    from maskpro_deploy.system.files import check_free

    bundles = not is_url(target) and against is not None and not is_url(against)
    if options["sessions"] is None:
        options["sessions"] = 8 if bundles else 1
    elif options["sessions"] > 1 and not bundles:
        raise ConfigError(f"--sessions {options['sessions']}: only two bundles can be served anew; leave it out.")
    if options["api_key_env"] != API_KEY_ENV and not os.environ.get(options["api_key_env"]):
        raise ConfigError(f"--api-key-env {options['api_key_env']}: there is no such variable, or it is empty.")
    config = _config(options)
    prompts = Prompts(kind=options["prompts"], input_len=options["input_len"], output_len=options["output_len"])
    targets = [target, *([against] if against is not None else [])]
    require("load", "putting a load on a server")
    if prompts.kind not in (RANDOM, BUILTIN):
        load_text(prompts.kind)  # what cannot be read shows before a server is started
    if any(not is_url(t) for t in targets):
        require("serve", "serving a bundle")
    points = None
    if out is not None:
        check_free(out, force=force)
        require("report", "writing report.html")
        kept = {k: _plain(v) for k, v in options.items() if k != "least_difference"}  # what the samples depend on
        points = PointsFile(out, {"targets": targets, **kept})
    elif resume:
        raise ConfigError("--resume needs --out: the points of an interrupted sweep lie beside it.")
    finished = points.begin(resume=resume, force=force) if points is not None else {}
    result = measure(targets, config, prompts, options, points, finished)
    if out is not None and points is not None:
        write_files(result, out, force=force)
        points.finish()
    emit(as_json, result.to_json(), to_text(describe(result), out))
    if not result.valid:
        raise CheckFailed(f"the run is invalid: {result.invalid_reasons[0]}")


def _plain(value: Any) -> Any:
    """An option as a JSON value."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else str(value) if value == float("inf") else value


def _config(options: dict[str, Any]) -> LoadConfig:
    """The settings from the options.

    Raises:
        ConfigError: one is out of its range.
    """
    from maskpro_deploy.bench.load.figures import Limits
    from maskpro_deploy.bench.load.sending.generator import Amount
    from maskpro_deploy.bench.load.sending.requests import check_lengths
    from maskpro_deploy.bench.load.sending.schedule import ClosedLoop, OpenLoop
    from maskpro_deploy.bench.load.slo import Slo
    from maskpro_deploy.bench.load.sweep import LoadConfig

    rates, concurrency = options["request_rate"], options["concurrency"]
    if rates and concurrency:
        raise ConfigError("give --request-rate (open loop) or --concurrency (closed loop), not both: a capped rate is neither.")
    loads: tuple[Load, ...]
    if rates:
        loads = tuple(OpenLoop(rate=rate, burstiness=options["burstiness"]) for rate in rates)
    else:
        loads = tuple(ClosedLoop(concurrency=c) for c in concurrency or (1, 4))
    requests = options["num_prompts"] if options["num_prompts"] is not None or options["duration"] is not None else 50
    check_lengths(options["input_len"], options["output_len"])
    slo = Slo.parse(options["slo"]) if options["slo"] is not None else None
    if slo is not None and not options["stream"] and set(slo.bounds_ms) - {"e2el"}:
        raise ConfigError("--slo: an answer that comes whole (--no-stream) has no first token; only e2el can be bounded.")
    if slo is not None and options["output_len"] == 1 and "tpot" in slo.bounds_ms:
        raise ConfigError("--slo tpot: answers of one token (--output-len 1) have no time per further token.")
    return LoadConfig(
        loads=loads,
        amount=Amount(requests=requests, duration_s=options["duration"], warmup=options["warmup"], timeout_s=options["timeout"]),
        blocks=options["blocks"],
        sessions=options["sessions"],
        slo=slo,
        limits=Limits(max_failed=options["max_failed"], max_lag_ms=options["max_lag"]),
        same_model=options["same_model"],
        seed=options["seed"],
        least_difference=options["least_difference"],
    )
