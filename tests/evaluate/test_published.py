"""Named protocols give the figures of the code they follow: computed here once more, independently, in plain torch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from maskpro_deploy.data import HELD_OUT, load_text
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.evaluate.figures import perplexity
from maskpro_deploy.evaluate.protocol import EvalProtocol
from maskpro_deploy.evaluate.published import CUSTOM, PROTOCOLS, choose_protocol, describe_protocol
from maskpro_deploy.torch_lm import TorchLM

WINDOW = 96


@pytest.fixture(scope="module")
def with_bos(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that begins every text with a token, as LLaMA's does."""
    folder = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """Text as WikiText-2 has it: lines with their ends, and empty rows."""
    lines = [line for document in load_text(HELD_OUT).documents[:2] for line in document.splitlines()]
    return [row for line in lines for row in (f" {line} \n" if line else "", "")]


def figure_in_plain_torch(folder: Path, text: str, window: int, most: int | None) -> tuple[float, int]:
    """Perplexity as the papers' code defines it, with transformers' own tokenizer; and the number of windows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    assert ids[0] == 1
    count = min(len(ids) // window, most or len(ids))
    means = []
    with torch.inference_mode():
        for i in range(count):
            piece = ids[i * window : (i + 1) * window][None]
            logits = model(piece).logits[0, :-1].double()
            means.append(torch.nn.functional.cross_entropy(logits, piece[0, 1:]))
    return float(torch.stack(means).mean().exp()), count


def ours(folder: Path, name: str, source: Path, **overrides: int) -> tuple[float, dict[str, object]]:
    chosen = choose_protocol(name, data=str(source), **overrides)
    text = chosen.load()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    windows = chosen.settings.windows(text, tokenizer, separator=2, bos_token=1)
    found = perplexity(TorchLM.open(folder), windows.tokens, stride=windows.stride)
    return found.perplexity, chosen.to_json(text, windows, tokenizer)


@pytest.mark.parametrize("name", ["wikitext2-wanda", "wikitext2-wanda-4096", "wikitext2-maskllm"])
def test_wikitext2_as_the_papers_code_measures_it(name: str, with_bos: Path, rows: list[str], tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text("".join(row or "\n" for row in rows))
    expected, count = figure_in_plain_torch(with_bos, "\n\n".join(rows), WINDOW, None)
    found, facts = ours(with_bos, name, tmp_path, window=WINDOW)
    assert found == pytest.approx(expected, rel=1e-6)
    assert (facts["windows"], facts["special_tokens"], facts["documents"]) == (count, [1], len(rows))
    assert facts["changed"] == {"window": {"named": PROTOCOLS[name].settings.window, "used": WINDOW}}


def test_c4_as_the_papers_code_measures_it(with_bos: Path, rows: list[str], tmp_path: Path) -> None:
    documents = [row for row in rows if row] * 20
    (tmp_path / "validation.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents))
    expected, count = figure_in_plain_torch(with_bos, " ".join(documents[:1100]), WINDOW, 4)
    found, facts = ours(with_bos, "c4-wanda", tmp_path, window=WINDOW, max_windows=4)
    assert found == pytest.approx(expected, rel=1e-6)
    assert facts["windows"] == count == 4


def test_the_published_settings() -> None:
    wanda, long, maskllm, c4 = (
        PROTOCOLS[n].settings for n in ("wikitext2-wanda", "wikitext2-wanda-4096", "wikitext2-maskllm", "c4-wanda")
    )
    assert wanda == EvalProtocol(window=2048, joining="blank-line", bos="tokenizer")
    assert long == maskllm == EvalProtocol(window=4096, joining="blank-line", bos="tokenizer")
    assert c4 == EvalProtocol(window=2048, joining="space", bos="tokenizer", max_windows=256)


def test_a_file_of_ones_own_is_no_named_protocol() -> None:
    assert (
        choose_protocol("builtin").name == choose_protocol("builtin", data=HELD_OUT, window=512, max_windows=3).name == "builtin"
    )
    assert choose_protocol("builtin", data="my.txt").name == choose_protocol("builtin", window=100).name == CUSTOM


def test_what_was_changed_is_said(with_bos: Path, rows: list[str], tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text("".join(row or "\n" for row in rows))
    _, facts = ours(with_bos, "wikitext2-wanda", tmp_path, window=64, stride=32, max_windows=2)
    said = describe_protocol(facts)
    assert "2 windows of 64 tokens, stride 32" in said
    assert "tokens 2 to 64 of the first window, the last 32 of each further one" in said
    assert "special tokens, once (token 1 once)" in said
    assert "window 64 instead of 2048" in said
    assert "compares with no published one" in said


def test_the_help_and_the_documentation_name_every_protocol() -> None:
    from maskpro_deploy.commands.eval import command

    (option,) = [p for p in command.params if p.name == "protocol"]
    documentation = (Path(__file__).parents[2] / "docs" / "eval.md").read_text()
    for name, protocol in PROTOCOLS.items():
        assert name in str(option.help)  # type: ignore[attr-defined]
        assert re.search(rf"^\| `{name}`.*\| {protocol.settings.window} \|", documentation, re.M)


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(ConfigError, match="wikitext2-wanda"):
        choose_protocol("wikitext")


def test_the_settings_of_a_protocol_are_checked() -> None:
    with pytest.raises(ConfigError, match="--stride 2049"):
        choose_protocol("wikitext2-wanda", stride=2049)
    assert np.isclose(choose_protocol("c4-wanda", stride=1024).settings.step, 1024)
