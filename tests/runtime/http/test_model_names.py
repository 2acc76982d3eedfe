"""Names of the model, and the defaults of its bundle, over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from maskpro_deploy.commands.serve import command
from maskpro_deploy.errors import ConfigError, FormatError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.generate.model_defaults import GENERATION_FILE
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server, serve

RUNTIME = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=2)
RECOMMENDED = {"temperature": 0, "max_new_tokens": 7}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}


@pytest.fixture(scope="module")
def bundle(tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle exported from a checkpoint that recommends greedy answers of seven tokens."""
    checkpoint = tmp_path_factory.mktemp("recommends") / "checkpoint"
    shutil.copytree(tiny_sparse, checkpoint)
    (checkpoint / GENERATION_FILE).write_text(json.dumps(RECOMMENDED))
    export(checkpoint, checkpoint.with_name("bundle"), ExportConfig())
    return checkpoint.with_name("bundle")


@pytest.fixture(scope="module")
def http(bundle: Path) -> Iterator[httpx2.Client]:
    config = ServeConfig(port=0, runtime=RUNTIME, served_model_name="first", model_aliases=("gpt-4o", "org/model"))
    with running_server(bundle, config) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def test_every_name_is_listed_and_taken_and_answers_have_the_first(http: httpx2.Client) -> None:
    names = ["first", "gpt-4o", "org/model"]
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == names
    for name in names:
        assert http.get(f"/v1/models/{name}").json()["id"] == name
        answer = http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 1})
        assert (answer.status_code, answer.json()["model"]) == (200, "first")
    assert http.post("/v1/completions", json={"model": "other", "prompt": "x"}).status_code == 404


def test_exporting_keeps_what_the_authors_recommend(bundle: Path) -> None:
    assert json.loads((bundle / GENERATION_FILE).read_text()) == RECOMMENDED
    manifest = Manifest.load(bundle)
    assert GENERATION_FILE in {entry.path for entry in manifest.files}
    manifest.check_hashes(bundle)


def test_requests_that_do_not_say_get_it(http: httpx2.Client) -> None:
    chats = [http.post("/v1/chat/completions", json=CHAT).json() for _ in range(3)]
    assert len({c["choices"][0]["message"]["content"] for c in chats}) == 1
    assert {c["usage"]["completion_tokens"] for c in chats} == {7}
    texts = http.post("/v1/completions", json={"prompt": "x", "ignore_eos": True}).json()
    assert texts["usage"]["completion_tokens"] == 7
    longer = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 9, "temperature": 2.0}).json()
    assert longer["usage"]["completion_tokens"] == 9


def test_without_it_the_defaults_are_those_of_the_api(bundle: Path) -> None:
    config = ServeConfig(port=0, runtime=RUNTIME, generation_config="none")
    with running_server(bundle, config) as url, httpx2.Client(base_url=url, timeout=60) as client:
        bodies = [{"prompt": "x", "ignore_eos": True, "seed": seed} for seed in range(4)]
        answers = [client.post("/v1/completions", json=body).json() for body in bodies]
    assert {a["usage"]["completion_tokens"] for a in answers} == {16}
    assert len({a["choices"][0]["text"] for a in answers}) > 1  # drawn


def test_a_damaged_file_ends_the_start(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "damaged")
    text = (copy / GENERATION_FILE).read_text()
    (copy / GENERATION_FILE).write_text(text[:-1] + " ")  # as long as before
    with pytest.raises(FormatError, match=GENERATION_FILE):
        serve(copy, ServeConfig(port=0, runtime=RUNTIME))
    with running_server(copy, ServeConfig(port=0, runtime=RUNTIME, generation_config="none")) as url:
        assert httpx2.get(f"{url}/health").status_code == 200


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    for aliases in (("a", "a"), ("first",), (" ",)):
        with pytest.raises(ConfigError, match="--served-model-name"):
            ServeConfig(served_model_name="first", model_aliases=aliases)
    with pytest.raises(ConfigError, match="--generation-config"):
        ServeConfig(generation_config="maybe")


def test_the_command_takes_several_names(tmp_path: Path) -> None:
    names = ("--served-model-name", "a", "--served-model-name", "a")
    caught = CliRunner().invoke(command, [str(tmp_path), *names]).exception
    assert isinstance(caught, ConfigError)
