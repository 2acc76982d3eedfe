from __future__ import annotations

from pathlib import Path

import pytest
from bundle_cases import fail, run, run_json

from maskpro_deploy.errors import ConfigError, FormatError, InputError

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
