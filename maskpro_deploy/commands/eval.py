"""`maskpro-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands.options import PATH, force_option, json_option, threads_option
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.system.output import emit, table

if TYPE_CHECKING:
    from maskpro_deploy.evaluate.result import Result

_PROTOCOL_ONLY = ("protocol", "source", "window", "stride", "max_windows", "joining", "bos")
_TASKS_ONLY = ("task_path", "num_fewshot", "limit", "batch_size", "chat")


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--against", metavar="TARGET", help="The reference: adds the ratio of perplexities, KL and agreement.")
@click.option(
    "--protocol",
    default="builtin",
    show_default=True,
    metavar="NAME",
    help="How perplexity is measured: builtin, wikitext2-wanda, wikitext2-wanda-4096, wikitext2-maskllm, c4-wanda.",
)
@click.option(
    "--data",
    "source",
    metavar="TEXT",
    help="builtin[:heldout], a file, hub:NAME[:SPLIT]; for a published protocol the file or folder that holds its text, "
    "as PATH or wikitext2=PATH (from the Hub by default).",
)
@click.option("--window", type=int, help="Tokens in a window (by default the protocol's; builtin: 512).")
@click.option("--stride", type=int, help="Tokens from one window to the next; shorter than a window, only new tokens are scored.")
@click.option("--max-windows", type=int, help="Use only the first so many windows.")
@click.option("--joining", metavar="separator|blank-line|space", help="How documents become one stream.")
@click.option("--bos", metavar="none|first|tokenizer", help="Begin-of-text: none, one, or the tokenizer's own special tokens.")
@click.option("--tasks", metavar="NAME[,NAME...]", help="Run these tasks of lm-evaluation-harness instead.")
@click.option("--task-path", type=PATH, metavar="FOLDER", help="Task files of your own (they may hold code, which is run).")
@click.option("--num-fewshot", type=int, help="Examples before each question; by default as each task says.")
@click.option("--limit", type=int, help="Only so many documents of each task.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Questions read together, at most.  [default: 8]")
@click.option("--apply-chat-template", "chat", is_flag=True, default=None, help="Put questions into the model's chat template.")
@click.option("--out", type=PATH, metavar="FOLDER", help="Write a report; a folder of the same protocol is gone on with.")
@click.option(
    "--provider", default="auto", show_default=True, metavar="auto|cpu|cuda|tensorrt|trt-native", help="What runs the models."
)
@click.option("--form", help="Form of a bundle's key/value cache, if it has several.")
@click.option("--engine", metavar="FILE", help="Engine in a bundle, if it has several.")
@click.option("--dtype", default="fp32", show_default=True, metavar="fp32|fp16|bf16", help="Of a checkpoint in torch.")
@threads_option
@force_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[str, ...],
    against: str | None,
    protocol: str,
    source: str | None,
    window: int | None,
    stride: int | None,
    max_windows: int | None,
    joining: str | None,
    bos: str | None,
    tasks: str | None,
    task_path: Path | None,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int | None,
    chat: bool | None,
    out: Path | None,
    provider: str,
    form: str | None,
    engine: str | None,
    dtype: str,
    threads: int | None,
    force: bool,
    as_json: bool,
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
    from maskpro_deploy.targets.models import RunConfig, find_target

    _refuse_unused(context, _TASKS_ONLY if tasks is None else _PROTOCOL_ONLY, "--tasks" if tasks is None else None)
    names = [*([against] if against is not None else []), *targets]
    if len(set(names)) != len(names):
        raise InputError(f"the same target is named twice: {' '.join(names)}.\nName each one once.")
    run = RunConfig(provider=provider, threads=threads, dtype=dtype, form=form, engine=engine)
    _check_out(out)
    result: Result
    if tasks is None:
        from maskpro_deploy.evaluate.published import choose
        from maskpro_deploy.runs import perplexity as _eval_perplexity

        chosen = choose(
            protocol, data=source, window=window, stride=stride, max_windows=max_windows, joining=joining, bos=bos
        )  # fmt: skip
        found = [find_target(name) for name in names]
        result = _eval_perplexity.measure(found, found[0] if against is not None else None, chosen, run, out, force=force)
    else:
        from maskpro_deploy.evaluate.tasks import TaskSettings
        from maskpro_deploy.runs import tasks as _eval_tasks

        settings = TaskSettings(
            names=tuple(n.strip() for n in tasks.split(",")),
            path=task_path,
            num_fewshot=num_fewshot,
            limit=limit,
            chat=bool(chat),
        )
        found = [find_target(name) for name in names]
        reference = found[0] if against is not None else None
        result = _eval_tasks.measure(found, reference, settings, run, batch_size or 8, out, force=force)
    if out is not None:
        _write(result, out)
    emit(as_json, result.to_json(), _text(result, out))


def _refuse_unused(context: click.Context, names: tuple[str, ...], needed: str | None) -> None:
    """An option that would be ignored is an error."""
    for param in context.command.params:
        given = context.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
        if param.name in names and given:
            reason = f"is for {needed}" if needed else "is for perplexity: --tasks has its own settings"
            raise ConfigError(f"{param.opts[0]} {reason}.")


def _check_out(out: Path | None) -> None:
    """What the report needs has to be here before anything long has run."""
    from maskpro_deploy.system.extras import require

    if out is not None:
        require("report", "writing report.html")


def _write(result: Result, out: Path) -> None:
    """result.json, report.md and report.html beside the log, each whole or not at all."""
    from maskpro_deploy.evaluate.result import MARKDOWN_FILE, RESULT_FILE, markdown
    from maskpro_deploy.reports.blocks import REPORT_FILE, write
    from maskpro_deploy.reports.quality import build_page
    from maskpro_deploy.system.files import atomic_file, write_json

    write_json(out / RESULT_FILE, result.to_json())
    with atomic_file(out / MARKDOWN_FILE) as temporary:
        temporary.write_text(markdown(result), encoding="utf-8")
    write(build_page(result), out / REPORT_FILE)


def _text(result: Result, out: Path | None) -> str:
    lines = [table(result.rows(), result.header), "", *result.statements()]
    if out is not None:
        lines.append(f"Report: {out / 'report.html'}")
    return "\n".join(lines)
