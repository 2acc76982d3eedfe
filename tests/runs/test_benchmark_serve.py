"""`benchmark serve` on real HTTP servers: faked ones, and ours on a tiny bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from fake_server import events, fake_server, streamed

from maskpro_deploy.bench.load.point import PointsFile
from maskpro_deploy.cli import cli
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, Interrupted, MachineError, MaskProError

pytest.importorskip("aiohttp")

# the server runs in a thread of this very process: it holds up the generator, which is not what is tested here
SMALL = ("--num-prompts", 6, "--input-len", 8, "--output-len", 4, "--warmup", 1, "--max-lag", 10_000)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["benchmark", "serve", *(str(a) for a in arguments)])


def run_json(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exception is None, result.exception
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def fail(*arguments: object) -> MaskProError:
    result = invoke(*arguments)
    assert isinstance(result.exception, MaskProError), result.exception
    return result.exception


def test_a_sweep_of_a_server_is_one_json_object() -> None:
    with fake_server() as (url, seen):
        value = run_json(url, "--concurrency", "1,2", *SMALL)
    assert value["valid"] is True
    assert [p["label"] for p in value["points"]] == ["concurrency 1", "concurrency 2"]
    arm = value["points"][0]["arms"][0]
    assert (arm["completed"], arm["total_input_tokens"], arm["total_output_tokens"]) == (6, 48, 24)
    assert value["arms"][0]["model_id"] == "demo"
    assert all(len(r["prompt"]) == 8 and r["max_tokens"] == 4 and r["ignore_eos"] for r in seen)
    assert len({str(r["prompt"]) for r in seen}) == len(seen)


def test_the_report_has_all_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    with fake_server() as (url, _):
        result = invoke(url, "--request-rate", "100,inf", *SMALL, "--slo", "ttft:60000", "--out", out)
        assert result.exception is None, result.exception
        assert "--force" in str(fail(url, *SMALL, "--out", out))
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.md", "result.json", "vllm"]
    assert sorted(p.name for p in (out / "vllm").iterdir()) == ["load-1-server-1.json", "load-2-server-1.json"]
    flat = json.loads((out / "vllm/load-1-server-1.json").read_text())
    assert (flat["request_rate"], flat["completed"], flat["backend"]) == (100.0, 6, "openai")
    assert flat["request_goodput"] == flat["request_throughput"]
    assert "goodput" in result.stdout
    assert "Open loop" in (out / "report.md").read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_a_server_that_errors_half_the_time_gives_no_nice_number(tmp_path: Path) -> None:
    def shaky(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        return (500, b'{"error": {"message": "out of luck"}}') if number > 2 and number % 2 else streamed(request)

    with fake_server(shaky) as (url, _):
        result = invoke(url, "--concurrency", 1, *SMALL, "--out", tmp_path / "report")
    assert isinstance(result.exception, CheckFailed)
    assert "3 of 6 requests failed (3 x http 500: out of luck)" in str(result.exception)
    assert "INVALID: " in result.stdout
    assert json.loads((tmp_path / "report/result.json").read_text())["valid"] is False


def test_a_server_with_nothing_but_completions_is_measured_with_remarks() -> None:
    def plain(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        if "stream_options" in request or "ignore_eos" in request:
            return 400, b'{"error": {"message": "unknown field"}}'
        return 200, events(*[{"choices": [{"text": " x", "finish_reason": None}]}] * 4)

    with fake_server(plain, tokenize=False) as (url, seen):
        value = run_json(f"{url}/v1", "--concurrency", 1, *SMALL)
    notes = "\n".join(value["notes"])
    assert "no /tokenize" in notes
    assert "refuses the fields stream_options and ignore_eos" in notes
    assert "did not count the tokens of 6 answers" in notes
    assert value["points"][0]["arms"][0]["total_output_tokens"] == 24
    assert isinstance(seen[-1]["prompt"], str)


def test_a_chat_and_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"text": "first question"}\n{"text": "second one"}\n')

    def chat(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        return 200, events({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})

    with fake_server(chat) as (url, seen):
        run_json(url, "--endpoint", "chat", "--prompts", tmp_path / "prompts.jsonl", "--concurrency", 1, *SMALL)
    assert seen[0]["path"] == "/v1/chat/completions"
    assert {r["messages"][0]["content"] for r in seen} == {"first question", "second one"}


def test_the_key_is_taken_from_the_environment_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTHER_KEY", "very-secret")
    with fake_server() as (url, seen):
        invoke(url, "--concurrency", 1, *SMALL, "--api-key-env", "OTHER_KEY", "--out", tmp_path / "report")
    assert {r["authorization"] for r in seen} == {"Bearer very-secret"}
    assert all("very-secret" not in p.read_text() for p in (tmp_path / "report").rglob("*.*"))


def test_servers_that_may_not_be_compared() -> None:
    def short(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        return streamed({**request, "max_tokens": 3})

    with fake_server() as (url, _), fake_server(short) as (other, _):
        assert "different amounts of work" in str(fail(url, "--against", other, *SMALL))


def test_nobody_there() -> None:
    error = fail("http://127.0.0.1:9", *SMALL)
    assert isinstance(error, MachineError)
    assert "cannot be reached" in str(error)


def test_an_interrupted_sweep_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add = PointsFile.add

    def interrupted(self: PointsFile, point: Any) -> None:
        add(self, point)
        raise KeyboardInterrupt

    arguments = ("--concurrency", "1,2", *SMALL, "--out", tmp_path / "report")
    with fake_server() as (url, seen):
        with monkeypatch.context() as patch:
            patch.setattr(PointsFile, "add", interrupted)
            error = fail(url, *arguments)
        assert isinstance(error, Interrupted)
        assert "--resume" in str(error)
        assert "unfinished" in str(fail(url, *arguments))
        before = len(seen)
        value = run_json(url, *arguments, "--resume")
        assert len(seen) - before == 2 + 1 + 6  # the checks, the warm-up, and the second load only
    assert [p["arms"][0]["completed"] for p in value["points"]] == [6, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--slo", "ttft:0"), "--slo ttft:0 is impossible"),
        (("--slo", "tpot:5", "--output-len", "1"), "--slo tpot"),
        (("--slo", "ttft:5", "--no-stream"), "--no-stream"),
        (("--request-rate", "0"), "--request-rate 0"),
        (("--request-rate", "fast"), "--request-rate 'fast'"),
        (("--request-rate", "1", "--concurrency", "1"), "not both"),
        (("--request-rate", "inf", "--duration", "5s"), "inf sends all"),
        (("--concurrency", "0"), "--concurrency 0"),
        (("--num-prompts", "0"), "--num-prompts 0"),
        (("--num-prompts", "5", "--duration", "5s"), "--duration"),
        (("--input-len", "0"), "--input-len 0"),
        (("--max-failed", "2"), "--max-failed 2"),
        (("--max-lag", "0"), "--max-lag 0"),
        (("--burstiness", "0", "--request-rate", "1"), "--burstiness 0"),
        (("--temperature", "-1"), "--temperature -1"),
        (("--blocks", "0"), "--blocks 0"),
        (("--sessions", "8"), "only two bundles"),
        (("--resume",), "--resume needs --out"),
        (("--api-key-env", "NO_SUCH_KEY"), "--api-key-env NO_SUCH_KEY"),
    ],
)
def test_wrong_settings_name_the_flag(arguments: tuple[str, ...], said: str) -> None:
    error = fail("http://127.0.0.1:9", *arguments)
    assert isinstance(error, ConfigError)
    assert said in str(error)


def test_what_is_neither_url_nor_bundle(tmp_path: Path) -> None:
    for target in ("ftp://host", "http://name:word@host", tmp_path / "nothing"):
        error = fail(target, *SMALL, "--out", tmp_path / "report")
        assert isinstance(error, InputError)
        assert "word" not in str(error).replace("password", "")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_served_for_the_time_of_the_run(dense_bundle: Path) -> None:
    options = ("--same-model", "--concurrency", 2, "--sessions", 2, "--threads", 1)
    value = run_json(dense_bundle, "--against", dense_bundle, *options, "--blocks", 4, *SMALL)
    assert value["valid"] is True
    assert [(a["started_here"], a["dtype"], a["sparsity"]) for a in value["arms"]] == [(True, "fp32", None)] * 2
    arms = value["points"][0]["arms"]
    assert [a["completed"] for a in arms] == [16, 16]  # two at a time, twice in each of two blocks of both sessions
    assert arms[0]["input_lens"] == [8] * 16
    assert arms[0]["output_lens"] == [4] * 16
    assert [a["positions"][::2] for a in arms] == [[0, 3, 1, 2] * 2, [1, 2, 0, 3] * 2]
    assert arms[0]["sessions"] == [0] * 8 + [1] * 8
    assert all(c["same_kernels"] for c in value["points"][0]["comparisons"])
    assert any("started again 2 times" in note for note in value["notes"])
    assert psutil.Process().children() == []


def test_a_bundle_that_cannot_be_served_says_why(dense_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_bundle, tmp_path / "bundle")
    graph = tmp_path / "bundle/model.onnx"
    graph.write_bytes(bytes(len(graph.read_bytes())))
    error = fail(tmp_path / "bundle", *SMALL)
    assert "cannot be served" in str(error)
    assert "model.onnx" in str(error)
    assert psutil.Process().children() == []
