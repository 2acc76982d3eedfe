"""Messages to the model's prompt: the bundle's template, another one, and templates that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import InputError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.generate.chat_template import read_template_file
from maskpro_deploy.runtime.generate.loading import load
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

HELLO = [{"role": "user", "content": "hi"}]


def test_messages_become_the_models_own_prompt(text_tokenizer: TextTokenizer) -> None:
    rendered = text_tokenizer.render([{"role": "user", "content": "hi"}])
    assert rendered == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert text_tokenizer.render([{"role": "user", "content": "hi"}], {"add_generation_prompt": False}).endswith("<|end|>\n")


def bundle_with(source: Path, target: Path, template: str | None, config: dict[str, object]) -> Path:
    shutil.copytree(source, target)
    (target / "chat_template.jinja").unlink()
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@pytest.fixture
def shape(session: GraphSession) -> ModelShape:
    return session.shape


def test_a_template_in_the_tokenizers_config_counts_too(sparse_bundle: Path, tmp_path: Path, shape: ModelShape) -> None:
    config = {"chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "bos_token": {"content": "<b>"}}
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", None, config), shape)
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "<b>x<|end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for",
        "{{ messages[7].content.upper() }}",
    ],
)
def test_a_template_that_refuses_or_breaks_out_is_an_input_error(
    sparse_bundle: Path, tmp_path: Path, shape: ModelShape, template: str
) -> None:
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", template, {}), shape)
    with pytest.raises(InputError, match="chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_without_a_template_messages_are_refused(sparse_bundle: Path, tmp_path: Path, shape: ModelShape) -> None:
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", None, {}), shape)
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_another_template_takes_the_place_of_the_bundles_own(sparse_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}<{{ messages[0].content }}>{{ eos_token }}")
    config = RuntimeConfig(provider="cpu", threads=1, chat_template=read_template_file(path))
    with load(sparse_bundle, config) as generator:
        tokenizer = generator.tokenizer
        assert tokenizer.render(HELLO) == "<hi><|end|>"
        assert tokenizer.render(HELLO, tools=[{"type": "function", "function": {"name": "f"}}]) == "[f]<hi><|end|>"
        assert tokenizer.tool_template is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"{{ messages }}\n{% for", "line 2: not a chat template"),
    ],
)
def test_what_is_no_template_is_refused_before_anything_is_loaded(
    tmp_path: Path, sparse_bundle: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_template_file(path)
    result = CliRunner().invoke(cli, ["serve", str(sparse_bundle), "--chat-template", str(path), "--port", "0"])
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
