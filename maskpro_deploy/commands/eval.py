"""`maskpro-deploy eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import NAMES, PATH, force_option, json_option, refuse_given, run_options

# the options of each kind of evaluation, which are the settings of `choose` and of `TaskSettings`
_PROTOCOL = ("data", "window", "stride", "max_windows", "joining", "bos")
_TASKS = ("path", "num_fewshot", "limit", "chat")
_PROTOCOLS = "How perplexity is measured: builtin, wikitext2-wanda, wikitext2-wanda-4096, wikitext2-maskllm, c4-wanda."
_TEXT = (
    "builtin[:heldout], a file, hub:NAME[:SPLIT]; for a published protocol the file or folder that holds its text, "
    "as PATH or wikitext2=PATH (from the Hub by default)."
)


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--against", metavar="TARGET", help="The reference: adds the ratio of perplexities, KL and agreement.")
@click.option("--protocol", default="builtin", show_default=True, metavar="NAME", help=_PROTOCOLS)
@click.option("--data", metavar="TEXT", help=_TEXT)
@click.option("--window", type=int, help="Tokens in a window (by default the protocol's; builtin: 512).")
@click.option("--stride", type=int, help="Tokens from one window to the next; shorter than a window, only new tokens are scored.")
@click.option("--max-windows", type=int, help="Use only the first so many windows.")
@click.option("--joining", metavar="separator|blank-line|space", help="How documents become one stream.")
@click.option("--bos", metavar="none|first|tokenizer", help="Begin-of-text: none, one, or the tokenizer's own special tokens.")
@click.option("--tasks", "names", type=NAMES, metavar="NAME[,NAME...]", help="Run these tasks of lm-evaluation-harness instead.")
@click.option(
    "--task-path", "path", type=PATH, metavar="FOLDER", help="Task files of your own (they may hold code, which is run)."
)
@click.option("--num-fewshot", type=int, help="Examples before each question; by default as each task says.")
@click.option("--limit", type=int, help="Only so many documents of each task.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Questions read together, at most.")
@click.option("--apply-chat-template", "chat", is_flag=True, help="Put questions into the model's chat template.")
@click.option("--out", type=PATH, metavar="FOLDER", help="Write a report; a folder of the same protocol is continued.")
@run_options("What runs the models.")
@click.option("--dtype", default="fp32", show_default=True, metavar="fp32|fp16|bf16", help="Of a checkpoint in torch.")
@force_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    targets: tuple[str, ...],
    against: str | None,
    protocol: str,
    names: tuple[str, ...] | None,
    batch_size: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    r"""Measure the quality of each TARGET, and how far it is from a reference.

    TARGET is a checkpoint folder, a .gguf file, a Hub id or `demo` (run in torch), or a bundle folder (run in onnxruntime or
    TensorRT). All of them read the same tokens. Without --tasks the figure is perplexity, by a protocol that is stated with it.

    \b
    Example:
      maskpro-deploy eval sparse --against demo
      maskpro-deploy eval bundle sparse --against demo --data my.txt --window 1024 --out report
      maskpro-deploy eval sparse --against demo --protocol wikitext2-wanda --data wikitext2=wiki.test.raw
      maskpro-deploy eval sparse bundle --tasks hellaswag,piqa
    """
    from maskpro_deploy.runs.evaluation import Measure, evaluate_models
    from maskpro_deploy.targets.models import RunConfig

    run = RunConfig(**{name: options.pop(name) for name in ("provider", "form", "engine", "threads", "dtype")})
    measure: Measure
    if names is None:
        from maskpro_deploy.evaluate.published import choose_protocol
        from maskpro_deploy.runs.evaluation import measure_perplexity

        refuse_given(context, (*_TASKS, "batch_size"), "is for --tasks")
        chosen = choose_protocol(protocol, **{name: options[name] for name in _PROTOCOL})
        measure = partial(measure_perplexity, protocol=chosen, run=run, out=out, force=force)
    else:
        from maskpro_deploy.evaluate.tasks import TaskSettings
        from maskpro_deploy.runs.evaluation import measure_tasks

        refuse_given(context, (*_PROTOCOL, "protocol"), "is for perplexity: --tasks has its own settings")
        settings = TaskSettings(names=names, **{name: options[name] for name in _TASKS})
        measure = partial(measure_tasks, settings=settings, run=run, batch_size=batch_size, out=out, force=force)
    evaluate_models(measure, targets, against, out=out, as_json=as_json)
