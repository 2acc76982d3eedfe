from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cases import fail, run, run_json
from tiny_tasks import write_tasks

from maskpro_deploy.errors import ConfigError, FormatError, InputError, Interrupted
from maskpro_deploy.evaluate.log import LOG_FILE
from maskpro_deploy.targets import models as targets

SMALL = ("--window", 32, "--max-windows", 4, "--threads", 1)


def test_checkpoints_and_bundles_are_measured_on_the_same_tokens(
    tiny_checkpoint: Path, tiny_sparse: Path, sparse_bundle: Path
) -> None:
    value = run_json("eval", tiny_sparse, sparse_bundle, "--against", tiny_checkpoint, *SMALL)
    assert value["schema"] == "maskpro-deploy/eval"
    assert value["protocol"]["windows"] == 4
    assert value["protocol"]["data"] == "builtin:heldout"
    assert value["reference"]["engine"] == "torch"
    torch_row, ort_row = value["targets"]
    assert (torch_row["engine"], ort_row["engine"]) == ("torch", "onnxruntime")
    assert ort_row["perplexity"] == pytest.approx(torch_row["perplexity"], rel=1e-4)
    assert ort_row["tokens"] == 4 * 31
    against = ort_row["against_reference"]
    assert against["ratio"] == pytest.approx(ort_row["perplexity"] / value["reference"]["perplexity"])
    assert against["kl"] > 0


def test_without_a_reference_there_is_perplexity_alone(dense_bundle: Path) -> None:
    value = run_json("eval", dense_bundle, *SMALL)
    assert value["reference"] is None
    assert "against_reference" not in value["targets"][0]


def test_the_table_states_its_protocol(dense_bundle: Path, sparse_bundle: Path) -> None:
    out = run("eval", sparse_bundle, "--against", dense_bundle, *SMALL).stdout
    assert "(reference)" in out
    assert "KL (nats)" in out
    assert "4 windows of 32 tokens, stride 32, end-of-text after each document, no begin-of-text; 124 tokens scored" in out
    assert "tokens 2 to 32 of each window" in out
    assert "The mean is taken over scored tokens" in out


def test_any_text_file_will_do(dense_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("Some text of my own. " * 40)
    value = run_json(
        "eval", dense_bundle, "--data", tmp_path / "my.txt", "--window", 16, "--joining", "blank-line", "--bos", "first"
    )
    assert value["protocol"]["joining"] == "blank-line"
    assert value["protocol"]["bos"] == "first"
    assert len(value["protocol"]["data_sha256"]) == 64


def test_different_tokenizers_are_an_error(tiny_checkpoint: Path, other_tokenizer: Path) -> None:
    error, _ = fail("eval", other_tokenizer, "--against", tiny_checkpoint, *SMALL)
    assert isinstance(error, InputError)
    assert "turn the text into different tokens" in str(error)


def test_text_shorter_than_the_window_is_an_error(dense_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Short.")
    error, _ = fail("eval", dense_bundle, "--data", tmp_path / "short.txt", "--window", 64)
    assert "less than one window of 64" in str(error)


def test_a_window_longer_than_the_model_is_an_error(dense_bundle: Path, tiny_checkpoint: Path) -> None:
    for target in (dense_bundle, tiny_checkpoint):
        error, _ = fail("eval", target, "--window", 257)
        assert isinstance(error, ConfigError)
        assert "takes 256 tokens at most" in str(error)


def test_a_target_named_twice_is_an_error(dense_bundle: Path) -> None:
    error, _ = fail("eval", dense_bundle, "--against", dense_bundle)
    assert "named twice" in str(error)


def test_a_target_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    error, _ = fail("eval", tmp_path / "nothing")
    assert isinstance(error, InputError)
    assert "does not exist" in str(error)


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    error, _ = fail("eval", tmp_path)
    assert isinstance(error, InputError)


def test_a_damaged_tokenizer_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    error, _ = fail("eval", tmp_path)
    assert isinstance(error, FormatError)


def test_help_shows_an_example() -> None:
    assert "maskpro-deploy eval sparse --against demo" in run("eval", "--help").output


# -- published protocols -----------------------------------------------------------------------------------------------------


def test_a_published_protocol_reads_a_local_file(dense_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(" = Title = \n \n" + " Some words of a text . \n" * 40)
    given = ("--protocol", "wikitext2-wanda", "--data", f"wikitext2={tmp_path}", "--window", 64, "--threads", 1)
    protocol = run_json("eval", dense_bundle, *given)["protocol"]
    assert (protocol["name"], protocol["split"], protocol["joining"]) == ("wikitext2-wanda", "test", "blank-line")
    assert (protocol["bos"], protocol["stride"], protocol["documents"]) == ("tokenizer", 64, 42)
    assert "window 64 instead of 2048" in run("eval", dense_bundle, *given).stdout


def test_a_missing_split_is_an_error(dense_bundle: Path, tmp_path: Path) -> None:
    error, _ = fail("eval", dense_bundle, "--protocol", "c4-wanda", "--data", tmp_path)
    assert "has no validation split of c4" in str(error)


def test_an_unknown_protocol_is_an_error(dense_bundle: Path) -> None:
    error, _ = fail("eval", dense_bundle, "--protocol", "wikitext")
    assert "wikitext2-wanda" in str(error)


def test_overlapping_windows(dense_bundle: Path) -> None:
    value = run_json("eval", dense_bundle, *SMALL, "--stride", 8)
    assert value["targets"][0]["tokens"] == 31 + 3 * 8


def test_different_vocabularies_are_an_error(tiny_checkpoint: Path, dense_bundle: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    padded = shutil.copytree(tiny_checkpoint, tmp_path / "padded")
    weights = load_file(padded / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.concatenate([embedding, embedding[:8]])
    save_file(weights, padded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    error, _ = fail("eval", dense_bundle, padded, *SMALL)
    assert "has a vocabulary of 328" in str(error)


# -- results in a folder -----------------------------------------------------------------------------------------------------


def test_a_report_is_written(sparse_bundle: Path, dense_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    value = run_json("eval", sparse_bundle, "--against", dense_bundle, *SMALL, "--out", out)
    written = json.loads((out / "result.json").read_text())
    assert written["targets"] == value["targets"]
    assert len(written["targets"][0]["window_nll"]) == len(written["targets"][0]["window_kl"]) == 4
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 3
    assert "Ratio of perplexities" in html
    assert not re.search(r"""(src|href)=["']http""", html)
    text = (out / "report.md").read_text()
    assert text.count("\n| ") == 4
    assert "4 windows of 32 tokens" in text


def test_a_target_is_added_to_a_result(tiny_sparse: Path, sparse_bundle: Path, dense_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    first = run_json("eval", sparse_bundle, "--against", dense_bundle, *SMALL, "--out", out)
    both = run_json("eval", tiny_sparse, "--against", dense_bundle, *SMALL, "--out", out)
    assert [t["name"] for t in both["targets"]] == [str(sparse_bundle), str(tiny_sparse)]
    assert both["targets"][0] == first["targets"][0]
    assert both["reference"] == first["reference"]
    at_once = run_json("eval", sparse_bundle, tiny_sparse, "--against", dense_bundle, *SMALL)
    assert both["targets"][1]["perplexity"] == at_once["targets"][1]["perplexity"]
    assert both["targets"][1]["against_reference"] == at_once["targets"][1]["against_reference"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--window", 16), "window is 32 there, 16 here"),
        (("--max-windows", 3), "windows is 4 there, 3 here"),
        (("--data", "builtin"), "data sha256 is"),
        (("--stride", 16), "stride is 32 there, 16 here"),
    ],
)
def test_a_result_of_another_protocol_is_left_alone(
    dense_bundle: Path, tmp_path: Path, changed: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "report"
    run("eval", dense_bundle, *SMALL, "--out", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    error, _ = fail("eval", dense_bundle, *SMALL, *changed, "--out", out)
    assert said in str(error) or "name is builtin there" in str(error) or "name is custom there" in str(error)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    if changed[0] == "--stride":
        run("eval", dense_bundle, *SMALL, *changed, "--out", out, "--force")


def test_another_model_of_the_same_name_is_refused(tiny_checkpoint: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "report"
    shutil.copytree(tiny_checkpoint, model)
    run("eval", model, *SMALL, "--out", out)
    shutil.rmtree(model)
    shutil.copytree(tiny_sparse, model)
    error, _ = fail("eval", model, *SMALL, "--out", out)
    assert f"results of another {model}" in str(error)


def test_another_reference_is_refused(dense_bundle: Path, sparse_bundle: Path, tmp_path: Path) -> None:
    run("eval", sparse_bundle, "--against", dense_bundle, *SMALL, "--out", tmp_path / "report")
    error, _ = fail("eval", sparse_bundle, *SMALL, "--out", tmp_path / "report")
    assert f"reference is {dense_bundle} there, None here" in str(error)


class _Stops:
    """A model that is interrupted after some windows."""

    def __init__(self, lm: Any, calls: int) -> None:
        self._lm, self._left = lm, calls

    def logits(self, tokens: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._lm.logits(tokens)


def test_an_interrupted_run_goes_on_where_it_was(
    sparse_bundle: Path, dense_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskpro_deploy.runs import evaluation

    out, given = tmp_path / "report", ("eval", sparse_bundle, "--against", dense_bundle, *SMALL)
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "open_target", lambda t, r: targets.OpenTarget(_Stops(targets.open_target(t, r), 1 + 2)))
        error, _ = fail(*given, "--out", out)
    assert isinstance(error, Interrupted)
    assert "goes on there" in str(error)
    assert not (out / "result.json").exists()
    windows = [row for row in map(json.loads, (out / LOG_FILE).read_text().splitlines()) if "nll" in row]
    assert len(windows) == 4  # two windows of two models
    with monkeypatch.context() as patched:  # two windows are left
        patched.setattr(evaluation, "open_target", lambda t, r: targets.OpenTarget(_Stops(targets.open_target(t, r), 1 + 2)))
        resumed = run_json(*given, "--out", out)
    whole = run_json(*given)
    assert resumed["targets"][0]["window_nll"] == whole["targets"][0]["window_nll"]
    assert resumed["targets"][0]["against_reference"] == whole["targets"][0]["against_reference"]


def test_a_folder_of_something_else_is_left_alone(dense_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error, _ = fail("eval", dense_bundle, *SMALL, "--out", tmp_path)
    assert "holds no evaluation" in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# -- tasks -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("datasets_cache")
def test_tasks_of_several_targets_in_one_table(
    tiny_sparse: Path, sparse_bundle: Path, dense_bundle: Path, task_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    given = ("--tasks", "tiny_choice,tiny_answer", "--task-path", task_folder, "--threads", 1, "--out", out)
    value = run_json("eval", sparse_bundle, "--against", dense_bundle, *given)
    assert (value["kind"], value["settings"]["tasks"]) == ("tasks", ["tiny_choice", "tiny_answer"])
    assert value["reference"]["name"] == str(dense_bundle)
    accuracy = value["targets"][0]["metrics"][0]
    assert (accuracy["task"], accuracy["metric"], accuracy["documents"]) == ("tiny_choice", "acc", 6)
    assert accuracy["stderr"] > 0
    answers = (out / LOG_FILE).read_text().count('"answer"')
    assert answers == 2 * (6 * 3 + 6)

    added = run("eval", tiny_sparse, "--against", dense_bundle, *given).stdout
    assert added.splitlines()[0].count("±") == 3
    assert len([line for line in added.splitlines() if line.startswith("tiny_")]) == 3
    assert "lm-eval" in added
    assert (out / LOG_FILE).read_text().count('"answer"') == answers + 6 * 3 + 6  # the reference was not asked again
    assert json.loads((out / "result.json").read_text())["targets"][0] == value["targets"][0]
    assert "<svg" in (out / "report.html").read_text()

    error, _ = fail("eval", tiny_sparse, "--against", dense_bundle, *given, "--limit", 2)
    assert "limit is None there, 2 here" in str(error)


def test_options_of_the_other_kind_are_an_error(dense_bundle: Path, task_folder: Path) -> None:
    error, _ = fail("eval", dense_bundle, "--tasks", "tiny_choice", "--window", 32)
    assert "--window is for perplexity" in str(error)
    error, _ = fail("eval", dense_bundle, "--task-path", task_folder)
    assert "--task-path is for --tasks" in str(error)


def test_a_task_folder_that_does_not_exist_is_an_error(dense_bundle: Path, tmp_path: Path) -> None:
    error, _ = fail("eval", dense_bundle, "--tasks", "x", "--task-path", tmp_path / "nothing")
    assert "does not exist" in str(error)


def test_a_provider_that_is_not_here_is_an_error(dense_bundle: Path, tiny_checkpoint: Path) -> None:
    for target in (dense_bundle, tiny_checkpoint):
        error, _ = fail("eval", target, *SMALL, "--provider", "cuda")
        assert "--provider cuda" in str(error)
    error, _ = fail("eval", dense_bundle, *SMALL, "--engine", "x.engine")
    assert "--engine x.engine is for" in str(error)
    error, _ = fail("eval", dense_bundle, *SMALL, "--dtype", "fp8")
    assert "--dtype" in str(error)
