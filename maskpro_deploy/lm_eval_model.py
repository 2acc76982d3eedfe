"""The model `maskpro` of lm-evaluation-harness: checkpoints, bundles and engines in its own command line.

    maskpro-lm-eval run --model maskpro --model_args pretrained=BUNDLE --tasks hellaswag

`maskpro-lm-eval` is the harness's command with this model registered. The package also declares the model as a plug-in of the
harness (entry point group `lm_eval.models`), by which plain `lm_eval --model maskpro` runs where the harness reads entry points;
releases up to 0.4.13 do not, and know only the models of their own package. In a program of your own, `register()` does it.

Model arguments: `pretrained` (anything that `maskpro-deploy eval` measures), `provider`, `threads`, `dtype`, `form`, `engine`,
`batch_size`, `max_length`, `add_bos_token`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import ConfigError, InputError, MaskProError, check_range
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import SILENT, Meter, Progress
from maskpro_deploy.targets.models import RunConfig, Target, find_target, open_target

if TYPE_CHECKING:
    from maskpro_deploy.evaluate.harness import Answers, HarnessLM

NAME = "maskpro"
_LONGEST = 2048  # where a model does not say what it reads; the harness's own default


def adapt(
    target: Target,
    run: RunConfig,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_special_tokens: bool | None = None,
    answers: Answers | None = None,
    progress: Progress = SILENT,
) -> HarnessLM:
    """A model, loaded, behind the harness's interface.

    Args:
        target: the model.
        run: where it runs.
        batch_size: rows in one call, at most.
        max_length: cut contexts to so many tokens; None for what the model reads.
        add_special_tokens: whether texts get the tokenizer's special tokens; None lets the tokenizer do as it does.
        answers: where answers are kept.
        progress: updated after each batch.

    Raises:
        InputError: the model names no end-of-text token.
        MaskProError: it cannot be opened (see `open_target`).
    """
    require("eval", "running tasks")
    from maskpro_deploy.evaluate.harness import HarnessConfig, HarnessLM

    begin, end = target.named_token("bos_token"), target.named_token("eos_token")
    if end is None:
        raise InputError(f"{target.name} names no end-of-text token.\nAdd eos_token to its tokenizer_config.json.")
    lm = open_target(target, run)
    longest = lm.max_length or _LONGEST
    check_range("max_length", max_length, most=longest, note=f"what {target.name} reads")
    config = HarnessConfig(
        max_length=max_length or longest,
        end_of_text=end,
        begin_of_text=begin,
        add_special_tokens=add_special_tokens,
        batch_size=min(batch_size, lm.max_rows or batch_size),
        name=target.name,
        render=target.render_chat,
    )
    return HarnessLM(lm, target.tokenizer, config, answers, progress)


def _open_from_arguments(
    pretrained: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    dtype: str = "fp32",
    form: str | None = None,
    engine: str | None = None,
    batch_size: int | str = 8,
    max_length: int | None = None,
    add_bos_token: bool | None = None,
    device: str | None = None,
    max_batch_size: int | None = None,
    **others: Any,
) -> HarnessLM:
    """The model that the harness's `--model_args` describe; `device` and `max_batch_size` come from its own options."""
    if others:
        raise ConfigError(f"--model_args: the model {NAME} does not know {next(iter(others))}.")
    if not pretrained:
        raise ConfigError("--model_args lacks pretrained=CHECKPOINT_OR_BUNDLE.")
    if not str(batch_size).isdigit():
        raise ConfigError(
            f"--batch_size {batch_size} is not a number (the model {NAME} fits batches to the memory bound itself)."
        )
    if provider == "auto" and device is not None:
        provider = device.partition(":")[0]
    run = RunConfig(provider=provider, threads=threads, dtype=dtype, form=form, engine=engine)
    target = find_target(str(pretrained))
    return adapt(
        target,
        run,
        batch_size=min(int(batch_size), max_batch_size or int(batch_size)),
        max_length=max_length,
        add_special_tokens=add_bos_token,
        progress=Meter(target.name, "requests"),
    )


@cache
def _make_model_class() -> type[HarnessLM]:
    """What the harness makes of `--model maskpro`; a class of the harness's, and so made when it is asked for."""
    require("eval", "the harness's command line")
    from maskpro_deploy.evaluate.harness import HarnessLM

    class MaskProLM(HarnessLM):
        """`--model maskpro`."""

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessLM:
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> HarnessLM:
            options = {k: v for k, v in (additional_config or {}).items() if v is not None}
            return _open_from_arguments(**{**options, **arg_dict})

    return MaskProLM


def __getattr__(name: str) -> Any:
    """`MaskProLM`, which the entry point names."""
    if name == "MaskProLM":
        return _make_model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make the harness know the model `maskpro`, if it has not read the entry point.

    Raises:
        MissingExtraError: the harness is not installed.
    """
    model = _make_model_class()
    import lm_eval.models  # noqa: F401 (fills the registry, which is filled only while it is empty)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME)(model)


def main() -> None:
    """`maskpro-lm-eval`: the harness's command line with the model registered."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except MaskProError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
