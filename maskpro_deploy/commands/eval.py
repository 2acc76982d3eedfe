"""`maskpro-deploy eval`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands._shared import emit, json_option, table, threads_option
from maskpro_deploy.data import HELD_OUT
from maskpro_deploy.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from maskpro_deploy.data import Text
    from maskpro_deploy.evaluate import CausalLM, Comparison, EvalProtocol, Perplexity

SCHEMA, VERSION = "maskpro-deploy/eval", 1


@click.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--data", "source", default=HELD_OUT, show_default=True, help="Text: builtin[:heldout], a file, or hub:NAME[:SPLIT]."
)
@click.option("--window", type=int, default=512, show_default=True, help="Tokens in a window; windows do not overlap.")
@click.option("--max-windows", type=int, help="Use only the first so many windows.")
@click.option(
    "--joining",
    default="separator",
    show_default=True,
    metavar="separator|blank-line",
    help="How documents become one stream: an end-of-text token after each, or blank lines between them.",
)
@click.option(
    "--bos", default="none", show_default=True, metavar="none|first", help="Begin-of-text token at the start of the stream."
)
@click.option("--against", metavar="TARGET", help="The reference: adds the ratio of perplexities, KL and agreement.")
@click.option(
    "--provider", default="auto", show_default=True, metavar="auto|cpu|cuda|tensorrt|trt-native", help="What runs the bundles."
)
@threads_option
@json_option
def command(
    targets: tuple[str, ...],
    source: str,
    window: int,
    max_windows: int | None,
    joining: str,
    bos: str,
    against: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    r"""Measure the perplexity of each TARGET, and how far it is from a reference.

    TARGET is a checkpoint folder, a .gguf file, a Hub id or `demo` (run in torch), or a bundle folder (run in onnxruntime).
    All of them read the same tokens.

    \b
    Example:
      maskpro-deploy eval sparse --against demo
      maskpro-deploy eval bundle sparse --against demo --data my.txt --window 1024
    """
    from maskpro_deploy.data import load_text
    from maskpro_deploy.evaluate import EvalProtocol, compare_all, perplexity
    from maskpro_deploy.progress import Meter

    protocol = EvalProtocol(window=window, joining=joining, bos=bos, max_windows=max_windows)
    names = [*targets, *([against] if against is not None else [])]
    if len(set(names)) != len(names):
        raise InputError(f"the same target is named twice: {' '.join(names)}.\nName each one once.")
    text = load_text(source)
    folders = {name: _folder(name) for name in names}
    windows = _windows(folders, protocol, text)
    lms = {name: _open(folder, provider, threads) for name, folder in folders.items()}
    meter = Meter("evaluating", "windows")
    reference: Perplexity | None = None
    comparisons: dict[str, Comparison] = {}
    if against is not None:
        own = lms.pop(against)
        reference, comparisons = compare_all(lms, own, windows, meter)
        found = {name: comparisons[name].model for name in targets}
    else:
        found = {name: perplexity(lm, windows, meter) for name, lm in lms.items()}
    meter.close()
    stated = {**protocol.to_json(), "data": source, "data_sha256": text.sha256, "windows": len(windows)}
    value = _json(stated, found, comparisons, against, reference, folders, provider)
    emit(as_json, value, _text(protocol, source, found, comparisons, against, reference))


def _folder(target: str) -> Path:
    from maskpro_deploy.manifest import MANIFEST_FILE
    from maskpro_deploy.models import resolve

    path = Path(target)
    return path if (path / MANIFEST_FILE).is_file() else resolve(target)


def _is_bundle(folder: Path) -> bool:
    from maskpro_deploy.manifest import MANIFEST_FILE

    return (folder / MANIFEST_FILE).is_file()


def _open(folder: Path, provider: str, threads: int | None) -> CausalLM:
    from maskpro_deploy.extras import require

    if _is_bundle(folder):
        from maskpro_deploy.runtime import SessionConfig, open_session

        return open_session(folder, SessionConfig(provider=provider, threads=threads, spin=False))
    require("learn", "running a checkpoint")
    import torch

    from maskpro_deploy.torch_lm import TorchLM

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchLM.open(folder)


def _windows(folders: dict[str, Path], protocol: EvalProtocol, text: Text) -> npt.NDArray[np.int64]:
    """The windows, which must be the same for all targets.

    Raises:
        InputError: two targets turn the text into different tokens, or a target takes no window of this length.
    """
    import numpy as np

    from maskpro_deploy.data import load_tokenizer, separator_token

    first_name, first = "", None
    for name, folder in folders.items():
        if (longest := _max_length(folder)) is not None and protocol.window > longest:
            raise ConfigError(f"--window {protocol.window} is out of range: {name} takes {longest} tokens at most.")
        tokenizer = load_tokenizer(folder)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        separator = separator_token(folder, tokenizer)
        windows = protocol.windows(text, tokenizer, separator=separator, bos_token=_bos_token(folder))
        if first is None:
            first_name, first = name, windows
        elif not np.array_equal(first, windows):
            raise InputError(
                f"{first_name} and {name} turn the text into different tokens: their perplexities would not compare.\n"
                f"Measure models with different tokenizers in separate runs."
            )
    assert first is not None
    return first


def _max_length(folder: Path) -> int | None:
    """The longest sequence that the model takes, where it says so."""
    from maskpro_deploy.files import read_json
    from maskpro_deploy.manifest import Manifest

    if _is_bundle(folder):
        return Manifest.load(folder, engines=False).model.max_length
    config = folder / "config.json"
    longest = read_json(config).get("max_position_embeddings") if config.is_file() else None
    return longest if isinstance(longest, int) else None


def _bos_token(folder: Path) -> int | None:
    from maskpro_deploy.files import read_json

    config = folder / "config.json"
    token = read_json(config).get("bos_token_id") if config.is_file() else None
    return int(token) if isinstance(token, int) else None


def _json(
    protocol: dict[str, Any],
    found: dict[str, Perplexity],
    comparisons: dict[str, Comparison],
    against: str | None,
    reference: Perplexity | None,
    folders: dict[str, Path],
    provider: str,
) -> dict[str, Any]:
    targets = []
    for name, value in found.items():
        row: dict[str, Any] = {"name": name, "engine": _engine(folders[name], provider), **dataclasses.asdict(value)}
        if name in comparisons:
            comparison = dataclasses.asdict(comparisons[name])
            row["against_reference"] = {k: v for k, v in comparison.items() if k not in ("model", "reference")}
        targets.append(row)
    against_row = None
    if against is not None and reference is not None:
        against_row = {"name": against, "engine": _engine(folders[against], provider), **dataclasses.asdict(reference)}
    return {"schema": SCHEMA, "version": VERSION, "protocol": protocol, "reference": against_row, "targets": targets}


def _engine(folder: Path, provider: str) -> str:
    if not _is_bundle(folder):
        return "torch"
    return provider if provider == "trt-native" else "onnxruntime"


def _text(
    protocol: EvalProtocol,
    source: str,
    found: dict[str, Perplexity],
    comparisons: dict[str, Comparison],
    against: str | None,
    reference: Perplexity | None,
) -> str:
    header = ["model", "perplexity", "±", "bits/token"]
    rows: list[Sequence[object]] = []
    if against is not None and reference is not None:
        header += ["ratio", "±", "KL (nats)", "same top token"]
        rows.append([*_figures(f"{against} (reference)", reference), "1", "-", "0", "100.0 %"])
    for name, value in found.items():
        row = _figures(name, value)
        if name in comparisons:
            c = comparisons[name]
            row += [f"{c.ratio:.4f}", _error(c.ratio_stderr), f"{c.kl:.3g}", f"{100 * c.top1_agreement:.1f} %"]
        rows.append(row)
    some = next(iter(found.values()))
    joining = "end-of-text after each document" if protocol.joining == "separator" else "documents joined by blank lines"
    bos = "begin-of-text at the start" if protocol.bos == "first" else "no begin-of-text"
    return (
        table(rows, header)
        + f"\n\n{source}: {some.windows} windows of {protocol.window} tokens, stride {protocol.window}, {joining}, {bos}; "
        + f"{some.tokens} tokens scored. ± is one standard error over windows."
    )


def _figures(name: str, value: Perplexity) -> list[object]:
    return [name, f"{value.perplexity:.3f}", _error(value.stderr), f"{value.bits_per_token:.3f}"]


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
