"""Replicas under Ray Serve answer like the server itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.listening import listen
from maskpro_deploy.runtime.ray_app import application

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own warnings are not ours

RUNTIME = RuntimeConfig(provider="cpu", threads=1)


@pytest.fixture
def url(sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray import serve

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(sparse_bundle, ServeConfig(runtime=RUNTIME), replicas=2, cpus=0.5), route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_replicas_answer_like_the_server(url: str, sparse_bundle: Path) -> None:
    with (
        running_server(sparse_bundle, ServeConfig(port=0, runtime=RUNTIME)) as alone,
        openai.OpenAI(base_url=f"{alone}/v1", api_key="x") as single,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as many,
    ):
        model = single.models.list().data[0].id
        for seed in range(4):
            expected = single.completions.create(model=model, prompt="hello", seed=seed, max_tokens=12).choices[0].text
            assert many.completions.create(model=model, prompt="hello", seed=seed, max_tokens=12).choices[0].text == expected
            stream = many.completions.create(model=model, prompt="hello", seed=seed, max_tokens=12, stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == expected
        with pytest.raises(openai.BadRequestError, match="context holds 256"):
            many.completions.create(model=model, prompt="x", max_tokens=999)


def test_wrong_input_shows_before_anything_starts(tmp_path: Path, sparse_bundle: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        application(tmp_path)
    with pytest.raises(ConfigError, match="replicas"):
        application(sparse_bundle, replicas=0)
