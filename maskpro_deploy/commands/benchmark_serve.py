"""`maskpro-deploy benchmark serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import (
    DURATION,
    PATH,
    RATES,
    SIZES,
    force_option,
    json_option,
    least_difference_option,
    provider_option,
    seed_option,
    threads_option,
)

_PROMPTS = "Random token ids, running text that ships with the package, or the texts of a .txt or .jsonl file."
_MAX_LAG = "Bound on the generator's p99 lag.  [default: 5, or 5 % of the median ttft if more]"
_SESSIONS = "Times that two bundles are served again.  [default: 8 for two bundles, as a verdict needs; else 1]"


@click.command("serve")
@click.argument("target", metavar="URL|BUNDLE")
@click.option("--against", metavar="URL|BUNDLE", help="A second server, measured in interleaved blocks of the same run.")
@click.option("--concurrency", type=SIZES, help="Closed loop: requests under way at the same time.  [default: 1,4]")
@click.option("--request-rate", type=RATES, help="Open loop: requests per second, sent by a timetable; inf is all at once.")
@click.option(
    "--burstiness", type=float, default=1.0, show_default=True, help="Gaps of the open loop: 1 is Poisson, less bursts, inf even."
)
@click.option("--num-prompts", type=int, help="Requests at each load.  [default: 50]")
@click.option("--duration", type=DURATION, help="Send for so long at each load, instead of a number of requests.")
@click.option("--warmup", type=int, default=4, show_default=True, help="Requests sent first and not counted.")
@click.option("--timeout", type=DURATION, default="120s", show_default=True, help="A request that takes longer has failed.")
@click.option("--prompts", default="random", show_default=True, metavar="random|builtin|FILE", help=_PROMPTS)
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
@click.option("--max-lag", type=float, metavar="MS", help=_MAX_LAG)
@click.option("--blocks", type=int, default=10, show_default=True, help="Blocks of a comparison; a verdict needs 10.")
@click.option("--sessions", type=int, help=_SESSIONS)
@click.option("--same-model", is_flag=True, help="Both servers have the same model: they have to answer with the same text.")
@click.option(
    "--api-key-env", default="MASKPRO_API_KEY", show_default=True, metavar="NAME", help="Variable that holds the key for URLs."
)
@provider_option("cpu", "What runs a BUNDLE's model.")
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
    from maskpro_deploy.system.extras import require

    require("load", "putting a load on a server")
    from maskpro_deploy.runs.load import benchmark_servers
    from maskpro_deploy.runs.load_options import LoadOptions
    from maskpro_deploy.runs.output import Output

    output = Output(out=out, resume=resume, force=force, as_json=as_json)
    targets = (target,) if against is None else (target, against)
    benchmark_servers(LoadOptions(targets=targets, **options), output)
