"""What a model's generation_config.json says of requests that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskpro_deploy.errors import FormatError
from maskpro_deploy.runtime.generate.model_defaults import GENERATION_FILE, ModelDefaults
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams

RECOMMENDED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1, "max_new_tokens": 12}


def write(folder: Path, value: object) -> Path:
    (folder / GENERATION_FILE).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_what_it_recommends_is_read_and_the_rest_is_not(tmp_path: Path) -> None:
    read = ModelDefaults.read(write(tmp_path, RECOMMENDED | {"do_sample": False, "eos_token_id": [1], "num_beams": 4}))
    assert read.sampling == {k: v for k, v in RECOMMENDED.items() if k != "max_new_tokens"}
    assert read.max_tokens == 12
    SamplingParams(**read.sampling)  # type: ignore[arg-type]


def test_nulls_and_no_file_say_nothing(tmp_path: Path) -> None:
    assert ModelDefaults.read(tmp_path) == ModelDefaults()
    assert ModelDefaults.read(write(tmp_path, dict.fromkeys(RECOMMENDED))) == ModelDefaults()


def test_another_sign_for_all_tokens(tmp_path: Path) -> None:
    assert ModelDefaults.read(write(tmp_path, {"top_k": -1})).sampling == {"top_k": 0}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ({"temperature": 5}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ("{\"min_p\": NaN}", "min_p"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": [5]}, "max_new_tokens"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_plain_error(tmp_path: Path, value: object, named: str) -> None:
    with pytest.raises(FormatError) as caught:
        ModelDefaults.read(write(tmp_path, value))
    assert named in str(caught.value)
    assert GENERATION_FILE in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
