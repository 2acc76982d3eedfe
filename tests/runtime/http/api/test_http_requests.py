"""The sampling parameters of requests come from their one definition."""

from __future__ import annotations

import dataclasses

import pytest

from maskpro_deploy.runtime.generate.sampling_params import Range, SamplingError, SamplingParams
from maskpro_deploy.runtime.http.api.chat import ChatRequest
from maskpro_deploy.runtime.http.api.completions import CompletionRequest
from maskpro_deploy.runtime.http.api.requests import GenerationRequest

COMPLETION = {"prompt": "x"}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
PARAMETERS = dataclasses.fields(SamplingParams)


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_every_parameter_but_one_is_a_field_of_every_request(kind: type[GenerationRequest]) -> None:
    assert {p.name for p in PARAMETERS} - set(kind.model_fields) == {"prompt_logprobs"}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
def test_every_parameter_has_a_help_text_and_an_allowed_default(parameter: dataclasses.Field[object]) -> None:
    assert parameter.metadata["help"].endswith(".")
    allowed = parameter.metadata["range"]
    assert allowed is None or parameter.default is None or parameter.default in allowed


@pytest.mark.parametrize("parameter", [p for p in PARAMETERS if p.metadata["range"]], ids=lambda p: p.name)
def test_values_outside_the_range_are_refused_by_name(parameter: dataclasses.Field[object]) -> None:
    allowed: Range = parameter.metadata["range"]
    assert float("nan") not in allowed
    with pytest.raises(SamplingError, match=f"{parameter.name} .* is out of range: {allowed}") as caught:
        SamplingParams(**{parameter.name: allowed.low - 1})
    assert caught.value.field == parameter.name


def test_nothing_given_means_the_defaults() -> None:
    asked = CompletionRequest.model_validate({**COMPLETION, "temperature": None, "stop": None})
    assert asked.sampling(100) == SamplingParams(max_tokens=16)
    assert asked.sampling(3) == SamplingParams(max_tokens=3)
    assert ChatRequest.model_validate(CHAT).sampling(100) == SamplingParams(max_tokens=100)


def test_other_spellings_mean_the_same() -> None:
    asked = ChatRequest.model_validate({**CHAT, "top_k": -1, "stop": "END", "logit_bias": {"5": 1}, "stop_token_ids": [3]})
    assert asked.sampling(9) == SamplingParams(max_tokens=9, top_k=0, stop=("END",), logit_bias={5: 1.0}, stop_token_ids=(3,))


def test_each_api_asks_for_log_probabilities_in_its_own_way() -> None:
    echo = CompletionRequest.model_validate({**COMPLETION, "logprobs": 2, "echo": True}).sampling(9)
    chat = ChatRequest.model_validate({**CHAT, "logprobs": True}).sampling(9)
    silent = ChatRequest.model_validate(CHAT).sampling(9)
    assert [(p.logprobs, p.prompt_logprobs) for p in (echo, chat, silent)] == [(2, 2), (0, None), (None, None)]
